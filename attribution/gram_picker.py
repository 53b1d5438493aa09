"""The next pick of approximate InfoGain from a stored Gram matrix: one look at the pool for the first products.

φ_n · r = K_n* − Σ_j α_j K(n, a_j) with r = φ_* − Φ_Aᵀ α (Eq. 15), so once a look gave K_n* for the whole pool, the
columns K(·, a_j) of the picks are all that later steps need. The look may be coarse: a product that its error leaves in
doubt is computed in float64, and that puts it right for all later steps.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from attribution.acquired import AcquiredSet
from attribution.coarse_rows import CoarseRows
from attribution.exact_sums import Array, inner_product_error, row_dots, row_sum
from attribution.gain_system import KernelColumn
from attribution.literal import Pick
from attribution.search import Search

#: Contenders evaluated at a time, the most promising first.
_DECIDING_ROWS = 8


class GramPicker:
    """Finds each pick from columns of the pool's Gram matrix.

    Args:
        search: The vector database, exact; searched once, unless ``coarse`` is given.
        sketches: Reads stored sketches, float64.
        kernel_column: Gives K(n, a) of every allowed row n, ascending, for an allowed row a; float64.
        rows_allowed: Sorted rows that may be picked, or None for all.
        num_allowed: How many they are.
        largest_norm: max ‖φ‖ over them.
        squared_norms: ‖φ‖² by row, or None to bound every norm by the largest.
        bytes_per_sketch: What reading one stored sketch costs.
        coarse: The allowed rows as they are looked at instead of a search.

    Attributes:
        index_queries: Looks at the whole pool so far, by the search or coarse.
        rows_scored: Sketches multiplied so far.
        bytes_read: Bytes of sketches and kernel columns read so far.
    """

    def __init__(
        self,
        search: Search,
        sketches: Callable[[Int[Tensor, " m"]], Float[Tensor, "m d"]],
        kernel_column: KernelColumn,
        rows_allowed: Int[Tensor, " a"] | None,
        num_allowed: int,
        largest_norm: float,
        squared_norms: Float[Tensor, " n"] | None,
        bytes_per_sketch: int,
        coarse: CoarseRows | None = None,
    ) -> None:
        self._search = search
        self._sketches = sketches
        self._kernel_column = kernel_column
        self._rows_allowed = rows_allowed
        self._num_allowed = num_allowed
        self._largest_norm = largest_norm
        self._squared_norms_by_row = squared_norms
        self._bytes_per_sketch = bytes_per_sketch
        self._coarse = coarse
        self._columns: Array | None = None
        self.index_queries = 0
        self.rows_scored = 0
        self.bytes_read = 0

    def best(self, acquired: AcquiredSet) -> Pick | None:
        """Find the row with the largest |φ · r| among those not yet picked.

        Args:
            acquired: The acquired set, all of whose members this picker chose.

        Returns:
            The pick, now counted as taken; None when nothing is left whose product is not exactly 0.
        """
        residual = np.ascontiguousarray(acquired.residuals[0].numpy())
        if self._columns is None:
            self._columns = self._start(acquired, residual)
        weights = acquired.query_weights[0].numpy()
        explained = row_sum(self._columns[: acquired.size], weights)
        # Entries of K and their sums are rounded in float64; the searched products in whatever the search uses.
        scale = float(acquired.prior_variances[0]) ** 0.5 + float(np.abs(weights).sum()) * self._largest_norm
        rounding = (2 * self._decided * scale) * self._norms
        sizes = np.abs(self._cross - explained)
        errors = self._cross_errors + rounding
        # A taken row's size is −∞: it neither leads nor contends.
        lower, upper = sizes + self._taken - errors, sizes + self._taken + errors
        contending = np.flatnonzero(upper >= max(float(lower.max()), 0.0))
        contending = contending[np.argsort(-upper[contending], kind="stable")]
        best: Pick | None = None
        best_place = -1
        for start in range(0, contending.shape[0], _DECIDING_ROWS):
            places = contending[start : start + _DECIDING_ROWS]
            if best is not None:
                places = places[upper[places] >= abs(best.covariance)]
                if not places.size:
                    break
            values = self._sketches(torch.from_numpy(self._rows[places]))
            decided = row_dots(np.ascontiguousarray(values.numpy()), residual)
            self.rows_scored += places.shape[0]
            self.bytes_read += places.shape[0] * self._bytes_per_sketch
            # A product known in float64 puts K_n* right for all later steps.
            self._cross[places] = decided + explained[places]
            self._cross_errors[places] = rounding[places]
            for i, (place, product) in enumerate(zip(places.tolist(), decided.tolist(), strict=True)):
                if best is None or (abs(product), -place) > (abs(best.covariance), -best_place):
                    best, best_place = Pick(int(self._rows[place]), product, values[i]), place
        if best is None or best.covariance == 0:
            return None
        self._taken[best_place] = -np.inf
        if acquired.size < self._columns.shape[0]:
            self._columns[acquired.size] = self._kernel_column(best.row).numpy()
            self.bytes_read += self._columns[acquired.size].nbytes
        return best

    def _start(self, acquired: AcquiredSet, residual: Array) -> Array:
        # K_n* of the whole pool.
        self._decided = inner_product_error(residual.shape[0], torch.float64)
        if self._coarse is None:
            self._search_all(acquired)
        else:
            self._look_at_all(self._coarse, residual)
        self.index_queries += 1
        self.rows_scored += self._num_allowed
        self._taken: Array = np.zeros_like(self._cross)
        return np.zeros((acquired.capacity, self._num_allowed))

    def _look_at_all(self, coarse: CoarseRows, residual: Array) -> None:
        # Of a unit vector: squares of extreme ones would leave float64.
        largest = float(np.abs(residual).max()) or 1.0
        scaled = residual / largest
        scale = math.sqrt(float(row_dots(scaled, scaled))) or 1.0
        values, errors = coarse.products(scaled / scale, None)
        length = scale * largest
        self.bytes_read += self._num_allowed * coarse.bytes_per_row
        self._rows, self._norms = coarse.rows, coarse.norms
        self._cross: Array = values * length
        # Dividing by the length and multiplying with it rounds every component, as sums of products do.
        self._cross_errors: Array = (errors + 4 * self._decided * coarse.norms) * (length * (1 + 1e-12))

    def _search_all(self, acquired: AcquiredSet) -> None:
        found = self._search.search(acquired.residuals[:1], self._num_allowed, self._rows_allowed)
        self.bytes_read += found.bytes_read
        rows, order = found.rows[0].sort()
        self._rows = rows.numpy()
        self._cross = found.scores[0][order].double().numpy()
        if self._squared_norms_by_row is None:
            self._norms = np.full_like(self._cross, self._largest_norm)
        else:
            self._norms = torch.sqrt(self._squared_norms_by_row[rows]).numpy()
        dim = acquired.residuals.shape[1]
        length = float(acquired.prior_variances[0]) ** 0.5
        vanishing = dim * float(torch.finfo(torch.float32).tiny)  # products of a search that underflow float32
        self._cross_errors = (self._search.relative_error * self._norms + vanishing) * length
