"""The stored rows themselves as coarse rows, for views without codes: looks cost four times the bytes, or twice."""

import torch

from attribution.coarse_rows import Places
from attribution.exact_sums import Array, inner_product_error, row_dots
from indexer.attributor.stored_rows import StoredRows


class StoredCoarse:
    """A pool's stored rows: ``attribution``'s CoarseRows, off by no more than float64 sums are.

    Args:
        stored: The stored rows of the view.
        rows: The pool's rows, ascending.
        norms: ‖φ_n‖ by place, as stored.
    """

    def __init__(self, stored: StoredRows, rows: Places, norms: Array) -> None:
        self._stored = stored
        self._rows = rows
        self._relative_error = inner_product_error(stored.dim, torch.float64)
        # The stored norms are rounded; a bound must not be.
        self._norms = norms * (1 + self._relative_error)

    @property
    def rows(self) -> Places:
        """The rows, int64 [c], ascending."""
        return self._rows

    @property
    def norms(self) -> Array:
        """Upper bounds of ‖φ_n‖, float64 [c]."""
        return self._norms

    @property
    def bytes_per_row(self) -> int:
        """Bytes read for one product: the stored row."""
        return self._stored.bytes_per_row

    @property
    def heads(self) -> None:
        """None: looks are exact, and only rows without codes are looked at so."""

    def products(self, vector: Array, places: Places | None) -> tuple[Array, Array]:
        """Multiply stored rows with a vector, in float64.

        Args:
            vector: float64 [d].
            places: Ascending places, or None for all rows.

        Returns:
            Products and bounds of their errors, float64 [m].
        """
        rows, norms = (self._rows, self._norms) if places is None else (self._rows[places], self._norms[places])
        values = self._stored.products(torch.from_numpy(rows), torch.from_numpy(vector)).numpy()
        return values, (self._relative_error * float(row_dots(vector, vector)) ** 0.5) * norms
