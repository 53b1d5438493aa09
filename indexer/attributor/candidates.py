"""The pool as the rules of ``attribution`` see it: rows to multiply and to read, and columns of their kernel matrix."""

from collections.abc import Callable

import torch
from torch import Tensor

from attribution.exact_sums import inner_product_error
from indexer.attributor.pool import Pool
from indexer.attributor.stored_rows import StoredRows


class PoolRows:
    """The candidates of one question: ``attribution``'s Candidates, positions being places among the candidates.

    Belongs to one question: not for several threads.

    Args:
        pool: The question's rows.
        stored: The stored rows of the view.
        kernel: K_TT of the comparable rows, float64, where it is at hand.
        query: φ_*, float64 [d].
        cross: Gives Φ_T φ_* of the comparable rows, computed at most once for the question.

    Attributes:
        passes: Passes over the candidates so far.
        rows_read: Rows read one by one so far.
        kernel_bytes: Bytes of kernel columns read so far.
    """

    def __init__(
        self, pool: Pool, stored: StoredRows, kernel: Tensor | None, query: Tensor, cross: Callable[[], Tensor]
    ) -> None:
        self._pool = pool
        self._stored = stored
        self._kernel = kernel
        self._query = query
        self._cross = cross
        self._positions = pool.positions(pool.candidates)
        self._everything = self._positions.numel() == pool.comparable.numel()
        self._squared_norms = pool.view.squared_norms[pool.candidates]
        self.passes = 0
        self.rows_read = 0
        self.kernel_bytes = 0

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
        return inner_product_error(self.dim, torch.float64)

    @property
    def largest_norm(self) -> float:
        """The largest ‖φ_n‖ of the candidates."""
        # The stored norms are rounded; a bound must not be.
        return float(self._squared_norms.max().sqrt()) * (1 + inner_product_error(self.dim, torch.float64))

    def squared_norms(self) -> Tensor:
        """Give ‖φ_n‖² of every candidate.

        Returns:
            float64 [c].
        """
        return self._squared_norms

    def products(self, vectors: Tensor) -> Tensor:
        """Multiply every candidate with each vector.

        Args:
            vectors: float64 [b, d].

        Returns:
            float64 [b, c].
        """
        # The query's products are needed elsewhere too, and made once.
        known = [place for place, vector in enumerate(vectors) if torch.equal(vector, self._query)]
        if not known:
            self.passes += vectors.shape[0]
            return self._stored.products(self._pool.candidates, vectors)
        unknown = [place for place in range(vectors.shape[0]) if place not in known]
        products = self._of_comparable(self._cross()).repeat(vectors.shape[0], 1)
        if unknown:
            self.passes += len(unknown)
            products[unknown] = self._stored.products(self._pool.candidates, vectors[unknown])
        return products

    def sketches(self, positions: Tensor) -> Tensor:
        """Read candidates as stored.

        Args:
            positions: Places among the candidates, int64 [m].

        Returns:
            float64 [m, d].
        """
        return self.sketches_of_rows(self._pool.candidates[positions])

    def sketches_of_rows(self, rows: Tensor) -> Tensor:
        """Read candidates as stored, by row.

        Args:
            rows: Rows of candidates, int64 [m].

        Returns:
            float64 [m, d].
        """
        self.rows_read += rows.numel()
        return self._stored.sketches(rows)

    def kernel_column(self) -> Callable[[int], Tensor] | None:
        """Give what reads K(n, a) of every candidate n for the candidate at a place, if the kernel matrix is at hand.

        Returns:
            From place among the candidates to float64 [c], or None.
        """
        kernel = self._kernel
        if kernel is None:
            return None

        def column(place: int) -> Tensor:
            self.kernel_bytes += kernel.shape[0] * kernel.itemsize
            return self._of_comparable(kernel[int(self._positions[place])])

        return column

    def kernel_column_of_row(self) -> Callable[[int], Tensor] | None:
        """Give what reads K(n, a) of every candidate n for a candidate's row, if the kernel matrix is at hand.

        Returns:
            From row to float64 [c], or None.
        """
        kernel = self._kernel
        if kernel is None:
            return None
        comparable = self._pool.comparable.numpy()
        return lambda row: self._of_comparable(kernel[int(comparable.searchsorted(row))])

    def _of_comparable(self, values: Tensor) -> Tensor:
        return values if self._everything else values[self._positions]
