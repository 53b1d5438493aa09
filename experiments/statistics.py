"""Means with their standard errors, the only statistics that the experiments report."""

import math
from collections.abc import Iterable


def mean_and_error(values: Iterable[float]) -> tuple[float, float | None]:
    """Return the mean and its standard error, None for a single value.

    Args:
        values: At least one value.
    """
    listed = [float(value) for value in values]
    mean = sum(listed) / len(listed)
    if len(listed) < 2:
        return mean, None
    variance = sum((value - mean) ** 2 for value in listed) / (len(listed) - 1)
    return mean, math.sqrt(variance / len(listed))


def with_error(name: str, values: Iterable[float]) -> dict[str, float | None]:
    """Return a mean and its standard error as two columns of a table."""
    mean, error = mean_and_error(values)
    return {name: mean, f"{name}_standard_error": error}
