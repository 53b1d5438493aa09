"""The noise variance of an answer, in both units: measurement², and the mean squared norm of the comparable rows."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from attribution.errors import NotPositiveDefiniteError
from indexer.attributor.errors import NoiseRangeError, NoiseTooSmallError, NoNoiseUnitError
from indexer.attributor.pool import partition_label, query_view
from indexer.attributor.questions import QuerySketch, check_noise
from sketchstore.reader import Index

UNTUNED_RELATIVE_NOISE = 1.0


@dataclass(frozen=True)
class Noise:
    """σ² in both units.

    Attributes:
        variance: σ², measurement².
        relative: σ² / mean ‖φ‖² of the comparable rows.
        warning: Said when nobody chose it.
    """

    variance: float
    relative: float
    warning: str | None = None


def resolve_noise(
    index: Index, view: str, label: int | None, noise_variance: float | None, relative_noise: float | None
) -> Noise:
    """Settle the noise of a question.

    Args:
        index: The index.
        view: The query's view.
        label: The partition of comparable rows; None where all rows are comparable.
        noise_variance: σ² in measurement², if asked for.
        relative_noise: σ² relative to the mean squared norm, if asked for.

    Returns:
        The noise in both units; the index's tuned default where nothing was asked for, else relative 1.0 with a
        warning.

    Raises:
        NoiseConflictError: If both are given.
        NoiseRangeError: If it is not positive and finite in both units.
        NoNoiseUnitError: If every comparable row is zero.
    """
    check_noise(noise_variance, relative_noise)
    unit = index.view(view).mean_squared_norm(label)
    if not unit > 0:
        raise NoNoiseUnitError(
            "every comparable row of this index is zero, so none can inform the query and relative noise has no unit. "
            "Choose another label or view.",
            pointer="/target/label",
        )
    warning = None
    if noise_variance is None:
        if relative_noise is None:
            relative_noise = index.manifest.default_relative_noise
        if relative_noise is None:
            relative_noise = UNTUNED_RELATIVE_NOISE
            warning = (
                f"The noise is untuned: relative_noise {UNTUNED_RELATIVE_NOISE} was taken because the request gives "
                "none and the index has no tuned default. Nats depend on it."
            )
        variance, relative, field = relative_noise * unit, relative_noise, "relative_noise"
    else:
        variance, relative, field = noise_variance, noise_variance / unit, "noise_variance"
    if not all(math.isfinite(value) and value > 0 for value in (variance, relative)):
        raise NoiseRangeError(
            f"{field} is outside the range of float64: noise_variance would be {variance}, relative_noise {relative}.",
            pointer=f"/{field}",
            allowed={"gt": 0},
        )
    return Noise(float(variance), float(relative), warning)


@contextmanager
def naming_the_noise(index: Index, query: QuerySketch, noise_variance: float | None) -> Iterator[None]:
    """Say in the unit that was asked which noise would do, where rounding defeats the one in force.

    Args:
        index: The index.
        query: The query.
        noise_variance: σ² in measurement², if it was asked for in this unit.

    Yields:
        Nothing; the mathematics runs inside.

    Raises:
        NoiseTooSmallError: If a factorisation in the block fails at this noise.
    """
    try:
        yield
    except NotPositiveDefiniteError as error:
        view = query_view(index, query)
        unit = 1.0 if noise_variance is not None else view.mean_squared_norm(partition_label(view, query))
        field = "relative_noise" if noise_variance is None else "noise_variance"
        # Three digits, rounded up, so that the number that is read is one that works.
        least = float(f"{1.01 * error.smallest_noise_variance / unit:.2e}")
        raise NoiseTooSmallError(
            f"{field} is so small that float64's rounding is as large as the noise. Use at least {least:g}.",
            pointer=f"/{field}",
            allowed={"ge": least},
        ) from error
