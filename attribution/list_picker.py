"""The next pick from the lists of one search: bounds (method.md section 6) prove picks or call for another search.

For an index that is a trip away, on a GPU or another machine: what a search sends back is looked at here for as many
steps as bound (ii) proves that no row outside the lists can be the pick. Within the lists, bound (i), second form, says
which rows need a look; those get a float32 product, and float64 decides among those that rounding could confuse.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from attribution.acquired import AcquiredSet
from attribution.exact_sums import inner_product_error
from attribution.literal import Pick, best_by_float64
from attribution.search import Search

#: Rows looked at together: one product over contiguous memory costs less than several over scattered rows.
_TILE_ROWS = 16
#: Rows of largest bound that are looked at first; the best of them rules most others out.
_FIRST_LOOK = 16
#: Smallest normal float32; products below it may vanish, each by less than this.
_FLOAT32_TINY = float(torch.finfo(torch.float32).tiny)


def bound_from_older_residual(
    upper: Float[Tensor, " m"],
    lower_squared: Float[Tensor, " m"],
    squared_norms: Float[Tensor, " m"],
    along: Float[Tensor, " m"],
    off: Tensor,
) -> Float[Tensor, " m"]:
    r"""Bound products with a residual r by products with an older one r_a (method.md section 6, bound i).

    .. math:: |\phi_n \cdot r| \le p |\beta| + \sqrt{\|\phi_n\|^2 - p^2} \sqrt{\|r\|^2 - \beta^2}, \quad
        p = |\phi_n \cdot r_a| / \|r_a\|, \ \beta = r \cdot r_a / \|r_a\|

    Split φ_n and r along r_a and orthogonally to it, and use Cauchy–Schwarz on the orthogonal parts.

    Args:
        upper: p, or what it is at most, shape [m], measurement.
        lower_squared: p², or what it is at least, shape [m], measurement².
        squared_norms: ‖φ_n‖², shape [m], measurement².
        along: |β|, shape [m] or broadcastable, measurement.
        off: √(‖r‖² − β²), the length of r orthogonal to r_a, shape [m] or broadcastable, measurement.

    Returns:
        The bounds, shape [m], measurement².
    """
    return upper * along + torch.sqrt(torch.clamp(squared_norms - lower_squared, min=0.0)) * off


def bound_outside_lists(reach: float, largest_norm: float, along: float, off: float) -> float:
    r"""Bound products of r with every row that a search of r_a did not return (method.md section 6, bound ii).

    Such a row has |φ·r_a|/‖r_a‖ ≤ ``reach``, and the bound of (i) rises with that projection until the row points along
    r; beyond, nothing but ‖φ‖‖r‖ holds. Never looser than τ + max‖φ‖ ‖r − r_a‖.

    Args:
        reach: τ/‖r_a‖, the last score of the lists over the length of the residual searched; −infinity if the lists
            hold every row.
        largest_norm: max ‖φ‖.
        along: |β| = |r·r_a|/‖r_a‖.
        off: √(‖r‖² − β²).

    Returns:
        The bound, measurement²; −infinity if there is no row outside.
    """
    if reach == float("-inf"):
        return reach
    length = math.hypot(along, off)
    if reach * length >= largest_norm * along:
        return largest_norm * length
    reach = max(reach, 0.0)
    return reach * along + math.sqrt(largest_norm**2 - reach**2) * off


class ListPicker:
    """Finds each pick from the lists of an earlier search as long as the bounds prove it.

    Args:
        search: The vector database.
        sketches: Reads stored sketches, float64.
        float32_sketches: Reads them as float32, or None to convert.
        rows_allowed: Sorted rows that may be picked, or None for all.
        num_allowed: How many they are.
        largest_norm: max ‖φ‖ over them.
        squared_norms: ‖φ‖² by row, or None to bound every norm by the largest.
        bytes_per_sketch: What reading one stored sketch costs.
        max_results: Longest list asked of the search while bounds permit.

    Attributes:
        index_queries: Rows sent to the search so far.
        rows_scored: Sketches multiplied so far.
        bytes_read: Bytes of sketches read so far.
    """

    def __init__(
        self,
        search: Search,
        sketches: Callable[[Int[Tensor, " m"]], Float[Tensor, "m d"]],
        float32_sketches: Callable[[Int[Tensor, " m"]], Float[Tensor, "m d"]] | None,
        rows_allowed: Int[Tensor, " a"] | None,
        num_allowed: int,
        largest_norm: float,
        squared_norms: Float[Tensor, " n"] | None,
        bytes_per_sketch: int,
        *,
        max_results: int,
    ) -> None:
        self._search = search
        self._sketches = sketches
        self._float32_sketches = float32_sketches
        self._rows_allowed = rows_allowed
        self._num_allowed = num_allowed
        self._largest_norm = largest_norm
        self._squared_norms_by_row = squared_norms
        self._bytes_per_sketch = bytes_per_sketch
        self._max_results = max_results
        self._taken: list[int] = []
        # Float32 cannot hold sketches of extreme length; then float64 nominates as well.
        fits = 1e-12 < largest_norm < 1e12
        self._look_dtype = torch.float32 if fits else torch.float64
        self._searched = False
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
        residual = acquired.residuals[0]
        length = float(torch.linalg.vector_norm(residual))
        num_results = min(self._num_allowed, self._max_results + len(self._taken))
        fresh = not self._searched
        if fresh:
            self._start_from_search(residual, length, num_results)
        while True:
            pick = self._certified_pick(residual, length)
            complete = fresh and num_results >= self._num_allowed
            if pick is not None or complete or self._reach == float("-inf"):
                break
            # Only ties at the end of a fresh list make it longer; a stale one is simply searched again.
            num_results = min(self._num_allowed, 4 * num_results) if fresh else num_results
            fresh = True
            self._start_from_search(residual, length, num_results)
        if pick is None or pick.covariance == 0:
            return None
        self._taken.append(pick.row)
        self._free[self._rows == pick.row] = False
        return pick

    def _start_from_search(self, residual: Float[Tensor, " d"], length: float, num_results: int) -> None:
        """Search r, and −r unless one list holds every row; sort what comes back by |score|."""
        whole = num_results >= self._num_allowed and self._search.exact
        queries = residual.unsqueeze(0) if whole else torch.stack([residual, -residual])
        found = self._search.search(queries, num_results, self._rows_allowed)
        self.index_queries += queries.shape[0]
        self.rows_scored += queries.shape[0] * self._num_allowed
        self.bytes_read += found.bytes_read
        present = found.rows >= 0
        covered = num_results >= self._num_allowed or bool((~present).any())
        self._reach = float("-inf") if covered else float(found.scores[:, -1].max()) / length
        rows, first = _distinct(found.rows[present])
        projections = found.scores[present][first].double().abs() / length
        projections, order = projections.sort(descending=True)
        self._rows = rows[order]
        self._free = ~torch.isin(self._rows, torch.tensor(self._taken, dtype=torch.int64))
        if self._squared_norms_by_row is None:
            self._squared_norms = torch.full_like(projections, self._largest_norm**2)
        else:
            self._squared_norms = self._squared_norms_by_row[self._rows]
        norms = torch.sqrt(self._squared_norms)
        tiny = residual.shape[0] * _FLOAT32_TINY
        self._search_error = self._search.relative_error * norms + tiny
        look_error = inner_product_error(residual.shape[0], self._look_dtype)
        self._look_error = look_error * norms + tiny
        self._decision_error = inner_product_error(residual.shape[0], torch.float64) * self._largest_norm
        # Float64 rounding of the bounds themselves is far below 1e-12 of any term in them.
        self._upper = (projections + self._search_error) * (1 + 1e-12)
        self._lower_squared = torch.clamp(projections - self._search_error, min=0.0) ** 2
        self._anchor = torch.zeros(self._rows.shape[0], dtype=torch.int64)
        self._anchors = (residual / length).unsqueeze(0)
        self._block = torch.empty(self._rows.shape[0], residual.shape[0], dtype=self._look_dtype)
        self._loaded = torch.zeros(self._rows.shape[0], dtype=torch.bool)
        self._searched = True

    def _certified_pick(self, residual: Float[Tensor, " d"], length: float) -> Pick | None:
        # The best known row, if no unknown row can match it; None asks for a new search.
        if not bool(self._free.any()):
            return None
        # β and the length of r off each older residual. The difference of squares is off by less than 1e-11 ‖r‖² for
        # any dimension in use, which its square root would make visible: it is added.
        along = (self._anchors @ residual).abs()
        off = torch.sqrt(torch.clamp(length**2 - along**2, min=0.0) + 1e-11 * length**2)
        bounds = bound_from_older_residual(
            self._upper, self._lower_squared, self._squared_norms, along[self._anchor], off[self._anchor]
        )
        bounds = torch.where(self._free, bounds, -1.0)

        scores = torch.zeros_like(bounds)
        looked = torch.zeros_like(self._free)
        first = bounds.topk(min(_FIRST_LOOK, bounds.shape[0])).indices
        self._look(self._tiles_of(first, looked), residual, length, scores, looked)
        floor = self._proven(scores, looked, length)
        survivors = ((bounds >= floor) & ~looked & self._free).nonzero().squeeze(1)
        if survivors.numel():
            self._look(self._tiles_of(survivors, looked), residual, length, scores, looked)
            floor = self._proven(scores, looked, length)
        self._anchor_at(residual / length, scores / length, looked)

        contending = looked & self._free & (scores + self._look_error * length >= floor)
        pick = best_by_float64(self._rows[contending], self._sketches, residual)
        self.rows_scored += int(contending.sum())
        self.bytes_read += int(contending.sum()) * self._bytes_per_sketch
        search_error = self._search.relative_error * self._largest_norm
        outside = bound_outside_lists(
            self._reach + search_error, self._largest_norm * (1 + 1e-12), float(along[0]), float(off[0])
        )
        # Strictly above, by more than float64 rounding: at equality a row outside with a lower number may tie.
        return pick if abs(pick.covariance) > outside + self._decision_error * length else None

    def _proven(self, scores: Float[Tensor, " m"], looked: Bool[Tensor, " m"], length: float) -> float:
        # A value that the best float64 score certainly reaches.
        proven = torch.where(looked & self._free, scores - self._look_error * length, 0.0)
        return max(float(proven.max()) - 2 * self._decision_error * length, 0.0)

    def _tiles_of(self, places: Int[Tensor, " m"], looked: Bool[Tensor, " m"]) -> list[tuple[int, int]]:
        # Runs of tiles, contiguous in memory, that cover places not yet looked at.
        wanted = torch.zeros((self._rows.shape[0] + _TILE_ROWS - 1) // _TILE_ROWS, dtype=torch.bool)
        wanted[places // _TILE_ROWS] = True
        wanted &= ~looked[::_TILE_ROWS]
        runs: list[tuple[int, int]] = []
        for tile in wanted.nonzero().squeeze(1).tolist():
            left, right = tile * _TILE_ROWS, min((tile + 1) * _TILE_ROWS, self._rows.shape[0])
            if runs and runs[-1][1] == left:
                runs[-1] = (runs[-1][0], right)
            else:
                runs.append((left, right))
        return runs

    def _look(
        self,
        runs: list[tuple[int, int]],
        residual: Float[Tensor, " d"],
        length: float,
        scores: Float[Tensor, " m"],
        looked: Bool[Tensor, " m"],
    ) -> None:
        """Multiply runs of rows with the residual, in float32, reading rows not read before."""
        unit = (residual / length).to(self._look_dtype)
        for left, right in runs:
            missing = (~self._loaded[left:right]).nonzero().squeeze(1) + left
            if missing.numel():
                self._block[missing] = self._read(self._rows[missing])
                self.bytes_read += missing.numel() * self._bytes_per_sketch
                self._loaded[left:right] = True
            scores[left:right] = (self._block[left:right] @ unit).abs() * length
            looked[left:right] = True
            self.rows_scored += right - left

    def _read(self, rows: Int[Tensor, " m"]) -> Float[Tensor, "m d"]:
        if self._float32_sketches is not None and self._look_dtype == torch.float32:
            return self._float32_sketches(rows)
        return self._sketches(rows).to(self._look_dtype)

    def _anchor_at(
        self, unit: Float[Tensor, " d"], projections: Float[Tensor, " m"], looked: Bool[Tensor, " m"]
    ) -> None:
        """Let later bounds of the rows looked at start from this residual: the newer, the tighter."""
        self._anchor[looked] = self._anchors.shape[0]
        self._anchors = torch.cat([self._anchors, unit.unsqueeze(0)])
        upper = (projections + self._look_error) * (1 + 1e-12)
        lower = torch.clamp(projections - self._look_error, min=0.0)
        self._upper = torch.where(looked, upper, self._upper)
        self._lower_squared = torch.where(looked, lower**2, self._lower_squared)


def _distinct(rows: Int[Tensor, " m"]) -> tuple[Int[Tensor, " k"], Int[Tensor, " k"]]:
    # Every row once, and a place where it stands: the lists of r and −r overlap when they are long.
    distinct, inverse = torch.unique(rows, return_inverse=True)
    places = torch.empty_like(distinct)
    places[inverse] = torch.arange(rows.shape[0], device=rows.device)
    return distinct, places
