"""Which way certified approximate InfoGain finds its picks: the one that reads the fewest bytes, counted beforehand.

What a way reads at least follows from the sizes of what it reads, so that it is the same on every machine. More depends
on the noise and the data: rows that errors and bounds leave in doubt are read as well, in every way. Within a scan the
choice is made again at every step, from counts of the rows in doubt (:mod:`attribution.bounded_rows`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

#: Bytes of a float64.
_FLOAT64 = 8
#: Bytes of what a scan computes the bound of one row from: two lengths in float32 and the number of its anchor.
_SCAN_BOUND = 12
#: The same of a row in a list: three lengths in float64 and the number of its anchor.
_LIST_BOUND = 32
#: By name: columns of a stored Gram matrix, bounds of all rows after one coarse look, lists of one search.
WAYS = ("columns", "scan", "lists")


@dataclass(frozen=True)
class PoolSizes:
    """What the bytes of a selection are counted from.

    Attributes:
        rows: c, rows that may be picked.
        dim: d, numbers of a sketch.
        budget: K, how many will be picked.
        look: Bytes of one row in a look at the whole pool: its code, or the row as stored.
        sketch: Bytes of one row in a search.
    """

    rows: int
    dim: int
    budget: int
    look: int
    sketch: int


def columns_bytes(sizes: PoolSizes) -> int:
    """Count what picking by columns of a stored Gram matrix reads: one look, and before pick t + 1 all t columns.

    Args:
        sizes: Of the pool.

    Returns:
        c · look + 8c·K(K−1)/2, bytes.
    """
    return sizes.rows * (sizes.look + _FLOAT64 * _before(sizes.budget))


def scan_bytes(sizes: PoolSizes) -> int:
    """Count what picking by bounds of all rows reads: one look, and before pick t + 1 the bounds and t old residuals.

    Args:
        sizes: Of the pool.

    Returns:
        c · look + 12c·(K−1) + 8d·K(K−1)/2, bytes.
    """
    return _bounds_bytes(sizes, sizes.look, _SCAN_BOUND)


def lists_bytes(sizes: PoolSizes) -> int:
    """Count what picking from the lists of a local search reads: the search, bounds, and t old residuals as above.

    Args:
        sizes: Of the pool.

    Returns:
        c · sketch + 32c·(K−1) + 8d·K(K−1)/2, bytes.
    """
    return _bounds_bytes(sizes, sizes.sketch, _LIST_BOUND)


def cheapest_way(sizes: PoolSizes, at_hand: Sequence[str], *, local: bool) -> str:
    """Choose the way of fewest bytes over an exact search.

    Args:
        sizes: Of the pool.
        at_hand: Some of ``WAYS``.
        local: Whether a search reads this machine's memory. Where it is a trip away instead, columns need one trip,
            the least there is, and lists at least that.

    Returns:
        One of them.
    """
    if not local:
        return min(at_hand, key=WAYS.index)
    counts = {"columns": columns_bytes, "scan": scan_bytes, "lists": lists_bytes}
    return min(at_hand, key=lambda way: (counts[way](sizes), WAYS.index(way)))


def _bounds_bytes(sizes: PoolSizes, first: int, bound: int) -> int:
    # Bytes of each row in the first step and of its bound in the others, and t old residuals before pick t + 1.
    return sizes.rows * (first + bound * (sizes.budget - 1)) + _FLOAT64 * sizes.dim * _before(sizes.budget)


def _before(budget: int) -> int:
    # 0 + 1 + … + (K − 1)
    return budget * (budget - 1) // 2
