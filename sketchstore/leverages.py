"""Leverages of a partition's rows, stored below derived/: what greedy InfoLoss divides by, at one noise and at all."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pydantic import JsonValue
from torch import Tensor

from sketchstore.arrays import Array, map_tensor, tensor_file_bytes
from sketchstore.derived import Derived
from sketchstore.derived_manifest import CURE
from sketchstore.errors import CorruptDerivedError, StaleDerivedError


@dataclass(frozen=True)
class StoredLeverages:
    """h_n = φ_nᵀ(ΦᵀΦ + σ²I)⁻¹φ_n of the rows of a partition, in ascending order.

    Attributes:
        values: h, float64 [rows], from 0 to 1.
        relative_error: Bound of their relative error against values computed from the stored spectrum.
    """

    values: Tensor
    relative_error: float


@dataclass(frozen=True)
class StoredCurves:
    """h_n of the rows of a partition, in ascending order, at several noises, for interpolation.

    Attributes:
        nodes: The noise variances, float64 [m], squared units of the measurement.
        values: h at each, float64 [rows, m].
        product_errors: Bound of the error of each row's products with the eigenvectors, float64 [rows].
    """

    nodes: Tensor
    values: Tensor
    product_errors: Tensor


def write_leverages(
    derived: Derived,
    view: str,
    label: int | None,
    noise_variance: float,
    leverages: StoredLeverages,
    curves: StoredCurves | None = None,
) -> Path:
    """Store the leverages of a partition, which must have a stored spectrum; what was stored before is replaced.

    Args:
        derived: The derived entries of the index.
        view: The view.
        label: The partition's label, or None for all rows.
        noise_variance: σ² of ``leverages``, in squared units of the measurement.
        leverages: The leverages, computed from the stored spectrum.
        curves: Leverages at several noises, computed from it too.

    Returns:
        The file.
    """
    spectrum = derived.entry("spectrum", view, label)
    assert spectrum is not None, "leverages are computed from a stored spectrum"
    options: dict[str, JsonValue] = {"noise_variance": noise_variance, "spectrum": spectrum.blake3}
    tensors: dict[str, Array] = {
        "leverages": leverages.values.numpy(),
        "relative_error": np.array([leverages.relative_error]),
    }
    if curves is not None:
        options["nodes"] = curves.nodes.shape[0]
        tensors |= {
            "nodes": curves.nodes.numpy(),
            "curves": curves.values.numpy(),
            "product_errors": curves.product_errors.numpy(),
        }
    data = tensor_file_bytes(tensors)
    return derived.write("leverages", view, label, options, lambda path: path.write_bytes(data))


def read_leverages(
    derived: Derived, view: str, label: int | None, noise_variance: float, spectrum: str
) -> StoredLeverages | None:
    """Read the leverages of a partition, checked against their digest.

    Args:
        derived: The derived entries of the index.
        view: The view.
        label: The partition's label, or None for all rows.
        noise_variance: σ², in squared units of the measurement.
        spectrum: Digest of the file of the spectrum that they are used with.

    Returns:
        The leverages, or None where none are stored at this σ².

    Raises:
        StaleDerivedError: If they were computed from another spectrum.
    """
    entry = derived.entry("leverages", view, label)
    if entry is None or entry.options.get("noise_variance") != noise_variance:
        return None
    path, entry = derived.file("leverages", view, label)
    name = f"derived/leverages/{view}/{path.name}"
    _refuse_other_spectrum(name, entry.options, spectrum)
    values = np.array(map_tensor(path, name, "leverages", dtype="<f8", shape=(entry.rows,)))
    error = map_tensor(path, name, "relative_error", dtype="<f8", shape=(1,))
    return StoredLeverages(torch.from_numpy(values), float(error[0]))


def read_curves(derived: Derived, view: str, label: int | None, spectrum: str) -> StoredCurves | None:
    """Read the leverages of a partition at several noises, memory-mapped, checked against their digest.

    Args:
        derived: The derived entries of the index.
        view: The view.
        label: The partition's label, or None for all rows.
        spectrum: Digest of the file of the spectrum that they are used with.

    Returns:
        The curves, or None where none are stored: older programs stored leverages at one noise only.

    Raises:
        StaleDerivedError: If they were computed from another spectrum.
        CorruptDerivedError: If the entry does not say how many noises there are.
    """
    entry = derived.entry("leverages", view, label)
    if entry is None or "nodes" not in entry.options:
        return None
    path, entry = derived.file("leverages", view, label)
    name = f"derived/leverages/{view}/{path.name}"
    _refuse_other_spectrum(name, entry.options, spectrum)
    count = entry.options.get("nodes")
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise CorruptDerivedError(name, f"nodes is {count!r}, must be an integer of at least 1. {CURE}")
    shapes = {"nodes": (count,), "curves": (entry.rows, count), "product_errors": (entry.rows,)}
    nodes, values, errors = (
        torch.from_numpy(map_tensor(path, name, tensor, dtype="<f8", shape=shape)) for tensor, shape in shapes.items()
    )
    return StoredCurves(nodes, values, errors)


def _refuse_other_spectrum(name: str, options: Mapping[str, JsonValue], spectrum: str) -> None:
    if options.get("spectrum") != spectrum:
        raise StaleDerivedError(name, f"was computed from another spectrum than the index holds. {CURE}")
