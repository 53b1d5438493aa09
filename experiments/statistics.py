"""The statistics that the experiments report: means with their standard errors, and a paired test of two shares."""

import math
from collections.abc import Iterable, Sequence


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


def mcnemar_p(first: Sequence[bool], second: Sequence[bool]) -> float:
    r"""Return the exact two-sided p-value of McNemar's test that two shares of the same queries are equal.

    .. math:: p = \min\Bigl(1,\ 2^{1 - n} \sum_{i = 0}^{\min(b, c)} \binom{n}{i}\Bigr), \quad n = b + c

    with b the queries that only the first has and c those that only the second has: under equal shares each of the n is
    a throw of a fair coin.

    Args:
        first: Whether each query counts in the first share.
        second: The same queries in the second.

    Raises:
        ValueError: If they are not as many.
    """
    pairs = list(zip(first, second, strict=True))
    only_first, only_second = (sum(one != other and one == which for one, other in pairs) for which in (True, False))
    differing = only_first + only_second
    tail = sum(math.comb(differing, count) for count in range(min(only_first, only_second) + 1))
    return min(1.0, 2 * tail / 2**differing)
