"""Bounds on every row's product with the present residual, from products with older ones (method.md section 6, i).

Each row has an anchor: the unit residual that it was last looked at with. A bound costs two multiplications a row.
Where rows have heads, their products in a few leading directions, what passes is bounded again: the head by its product
with the residual as it is now, the tail alone by the anchor. Cauchy–Schwarz then costs half of a row's length, not all.
"""

import math
from dataclasses import replace

import numpy as np

from attribution.bound_kernels import BoundKernels, Facing, Head, Lengths, Looked, LookedTails, Reached
from attribution.coarse_rows import CoarseRows, HeadRows, Places
from attribution.exact_sums import Array, row_dots

#: Residuals that bounds may start from. When there are as many, all rows should be looked at again.
_MOST_ANCHORS = 256
#: A residual whose tail is shorter than this says nothing useful of other tails.
_SHORTEST_TAIL = 0.05


class BoundedRows:
    """Rows of a pool that have been looked at, with bounds that hold for any later residual.

    All lengths are in units of the longest sketch, so that float32 holds them.

    Args:
        coarse: The pool.
        longest: The largest of its norms, positive.
        most_looks: How many anchors there may be at most.
        blur: What products of unit vectors may be off by.
        kernels: Evaluate bounds.

    Attributes:
        bytes_read: Bytes of heads read so far.
    """

    def __init__(self, coarse: CoarseRows, longest: float, most_looks: int, blur: float, kernels: BoundKernels) -> None:
        self._heads = coarse.heads
        self._longest = longest
        self._most_looks = min(most_looks, _MOST_ANCHORS)
        self._blur = blur
        self._kernels = kernels
        # The head of a residual costs a read of the basis, in float64: as much as the codes of so many rows.
        self._few = 8 * (0 if self._heads is None else int(self._heads.basis.shape[0]))
        # Products of heads are rounded in k directions, and these are orthonormal to 1e-12 only.
        size = self._directions = 0 if self._heads is None else int(self._heads.basis.shape[0])
        self._head_blur = (3 + math.sqrt(size)) * blur + 2e-12 * size
        self._tail_blur = 4 * self._head_blur / _SHORTEST_TAIL**2
        tails = None if coarse.heads is None else coarse.heads.tails / longest
        self._lengths = Lengths(coarse.norms / longest, tails)
        self._looks = 0
        self._passed = 0
        self._units: Array = np.empty((0, 0))
        self._unit_heads: Array = np.empty((0, 0))
        self._tail_lengths: Array = np.empty(0)
        self._reached: Reached | None = None
        self.bytes_read = 0

    @property
    def full(self) -> bool:
        """Whether there is no room for another anchor, or none was set yet: time to look at all rows."""
        return not 0 < self._looks < self._most_looks

    def forget(self) -> None:
        """Forget all rows and anchors."""
        self._looks = 0
        self._lengths.forget()

    def face(self, unit: Array) -> None:
        """Turn to the residual that all that follows is about.

        Args:
            unit: r/‖r‖.
        """
        self._unit = unit
        self._head: Array | None = None
        self._reached = None
        self._anchored = False
        self._dots = row_dots(self._units[: self._looks], unit) if self._looks else unit[:0]
        cosines = np.abs(self._dots)
        # The square root makes the rounding of a cosine near 1 visible, so it is allowed for before.
        sines = np.sqrt(np.clip(1.0 - np.maximum(cosines - self._blur, 0.0) ** 2, 0.0, 1.0))
        self._facing = Facing(
            cosines=(cosines + self._blur).astype(np.float32),
            sines=sines.astype(np.float32),
            tail_cosines=self._dots[:0],
            tail_blur=self._tail_blur,
            tail_sines=self._dots[:0],
        )

    def _face_tails(self, head: Array) -> tuple[Head, Facing]:
        # How the residual's tail lies to the anchors' tails, once its head is known.
        self._head = head
        self._tail_length = math.sqrt(max(1.0 - float(row_dots(head, head)), 0.0))
        if self._anchored:
            self._unit_heads[self._looks - 1], self._tail_lengths[self._looks - 1] = head, self._tail_length
        count = self._dots.shape[0]
        if count:
            # a · u = (u_a · u − h_a · h_u)/‖τ_a‖ for the unit tail a of an anchor; 0 where it is short or unknown.
            lengths = self._tail_lengths[:count]
            usable = lengths >= _SHORTEST_TAIL
            products = self._dots - row_dots(self._unit_heads[:count], head)
            cosines = np.where(usable, products / np.where(usable, lengths, 1.0), 0.0)
            known = np.maximum(np.abs(cosines) - self._tail_blur, 0.0)
            sines = np.sqrt(np.maximum(self._tail_length**2 - known**2, 0.0) + 2 * self._head_blur)
            self._facing = replace(self._facing, tail_cosines=cosines, tail_sines=sines)
        return Head(head, self._longest, self._head_blur), self._facing

    def anchor(self) -> None:
        """Let bounds of rows added from now on start from the present residual."""
        if self._looks >= self._units.shape[0]:
            room = min(max(2 * self._looks, 8), self._most_looks)
            self._units = _grown(self._units, self._looks, (room, self._unit.shape[0]))
            self._unit_heads = _grown(self._unit_heads, self._looks, (room, self._directions))
            self._tail_lengths = _grown(self._tail_lengths, self._looks, (room,))
        self._units[self._looks] = self._unit
        # A length of 0 says that the anchor's tail is not known.
        self._unit_heads[self._looks] = 0.0 if self._head is None else self._head
        self._tail_lengths[self._looks] = 0.0 if self._head is None else self._tail_length
        self._looks += 1
        self._anchored = True

    def add(self, places: Places, products: Array, errors: Array, *, reached: bool = False) -> None:
        """Bound rows by their products with the newest anchor, which is the present residual.

        Args:
            places: Which rows.
            products: φ · anchor, signed, in units of the longest sketch, [m].
            errors: Bounds of their errors, [m].
            reached: Whether these are the rows that :meth:`reaching` gave last: their heads are known.
        """
        if not places.shape[0]:
            return
        tails = None if self._heads is None else self._tails(self._heads, places, reached)
        self._kernels.anchor_rows(self._lengths, self._looks - 1, Looked(places, products, errors), tails)

    def _tails(self, rows: HeadRows, places: Places, reached: bool) -> LookedTails | None:
        # For few rows an anchor whose tail is not known will do; rows added later may make it known.
        if self._head is None and places.shape[0] > self._few:
            self._face_tails(rows.project(self._unit))
        head = self._head
        if head is None or self._tail_length < _SHORTEST_TAIL:
            return None
        if reached and self._reached is not None:
            heads, errors = self._reached.heads, self._reached.errors
        else:
            heads, errors = rows.products(head, places)
            heads, errors = heads / self._longest, errors / self._longest + self._head_blur
            self.bytes_read += int(places.shape[0]) * rows.bytes_per_row
        return LookedTails(heads, errors, self._tail_length, self._tail_blur)

    def remove(self, places: Places) -> None:
        """Take rows out: those decided exactly need no bound.

        Args:
            places: Which rows.
        """
        self._lengths.along[places] = -np.inf
        self._lengths.across[places] = 0.0

    def reaching(self, mark: float) -> Places:
        """Find the rows whose product with the present unit residual may reach a mark.

        Args:
            mark: What |φ · r|/‖r‖ must reach.

        Returns:
            Their places, ascending.
        """
        # Where many rows passed the first bound last time, they are not counted before they meet the second.
        if self._heads is None or self._passed <= 4 * self._few:
            places = self._kernels.places_reaching(self._lengths, self._facing, mark)
            self._passed = int(places.shape[0])
            if self._heads is None or self._passed <= self._few:
                return places
        self._reached = self._kernels.heads_reaching(self._heads, self._unit, self._face_tails, self._lengths, mark)
        self._passed = self._reached.looked
        self.bytes_read += self._reached.looked * self._heads.bytes_per_row
        return self._reached.places

    def largest(self, count: int) -> Places:
        """Find the rows of largest bound.

        Args:
            count: How many at most.

        Returns:
            Their places, ascending.
        """
        lengths, facing = self._lengths, self._facing
        anchor = lengths.anchors(slice(None))
        bounds = lengths.along * facing.cosines[anchor] + lengths.across * facing.sines[anchor]
        bounds[~np.isfinite(bounds)] = -np.inf
        best = np.argpartition(-bounds, count)[:count] if count < bounds.shape[0] else np.arange(bounds.shape[0])
        return np.sort(best[bounds[best] >= 0])


def _grown(array: Array, used: int, shape: tuple[int, ...]) -> Array:
    grown = np.empty(shape)
    if used:
        grown[:used] = array[:used]
    return grown
