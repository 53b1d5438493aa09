"""Near-duplicates that earlier questions found: they do not depend on the query, and popular rows are hit again."""

import threading
from collections import OrderedDict

from torch import Tensor

from indexer.attributor.pool import Pool


class KnownNeighbours:
    """Near-duplicates of rows among whole partitions, the least recently used forgotten.

    Args:
        capacity: How many rows to remember; a row with no near-duplicate takes about 400 bytes.
        most_neighbours: Rows with more are not remembered.
    """

    def __init__(self, capacity: int = 50_000, most_neighbours: int = 1000) -> None:
        self._capacity = capacity
        self._most_neighbours = most_neighbours
        self._rows: OrderedDict[tuple[str, int | None, int], Tensor] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, pool: Pool, rows: list[int]) -> dict[int, Tensor]:
        """Recall near-duplicates.

        Args:
            pool: A question whose candidates are a whole partition.
            rows: Rows of it.

        Returns:
            Near-duplicates of those rows that are known.
        """
        found = {}
        with self._lock:
            for row in rows:
                key = (pool.view.name, pool.label, row)
                if key in self._rows:
                    self._rows.move_to_end(key)
                    found[row] = self._rows[key]
        return found

    def remember(self, pool: Pool, found: dict[int, Tensor]) -> None:
        """Remember near-duplicates.

        Args:
            pool: A question whose candidates are a whole partition.
            found: Near-duplicates of some of its rows.
        """
        with self._lock:
            for row, near in found.items():
                if near.numel() <= self._most_neighbours:
                    self._rows[pool.view.name, pool.label, row] = near
            while len(self._rows) > self._capacity:
                self._rows.popitem(last=False)
