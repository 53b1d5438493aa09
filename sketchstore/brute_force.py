"""Search by one product over the memory-mapped rows: the specification that every other engine is compared with."""

import torch
from torch import Tensor

from sketchstore.arrays import widened
from sketchstore.search_results import (
    SearchResults,
    check_search,
    contiguous,
    intersect,
    is_mirrored,
    padded,
    relative_error,
    to_float32,
    top,
)
from sketchstore.view import View

BLOCK_BYTES = 4 << 20
# A matrix-vector product reads memory at full speed; a product with so few columns does not (2 columns: 3.5 times).
FEW_COLUMNS = 3


class BruteForceSearch:
    """Exact search over some rows of a view.

    Args:
        view: The view.
        rows: The rows to search, int64 ascending; None for all.
    """

    engine = "brute_force"
    factory = None
    exact = True
    local = True
    recall = 1.0

    def __init__(self, view: View, rows: Tensor | None = None) -> None:
        self.view = view
        self.rows = torch.arange(view.num_rows) if rows is None else rows
        self.relative_error = relative_error(view.sketch_dim)

    def search(self, residuals: Tensor, num_results: int, rows_allowed: Tensor | None = None) -> SearchResults:
        """Rows with the largest signed inner product with each residual.

        Args:
            residuals: [b, d] in true units. Stack r and −r to search by absolute value and merge.
            num_results: How many rows per residual.
            rows_allowed: Limit to these rows, int64 ascending.

        Returns:
            Scores in true units, each within ``relative_error · ‖φ‖ · ‖r‖``, and rows; ties lowest row first.
        """
        check_search(residuals, num_results, self.view.sketch_dim)
        rows = intersect(self.rows, rows_allowed)
        mirrored = is_mirrored(residuals)
        distinct = residuals[: residuals.shape[0] // 2] if mirrored else residuals
        queries, factors = to_float32(distinct)
        products = self._products(queries, rows).to(torch.float64) * (factors * self.view.scale)
        if mirrored:
            products = torch.cat([products, -products])
        lists = [top(scores, rows, num_results) for scores in products]
        # Every row is read once: it meets all residuals while it is in the cache.
        read = rows.numel() * self.view.sketch_dim * self.view.storage_dtype.itemsize
        return padded(lists, num_results, rows.numel() * residuals.shape[0], read)

    def _products(self, queries: Tensor, rows: Tensor) -> Tensor:
        # [b, d] float32 queries times stored values, a block of rows at a time, so that memory stays flat.
        products = torch.empty((queries.shape[0], rows.numel()), dtype=torch.float32)
        block = max(1, BLOCK_BYTES // (4 * self.view.sketch_dim))
        whole = contiguous(rows)
        for start in range(0, rows.numel(), block):
            stop = min(start + block, rows.numel())
            piece = rows[start:stop] if whole is None else slice(whole.start + start, whole.start + stop)
            stored = widened(self.view.stored(piece), torch.float32)
            if queries.shape[0] <= FEW_COLUMNS:
                for i, query in enumerate(queries):
                    torch.mv(stored, query, out=products[i, start:stop])
            else:
                torch.mm(queries, stored.T, out=products[:, start:stop])
        return products
