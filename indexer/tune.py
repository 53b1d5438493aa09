"""Tuning the noise without retraining: the σ² under which the surrogate explains the labels best, by its evidence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from attribution.evidence import Amplitude, log_evidence, target_energies
from indexer.attributor.spectra import Spectra
from indexer.progress import Progress, Silent
from indexer.targets import TargetError, default_targets, targets_of
from sketchstore.reader import Index
from sketchstore.view import View

METHOD = "gp_evidence"
LOWEST, HIGHEST, PER_DECADE = 1e-4, 1e4, 8


@dataclass(frozen=True)
class PartitionTuning:
    """The evidence of one set of comparable rows.

    Attributes:
        view: The view.
        label: The label of the rows, None where all rows of the view compare.
        rows: How many.
        relative_noise: The grid's noise with the most evidence among these rows alone.
        at_edge: ``low`` or ``high`` where that is an end of the grid.
    """

    view: str
    label: int | None
    rows: int
    relative_noise: float
    at_edge: Literal["low", "high"] | None


@dataclass(frozen=True)
class NoiseTuning:
    """How a default noise was found.

    Attributes:
        method: ``gp_evidence``.
        amplitude: ``profiled`` or ``one``.
        targets: What the evidence is of: ``one-hot``, ``residual`` or ``metadata.NAME``.
        num_rows: Rows of the index.
        grid: Relative noises, ascending.
        log_evidence: Log evidence at each, in nats, summed over the partitions.
        relative_noise: The one with the most.
        at_edge: ``low`` or ``high`` where that is an end of the grid: the best noise may lie beyond.
        partitions: The same for each partition alone.
    """

    method: str
    amplitude: Amplitude
    targets: str
    num_rows: int
    grid: list[float]
    log_evidence: list[float]
    relative_noise: float
    at_edge: Literal["low", "high"] | None
    partitions: list[PartitionTuning]

    def as_json(self) -> dict[str, Any]:
        """Return the tuning as JSON values, as the manifest keeps it."""
        return asdict(self)


def log_grid(lowest: float = LOWEST, highest: float = HIGHEST, per_decade: int = PER_DECADE) -> list[float]:
    """Noises that are equally far apart as powers of ten.

    Args:
        lowest: The first, relative to the mean squared norm.
        highest: The last, or the last below it.
        per_decade: How many from one power of ten to the next.

    Returns:
        Relative noises, ascending, with the digits that a person would write.

    Raises:
        TargetError: If they are not positive and ascending.
    """
    if not (0 < lowest < highest < math.inf and per_decade >= 1):
        raise TargetError(
            f"a grid from {lowest:g} to {highest:g} with {per_decade} noises a decade is none: --lowest must be above "
            "0 and below --highest, --per-decade at least 1"
        )
    count = math.floor(math.log10(highest / lowest) * per_decade + 1e-9)
    return [float(f"{lowest * 10 ** (step / per_decade):.6g}") for step in range(count + 1)]


def tune_noise(
    index: Index,
    *,
    grid: Sequence[float] | None = None,
    amplitude: Amplitude = "profiled",
    targets: str | None = None,
    progress: Progress | None = None,
) -> NoiseTuning:
    """Find the relative noise under which the surrogate has the most evidence; stores nothing.

    Each set of rows that compare is a Gaussian process of its own, of noise r times the mean squared norm of its rows,
    and r is common to all: their log evidences are summed.

    Args:
        index: The open index; stored spectra are used, others computed now.
        grid: Relative noises, ascending; None takes 1e-4 to 1e4, eight a decade.
        amplitude: Whether the amplitude of K is profiled, or one.
        targets: ``one-hot``, ``residual`` or ``metadata.NAME``; None takes residuals where rows compare within a label
            only, else one-hot labels (see ``targets_of``).
        progress: Told how far it is.

    Returns:
        The tuning.

    Raises:
        TargetError: If no rows have a target that differs from zero.
    """
    progress, noises = progress or Silent(), list(grid or log_grid())
    asked = default_targets(index) if targets is None else targets
    spectra = Spectra(index, capacity_bytes=0)  # one at a time: each is needed once
    pairs = [(view, label) for view in index.views.values() for label in view.partitions]
    progress.phase("computing the evidence of the noise", len(pairs), even=False)
    total, partitions = torch.zeros(len(noises), dtype=torch.float64), []
    for view, label in pairs:
        wanted = targets_of(index, view, label, asked)
        unit = view.mean_squared_norm(label)
        if unit > 0 and bool((wanted != 0).any()):
            curve = _curve(view, label, spectra, wanted, [noise * unit for noise in noises], amplitude)
            best = int(curve.argmax())
            partitions.append(PartitionTuning(view.name, label, wanted.numel(), noises[best], _edge(best, noises)))
            total += curve
        progress.advance(1)
    if not partitions:
        raise TargetError(
            f"index {index.name!r}: every target is zero once it is centred (one label only, or one value), or every "
            "sketch is; no noise explains nothing better than another"
        )
    best = int(total.argmax())
    return NoiseTuning(
        method=METHOD,
        amplitude=amplitude,
        targets=asked,
        num_rows=index.num_rows,
        grid=noises,
        log_evidence=total.tolist(),
        relative_noise=noises[best],
        at_edge=_edge(best, noises),
        partitions=partitions,
    )


def _curve(
    view: View, label: int | None, spectra: Spectra, targets: Tensor, noises: list[float], amplitude: Amplitude
) -> Tensor:
    # Log evidence of one partition at each σ².
    spectrum = spectra.spectrum(view, label)
    moments = None
    if spectrum.form == "gram":
        moments, start = torch.zeros(view.sketch_dim, dtype=torch.float64), 0
        for rows, sketches in view.blocks(rows=view.partition_rows(label)):
            moments += sketches.T @ targets[start : start + rows.numel()]
            start += rows.numel()
    seen = target_energies(spectrum, targets, moments, noises[0])
    return torch.tensor([log_evidence(seen, noise, amplitude) for noise in noises], dtype=torch.float64)


def _edge(best: int, noises: list[float]) -> Literal["low", "high"] | None:
    if best == 0:
        return "low"
    return "high" if best == len(noises) - 1 else None
