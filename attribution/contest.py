"""Who wins a greedy step: float64 products decide, ties go to the lowest row, and the runners-up stay at hand."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from attribution.coarse_rows import Places
from attribution.exact_sums import Array, row_dots


class Leader(NamedTuple):
    """One of the best rows of a step; they sort best first.

    Attributes:
        rank: −|product|.
        place: Which row.
        product: φ · r, signed.
        sketch: φ, float64 [d].
    """

    rank: float
    place: int
    product: float
    sketch: Array


class Contest:
    """The rows decided at one step. Only the leading ones keep their sketches: a pool of duplicates contends whole.

    Args:
        residual: r, float64 [d].
        unit: What products are divided by for the mark: ‖r‖ times the unit of lengths.
        most_leading: How many rows keep their sketches.

    Attributes:
        leading: The best rows so far, the largest absolute product first, ties by place.
        mark: The largest |φ · r| so far, in units.
    """

    def __init__(self, residual: Array, unit: float, most_leading: int) -> None:
        self.leading: list[Leader] = []
        self.mark = 0.0
        self._residual = residual
        self._unit = unit
        self._most_leading = most_leading
        self._behind: list[tuple[Places, Array]] = []

    def keep(self, leaders: Sequence[Leader]) -> None:
        """Enter rows that led an earlier step.

        Args:
            leaders: The rows; their products were with another residual.
        """
        # Row by row: gathering their sketches would cost as much as the sums.
        products = [float(row_dots(leader.sketch, self._residual)) for leader in leaders]
        rows = zip(leaders, products, strict=True)
        self._merge([Leader(-abs(product), leader.place, product, leader.sketch) for leader, product in rows])

    def enter(self, places: Places, sketches: Array) -> None:
        """Multiply rows with the residual.

        Args:
            places: Which rows.
            sketches: Their sketches, float64 [m, d], contiguous.
        """
        if not places.shape[0]:
            return
        products = row_dots(sketches, self._residual)
        if places.shape[0] > self._most_leading:
            # Those that cannot lead need no entry of their own.
            order = np.lexsort((places, -np.abs(products)))
            best, behind = order[: self._most_leading], order[self._most_leading :]
            self._behind.append((places[behind], products[behind] / self._unit))
            places, products, sketches = places[best], products[best], sketches[best]
        rows = zip(places.tolist(), products.tolist(), sketches, strict=True)
        self._merge([Leader(-abs(product), place, product, sketch) for place, product, sketch in rows])

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

    def _merge(self, entered: list[Leader]) -> None:
        if not entered:
            return
        # No place enters twice, so that sketches are never compared.
        ranked = sorted([*self.leading, *entered])
        self.leading, behind = ranked[: self._most_leading], ranked[self._most_leading :]
        if behind:
            places = np.array([leader.place for leader in behind])
            self._behind.append((places, np.array([leader.product for leader in behind]) / self._unit))
        self.mark = abs(self.leading[0].product) / self._unit
