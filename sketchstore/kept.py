"""Which rows of an index directory are left: the map from rows, which answers speak of, to places in its files."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sketchstore.arrays import Array

Ranges = Sequence[tuple[int, int]]
Places = npt.NDArray[np.int64]


def check_ranges(removed: Ranges, num_places: int) -> None:
    """Refuse ranges that are not the one spelling of a set of places.

    Args:
        removed: Half-open ranges [first, stop) of places.
        num_places: How many places there are.

    Raises:
        ValueError: If a range is empty, out of order, touches the one before, or leaves the places.
    """
    end = -1
    for first, stop in removed:
        if not end < first < stop <= num_places:
            raise ValueError(
                f"removed range [{first}, {stop}) must not be empty, must begin beyond the end of the one before and "
                f"end within the {num_places} places"
            )
        end = stop


def ranges_of(places: Iterable[int]) -> tuple[tuple[int, int], ...]:
    """Spell a set of places as ranges.

    Args:
        places: Places in any order.

    Returns:
        Half-open ranges, ascending, none touching the next.
    """
    wanted = np.unique(np.fromiter(places, dtype=np.int64))
    if not wanted.size:
        return ()
    cuts = np.flatnonzero(np.diff(wanted) > 1)
    firsts, lasts = wanted[np.concatenate(([0], cuts + 1))], wanted[np.concatenate((cuts, [wanted.size - 1]))]
    return tuple((int(first), int(last) + 1) for first, last in zip(firsts, lasts, strict=True))


def places_in(removed: Ranges) -> Places:
    """List the places of some ranges.

    Args:
        removed: Half-open ranges, ascending.

    Returns:
        The places, ascending.
    """
    parts = [np.arange(first, stop, dtype=np.int64) for first, stop in removed]
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)


class Kept:
    """The rows that are left of some places: row i is the i-th place that no removed range covers.

    Costs memory for the ranges only, whatever the number of rows.

    Args:
        num_rows: Rows that are left.
        removed: Removed ranges of places.

    Attributes:
        num_rows: Rows that are left.
        num_places: Rows that the files hold.
    """

    def __init__(self, num_rows: int, removed: Ranges = ()) -> None:
        self.num_rows = num_rows
        self.num_places = num_rows + sum(stop - first for first, stop in removed)
        self._runs: list[tuple[int, int]] = []
        start = 0
        for first, stop in removed:
            if first > start:
                self._runs.append((start, first))
            start = stop
        if start < self.num_places:
            self._runs.append((start, self.num_places))
        lengths = [stop - first for first, stop in self._runs]
        self._first_rows = np.concatenate(([0], np.cumsum(lengths)[:-1])).astype(np.int64)
        self._shifts = np.array([first for first, _ in self._runs], dtype=np.int64) - self._first_rows

    @property
    def whole(self) -> bool:
        """Whether nothing is removed: every row's place is its own number."""
        return self.num_rows == self.num_places

    def places(self, rows: npt.NDArray[np.int64]) -> Places:
        """Where rows lie.

        Args:
            rows: Row numbers in any order, each 0 to ``num_rows`` − 1.

        Returns:
            Their places; the very array where nothing is removed.
        """
        if self.whole:
            return rows
        return rows + self._shifts[np.searchsorted(self._first_rows, rows, side="right") - 1]

    def place(self, row: int) -> int:
        """Where one row lies.

        Args:
            row: The row.

        Returns:
            Its place.
        """
        return int(self.places(np.array([row], dtype=np.int64))[0])

    def take(self, values: Array) -> Array:
        """The values of the rows that are left.

        Args:
            values: First axis the places.

        Returns:
            First axis the rows; the very array where nothing is removed, else a copy.
        """
        return values if self.whole else np.concatenate([values[first:stop] for first, stop in self._runs])

    def take_arrow(self, column: Any) -> Any:
        """The values of the rows that are left, of a column of a table.

        Args:
            column: A chunked array over the places.

        Returns:
            One over the rows.
        """
        return column if self.whole else column.filter(pa.array(self.mask(0, self.num_places)))

    def mask(self, start: int, stop: int) -> npt.NDArray[np.bool_]:
        """Say of consecutive places which are left.

        Args:
            start: First place.
            stop: Place after the last.

        Returns:
            bool [stop − start].
        """
        left = np.zeros(stop - start, dtype=bool)
        for first, end in self._runs:
            left[max(first - start, 0) : max(end - start, 0)] = True
        return left
