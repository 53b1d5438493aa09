"""Leverages of a partition's rows at one noise variance, stored below derived/: what greedy InfoLoss divides by."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pydantic import JsonValue
from torch import Tensor

from sketchstore.arrays import map_tensor, tensor_file_bytes
from sketchstore.derived import Derived
from sketchstore.derived_manifest import CURE
from sketchstore.errors import StaleDerivedError


@dataclass(frozen=True)
class StoredLeverages:
    """h_n = φ_nᵀ(ΦᵀΦ + σ²I)⁻¹φ_n of the rows of a partition, in ascending order.

    Attributes:
        values: h, float64 [rows], from 0 to 1.
        relative_error: Bound of their relative error against values computed from the stored spectrum.
    """

    values: Tensor
    relative_error: float


def write_leverages(
    derived: Derived, view: str, label: int | None, noise_variance: float, leverages: StoredLeverages
) -> Path:
    """Store the leverages of a partition, which must have a stored spectrum; those at another noise are replaced.

    Args:
        derived: The derived entries of the index.
        view: The view.
        label: The partition's label, or None for all rows.
        noise_variance: σ², in squared units of the measurement.
        leverages: The leverages, computed from the stored spectrum.

    Returns:
        The file.
    """
    spectrum = derived.entry("spectrum", view, label)
    assert spectrum is not None, "leverages are computed from a stored spectrum"
    data = tensor_file_bytes(
        {"leverages": leverages.values.numpy(), "relative_error": np.array([leverages.relative_error])}
    )
    options: dict[str, JsonValue] = {"noise_variance": noise_variance, "spectrum": spectrum.blake3}
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
    if entry.options.get("spectrum") != spectrum:
        raise StaleDerivedError(name, f"was computed from another spectrum than the index holds. {CURE}")
    values = np.array(map_tensor(path, name, "leverages", dtype="<f8", shape=(entry.rows,)))
    error = map_tensor(path, name, "relative_error", dtype="<f8", shape=(1,))
    return StoredLeverages(torch.from_numpy(values), float(error[0]))
