"""Who wins a greedy step: float64 products decide, ties go to the lowest row, and the runners-up stay at hand."""

from dataclasses import dataclass

import numpy as np

from attribution.coarse_rows import Places
from attribution.exact_sums import Array, row_dots


@dataclass(frozen=True)
class Decided:
    """Rows with their products in float64, the largest absolute one first, ties by place.

    Attributes:
        places: int64 [m].
        products: φ · r, signed, [m].
        sketches: [m, d].
    """

    places: Places
    products: Array
    sketches: Array

    @classmethod
    def nothing(cls) -> "Decided":
        """Give no rows.

        Returns:
            None of them.
        """
        return cls(np.empty(0, dtype=np.int64), np.empty(0), np.empty((0, 0)))

    def part(self, chosen: Places | slice) -> "Decided":
        """Choose some of the rows.

        Args:
            chosen: Their positions here.

        Returns:
            These rows.
        """
        return Decided(self.places[chosen], self.products[chosen], self.sketches[chosen])


class Contest:
    """The rows decided at one step. Only the leading ones keep their sketches: a pool of duplicates contends whole.

    Args:
        residual: r, float64 [d].
        unit: What products are divided by for the mark: ‖r‖ times the unit of lengths.
        most_leading: How many rows keep their sketches.

    Attributes:
        leading: The best rows so far.
        mark: The largest |φ · r| so far, in units.
    """

    def __init__(self, residual: Array, unit: float, most_leading: int) -> None:
        self.leading = Decided.nothing()
        self.mark = 0.0
        self._residual = residual
        self._unit = unit
        self._most_leading = most_leading
        self._behind: list[tuple[Places, Array]] = []

    def enter(self, places: Places, sketches: Array) -> None:
        """Multiply rows with the residual.

        Args:
            places: Which rows.
            sketches: Their sketches, float64 [m, d].
        """
        if not places.shape[0]:
            return
        products = row_dots(np.ascontiguousarray(sketches), self._residual)
        if self.leading.places.shape[0]:
            places = np.concatenate([self.leading.places, places])
            products = np.concatenate([self.leading.products, products])
            sketches = np.concatenate([self.leading.sketches, sketches])
        order = np.lexsort((places, -np.abs(products)))
        self.leading = Decided(places, products, sketches).part(order[: self._most_leading])
        behind = order[self._most_leading :]
        if behind.shape[0]:
            self._behind.append((places[behind], products[behind] / self._unit))
        self.mark = abs(float(self.leading.products[0])) / self._unit

    def behind(self) -> tuple[Places, Array]:
        """Give the rows that were decided and do not lead.

        Returns:
            Places, ascending, and φ · r in units.
        """
        if not self._behind:
            return np.empty(0, dtype=np.int64), np.empty(0)
        places, products = (np.concatenate(parts) for parts in zip(*self._behind, strict=True))
        order = np.argsort(places)
        return places[order], products[order]
