"""What a selection asks of a vector database: the largest inner products with a residual.

``sketchstore`` implements the same shape over index directories; neither package imports the other.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attribution.candidates import DenseCandidates


class SearchResults(Protocol):
    """Signed lists, one per residual.

    Attributes:
        scores: Inner products, shape [b, m], descending; padded with −infinity.
        rows: Rows, shape [b, m], int64; padded with −1.
        bytes_read: What the search read of this machine's memory.
    """

    @property
    def scores(self) -> Float[Tensor, "b m"]:
        """Inner products, descending."""

    @property
    def rows(self) -> Int[Tensor, "b m"]:
        """Rows, −1 where there are fewer than m."""

    @property
    def bytes_read(self) -> int:
        """Bytes read of this machine's memory."""


class Search(Protocol):
    """The one primitive asked of a vector database.

    Attributes:
        exact: Whether no row outside a list has a larger inner product than those in it.
        relative_error: Scores are within ``relative_error · ‖φ‖ · ‖residual‖`` of the true inner product.
        local: Whether a search reads this machine's memory. A remote index or a GPU costs no bytes here, but a trip.
    """

    @property
    def exact(self) -> bool:
        """Whether lists are complete."""

    @property
    def relative_error(self) -> float:
        """Error bound of the scores, relative to the product of the norms."""

    @property
    def local(self) -> bool:
        """Whether a search reads this machine's memory."""

    def search(
        self, residuals: Float[Tensor, "b d"], num_results: int, rows_allowed: Int[Tensor, " a"] | None = None
    ) -> SearchResults:
        """Find the largest signed inner products among the allowed rows (all, if None)."""


@dataclass(frozen=True)
class DenseResults:
    """Signed lists of :class:`DenseSearch`."""

    scores: Float[Tensor, "b m"]
    rows: Int[Tensor, "b m"]
    bytes_read: int


class DenseSearch:
    """Exact search over sketches in memory, by one product: for libraries without an index, and for tests.

    Args:
        sketches: Sketches of rows 0 … n−1, shape [n, d].
        dtype: Type of the products.
    """

    exact = True
    local = True

    def __init__(self, sketches: Float[Tensor, "n d"], dtype: torch.dtype = torch.float32) -> None:
        self._bytes = sketches.numel() * dtype.itemsize
        self._candidates = DenseCandidates(sketches, dtype)
        self.relative_error = self._candidates.relative_error

    def search(
        self, residuals: Float[Tensor, "b d"], num_results: int, rows_allowed: Int[Tensor, " a"] | None = None
    ) -> DenseResults:
        """Find the largest signed inner products.

        Args:
            residuals: Residuals, shape [b, d].
            num_results: m, the length of each list.
            rows_allowed: Sorted rows to search, or None for all.

        Returns:
            Scores and rows, shape [b, m], padded when fewer than m rows are allowed.
        """
        products = self._candidates.products(residuals.double())
        if rows_allowed is not None:
            products = products[:, rows_allowed]
        found = min(num_results, products.shape[1])
        scores, places = products.topk(found, dim=1)
        rows = places if rows_allowed is None else rows_allowed[places]
        missing = num_results - found
        return DenseResults(
            scores=torch.nn.functional.pad(scores, (0, missing), value=float("-inf")),
            rows=torch.nn.functional.pad(rows, (0, missing), value=-1),
            bytes_read=self._bytes,
        )
