"""The next pick of approximate InfoGain from bounds on every row of the pool, looking only where a bound allows it.

Rows whose bound (method.md section 6, i) stays below the best product need no look. The others are looked at in few
bits, whose error is known (iii), and what that cannot rule out is decided by float64 products of the stored sketches.
One coarse look at the whole pool starts it all; no pick depends on how coarse the looks are, only their number does.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from attribution.acquired import AcquiredSet
from attribution.bound_kernels import BoundKernels
from attribution.bounded_rows import BoundedRows
from attribution.coarse_rows import CoarseRows, Places
from attribution.contest import Contest, Leader
from attribution.exact_sums import Array, inner_product_error, row_dots
from attribution.literal import Pick

#: Runners-up whose sketches are kept from step to step: the best of them sets the mark that bounds must reach.
_KEPT_ROWS = 12
#: With fewer kept, the mark may be a poor one: rows of large bound are decided first.
_FEWEST_KEPT = 4
#: So few rows are decided at once: a coarse look would spare nothing.
_DECIDED_AT_ONCE = 8
#: Most rows decided together.
_DECIDED_TOGETHER = 256


class ScanPicker:
    """Finds each pick from bounds on all rows.

    Args:
        coarse: The pool.
        sketches: Reads stored sketches by row, float64.
        bytes_per_sketch: What reading one stored sketch costs.
        most_picks: How many picks will be asked for.
        kernels: Evaluate bounds.

    Attributes:
        index_queries: Looks at the whole pool so far.
        rows_scored: Rows multiplied so far, coarsely or exactly.
        bytes_read: Bytes of rows read so far.
    """

    def __init__(
        self,
        coarse: CoarseRows,
        sketches: Callable[[Int[Tensor, " m"]], Float[Tensor, "m d"]],
        bytes_per_sketch: int,
        most_picks: int,
        kernels: BoundKernels,
    ) -> None:
        self._coarse = coarse
        self._sketches = sketches
        self._bytes_per_sketch = bytes_per_sketch
        self._most_picks = most_picks
        self._kernels = kernels
        self._longest = float(coarse.norms.max())
        self._bounded: BoundedRows | None = None
        self._kept: list[Leader] = []
        self._taken: list[int] = []
        self.index_queries = 0
        self.rows_scored = 0
        self.bytes_read = 0

    def best(self, acquired: AcquiredSet) -> Pick | None:
        """Find the row with the largest |φ · r| among those not yet picked.

        Args:
            acquired: The acquired set, all of whose members this picker chose; its residual is r.

        Returns:
            The pick, now counted as taken; None when nothing is left whose product is not exactly 0.
        """
        residual = np.ascontiguousarray(acquired.residuals[0].numpy())
        largest = float(np.abs(residual).max())
        if largest == 0 or self._longest == 0:
            return None
        # Of products of unit vectors and of the float64 sums that decide: a row this close to the mark may reach it.
        self._blur = 4 * inner_product_error(residual.shape[0], torch.float64)
        if self._bounded is None:
            self._bounded = BoundedRows(self._coarse, self._longest, self._most_picks, self._blur, self._kernels)
        scaled = residual / largest  # squares of extreme residuals would leave float64
        unit = scaled / math.sqrt(float(row_dots(scaled, scaled)))
        contest = Contest(residual, self._longest * float(row_dots(unit, residual)), 1 + _KEPT_ROWS)
        contest.keep(self._kept)
        read = self._bounded.bytes_read
        self._bounded.face(unit)
        self._look_where_bounds_allow(self._bounded, contest, unit)
        places, products = contest.behind()
        self._bounded.add(places, products, np.full_like(products, self._blur))
        self.bytes_read += self._bounded.bytes_read - read
        return self._take(contest.leading)

    def _look_where_bounds_allow(self, bounded: BoundedRows, contest: Contest, unit: Array) -> None:
        full = bounded.full
        if full:
            bounded.forget()
            values, errors = self._coarse.products(unit, None)
            places = self._unknown()
            values, errors = values[places], errors[places]
            self.index_queries += 1
        else:
            if len(self._kept) < _FEWEST_KEPT:
                self._decide(contest, bounded.largest(_KEPT_ROWS))
            places = bounded.reaching(contest.mark - self._blur)
            if places.shape[0] <= _DECIDED_AT_ONCE:
                self._decide(contest, places)
                bounded.anchor()
                return
            values, errors = self._coarse.products(unit, places)
        self.rows_scored += places.shape[0]
        self.bytes_read += places.shape[0] * self._coarse.bytes_per_row
        values, errors = values / self._longest, errors / self._longest
        bounded.anchor()
        bounded.add(places, values, errors, reached=not full)
        upper = np.abs(values)
        mark = max(contest.mark, float((upper - errors).max(initial=0.0)))
        upper += errors
        contending = np.flatnonzero(upper >= mark - self._blur)
        contending = contending[np.argsort(-upper[contending], kind="stable")]
        self._decide_in_order(contest, places[contending], upper[contending])

    def _unknown(self) -> Places:
        # Every place but those picked and those decided anyway.
        unknown = np.ones(self._coarse.rows.shape[0], dtype=bool)
        unknown[self._taken] = False
        unknown[[leader.place for leader in self._kept]] = False
        return np.flatnonzero(unknown)

    def _decide_in_order(self, contest: Contest, places: Places, upper: Array) -> None:
        # Decides the most promising first, until no bound reaches the mark.
        done, size, count = 0, _DECIDED_AT_ONCE, int(places.shape[0])
        while done < count and upper[done] >= contest.mark - self._blur:
            self._decide(contest, places[done : done + size])
            done += size
            size = min(2 * size, _DECIDED_TOGETHER)

    def _decide(self, contest: Contest, places: Places) -> None:
        if places.shape[0]:
            assert self._bounded is not None, "bounds come first"
            self._bounded.remove(places)
            contest.enter(places, self._sketches(torch.from_numpy(self._coarse.rows[places])).numpy())
            self.rows_scored += int(places.shape[0])
            self.bytes_read += int(places.shape[0]) * self._bytes_per_sketch

    def _take(self, leading: list[Leader]) -> Pick | None:
        # The winner leaves; the runners-up are kept at hand for the next step.
        if not leading or leading[0].product == 0:
            return None
        winner, *kept = leading
        # A sketch of its own each: a view would keep all that were decided with it.
        self._kept = [leader._replace(sketch=_owned(leader.sketch)) for leader in kept]
        self._taken.append(winner.place)
        return Pick(int(self._coarse.rows[winner.place]), winner.product, torch.from_numpy(_owned(winner.sketch)))


def _owned(sketch: Array) -> Array:
    return sketch if sketch.base is None else sketch.copy()
