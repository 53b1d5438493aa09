"""The 8-bit codes of a pool as what the exact rules nominate by: all of them multiplied, once a pick."""

import numpy as np
import torch

from attribution.coarse_rows import Places
from attribution.exact_sums import Array, inner_product_error
from attribution.rounded_rows import RoundedProducts
from indexer.attributor.coded_rows import CodeScans


class RoundedPool:
    """The codes of a pool's rows as rounded rows: ``attribution``'s RoundedRows.

    Belongs to one question: not for several threads.

    Args:
        scans: The codes of all rows of the view.
        rows: The pool's rows, ascending.
        norms: ‖φ_n‖ by place, as stored.

    Attributes:
        norms: Upper bounds of ‖φ_n‖, float64 [c].
        distances: Upper bounds of ‖φ_n − φ̂_n‖, float64 [c].
        rounded_norms: ‖φ̂_n‖, float64 [c].
        scans: Products of all rows so far.
    """

    def __init__(self, scans: CodeScans, rows: Places, norms: Array) -> None:
        self._codes = scans
        self._rows = rows
        self._scales = scans.codes.scales[rows]
        # The stored norms are rounded; a bound must not be.
        self.norms: Array = norms * (1 + inner_product_error(scans.dim, torch.float64))
        self.distances: Array = scans.codes.errors[rows]
        self.rounded_norms: Array = scans.norms[rows]
        self.scans = 0

    @property
    def bytes_read(self) -> int:
        """Bytes of codes multiplied so far."""
        return self.scans * int(self._rows.shape[0]) * self._codes.dim

    def rounded_products(self, vector: Array) -> RoundedProducts:
        """Multiply the codes with a vector rounded to integers.

        Args:
            vector: float64 [d].

        Returns:
            The products, and the rounded vector.
        """
        self.scans += 1
        rounded = self._codes.rounded(vector)
        sums = self._codes.products(self._rows, rounded.integers)
        values: Array = sums * (self._scales * rounded.step)
        return RoundedProducts(values, rounded.integers.astype(np.float64) * rounded.step)
