"""The pool as the rules of ``attribution`` see it: candidates to multiply with, and a search that asks the index."""

import torch
from torch import Tensor

from attribution.exact_sums import inner_product_error
from indexer.attributor.engines import IndexSearch
from indexer.attributor.pool import Pool
from indexer.attributor.span import RELATIVE_ERROR, Span
from indexer.attributor.stored_rows import StoredRows
from sketchstore.search_results import SearchResults


class PoolRows:
    """The candidates of one question: ``attribution``'s Candidates, positions being places among the candidates.

    Products with combinations of the query and of rows already read come from the kernel matrix where one is at hand;
    all else is a pass over the stored rows. Belongs to one question: not for several threads.

    Args:
        pool: The question's rows.
        stored: The stored rows of the view.
        kernel: K_TT of the comparable rows, float64, or None.
        query: φ_*, float64 [d].
        cross: Φ_T φ_* of the comparable rows, if known.

    Attributes:
        passes: Passes over the candidates so far.
        rows_read: Rows read one by one so far.
    """

    def __init__(
        self, pool: Pool, stored: StoredRows, kernel: Tensor | None, query: Tensor, cross: Tensor | None
    ) -> None:
        self._pool = pool
        self._stored = stored
        self._kernel = kernel
        self._positions = pool.positions(pool.candidates)
        self._everything = self._positions.numel() == pool.comparable.numel()
        self._norms_squared = pool.view.squared_norms[pool.candidates]
        self._spanned: dict[int, int] = {}
        self._span = None if kernel is None else Span(self.count, self.dim)
        if self._span is not None and cross is not None:
            self._span.add(query, self._of_comparable(cross))
        self.passes = 0
        self.rows_read = 0

    @property
    def count(self) -> int:
        """How many candidates there are."""
        return int(self._pool.candidates.numel())

    @property
    def dim(self) -> int:
        """The sketch dimension d."""
        return self._stored.dim

    @property
    def relative_error(self) -> float:
        """Error bound of :meth:`products`, relative to the product of the norms."""
        passing = inner_product_error(self.dim, torch.float64)
        return passing if self._span is None else max(passing, RELATIVE_ERROR)

    @property
    def has_kernel(self) -> bool:
        """Whether products come from a kernel matrix where they can."""
        return self._span is not None

    @property
    def largest_norm(self) -> float:
        """The largest ‖φ_n‖ of the candidates."""
        # The stored norms are rounded; a bound must not be.
        return float(self._norms_squared.max().sqrt()) * (1 + inner_product_error(self.dim, torch.float64))

    def squared_norms(self) -> Tensor:
        """Give ‖φ_n‖² of every candidate.

        Returns:
            float64 [c].
        """
        return self._norms_squared

    def products(self, vectors: Tensor) -> Tensor:
        """Multiply every candidate with each vector.

        Args:
            vectors: float64 [b, d].

        Returns:
            float64 [b, c].
        """
        return torch.stack([self.product(vector) for vector in vectors])

    def product(self, vector: Tensor) -> Tensor:
        """Multiply every candidate with a vector.

        Args:
            vector: float64 [d].

        Returns:
            float64 [c].
        """
        found = None if self._span is None else self._span.products(vector)
        if found is None:
            self.passes += 1
            found = self._stored.products(self._pool.candidates, vector)
        return found

    def sketches(self, positions: Tensor) -> Tensor:
        """Read candidates as stored.

        Args:
            positions: Places among the candidates, int64 [m].

        Returns:
            float64 [m, d].
        """
        sketches = self._stored.sketches(self._pool.candidates[positions])
        self.rows_read += positions.numel()
        if self._span is not None:
            assert self._kernel is not None
            for place, position in enumerate(positions.tolist()):
                if position not in self._spanned and not self._span.full:
                    self._spanned[position] = self._span.size
                    column = self._kernel[int(self._positions[position])]
                    self._span.add(sketches[place], self._of_comparable(column))
        return sketches

    def sketches_of_rows(self, rows: Tensor) -> Tensor:
        """Read candidates as stored, by row.

        Args:
            rows: Rows of candidates, int64 [m].

        Returns:
            float64 [m, d].
        """
        return self.sketches(torch.searchsorted(self._pool.candidates, rows))

    def _of_comparable(self, values: Tensor) -> Tensor:
        return values if self._everything else values[self._positions]


class SpanSearch:
    """A search that asks the index once, and answers from the kernel matrix from then on.

    Args:
        index: The index's exact search.
        rows: The candidates, with a kernel matrix.
        candidates: Their rows, ascending.

    Attributes:
        index_queries: Vectors the index was asked with.
        rows_scored: Rows the index, and passes over the stored rows, multiplied.
    """

    exact = True

    def __init__(self, index: IndexSearch, rows: PoolRows, candidates: Tensor) -> None:
        self._index = index
        self._rows = rows
        self._candidates = candidates
        self.index_queries = 0
        self.rows_scored = 0

    @property
    def relative_error(self) -> float:
        """Error bound of the next search's scores."""
        return self._index.relative_error if self.index_queries == 0 else self._rows.relative_error

    def search(self, residuals: Tensor, num_results: int, rows_allowed: Tensor | None = None) -> SearchResults:
        """Find the largest signed inner products.

        Args:
            residuals: A residual and its negative, float64 [2, d].
            num_results: Length of each list.
            rows_allowed: The candidates' rows, or None for all of the partition.

        Returns:
            The lists.
        """
        if self.index_queries == 0:
            self.index_queries += residuals.shape[0]
            self.rows_scored += residuals.shape[0] * self._candidates.numel()
            return self._index.search(residuals, num_results, rows_allowed)
        before = self._rows.passes
        products = self._rows.product(residuals[0])
        self.rows_scored += (self._rows.passes - before) * self._candidates.numel()
        signed = torch.stack([products, -products])
        scores, places = signed.topk(min(num_results, products.numel()), dim=1)
        return SearchResults(scores, self._candidates[places], 0)
