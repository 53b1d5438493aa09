"""The table of covariances between candidates and queries: float32, one rank-one change per pick, bounded in memory.

It is the largest thing a coreset selection holds: 4 bytes per candidate and query, 200 MB for 50,000 candidates and
1,000 queries. It only nominates; ``ManyPursuit`` bounds what its rounding can do and decides in float64.
"""

from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from attribution.candidates import Candidates
from attribution.errors import TableSizeError

#: Largest table that is made unless a caller says otherwise.
MAX_TABLE_BYTES = 4 << 30
#: Values of a block that is widened to float64 at a time: 8 MiB.
_BLOCK_VALUES = 1 << 20
#: Queries multiplied with all candidates at a time.
_FILL_QUERIES = 16


class CovarianceTable(Protocol):
    """b_nq of every candidate n and query q, float32 [c, q], and the one pass over it that a pick costs.

    With u = 2⁻²⁴, a value is stored within u |value| when it is filled, and within u (|value| + 3 |change|) when it
    changes; ``squares`` are within 2u of those of the stored values, relatively.
    """

    @property
    def relative_error(self) -> float:
        """Products of rows with a vector are within ``relative_error · ‖row‖ · ‖vector‖``."""

    def fill(self, vectors: Float[Tensor, "q m"]) -> None:
        """Set b_nq to the product of row n with vector q (float64)."""

    def squares(self, weights: Float[Tensor, " q"]) -> Float[Tensor, " c"]:
        """Σ_q weights_q b_nq² of every candidate, summed in float64."""

    def advance(
        self, direction: Float[Tensor, " m"], coefficients: Float[Tensor, " q"], weights: Float[Tensor, " q"]
    ) -> tuple[Float[Tensor, " c"], Float[Tensor, " c"]]:
        """b_nq ← b_nq − (x_n · direction) coefficients_q; give x_n · direction, and ``squares`` of the new table."""


def table_bytes(num_candidates: int, num_queries: int) -> int:
    """Say what a table occupies in memory.

    Args:
        num_candidates: c.
        num_queries: q.

    Returns:
        4 c q bytes.
    """
    return 4 * num_candidates * num_queries


def check_table_size(num_candidates: int, num_queries: int, max_bytes: int) -> None:
    """Refuse a table larger than allowed, before anything is computed.

    Args:
        num_candidates: c.
        num_queries: q.
        max_bytes: The limit.

    Raises:
        TableSizeError: If the table would exceed it.
    """
    needed = table_bytes(num_candidates, num_queries)
    if needed > max_bytes:
        raise TableSizeError(
            f"{num_queries} queries and {num_candidates} candidates need a table of 4 × {num_queries} × "
            f"{num_candidates} = {needed} bytes; the limit is {max_bytes}. Give at most "
            f"{max_bytes // (4 * num_candidates)} queries, fewer candidates, or a larger limit."
        )


class DenseTable:
    """A table by torch's products, block by block: the plain implementation.

    Args:
        candidates: The rows.
        num_queries: q.
    """

    def __init__(self, candidates: Candidates, num_queries: int) -> None:
        self._candidates = candidates
        self.values = torch.empty(candidates.count, num_queries, dtype=torch.float32)
        self._block = max(1, _BLOCK_VALUES // max(1, num_queries))

    @property
    def relative_error(self) -> float:
        """Error bound of the candidates' products."""
        return self._candidates.relative_error

    def fill(self, vectors: Float[Tensor, "q m"]) -> None:
        """Set b_nq to the product of row n with vector q.

        Args:
            vectors: The vectors, shape [q, m], float64.
        """
        for left in range(0, vectors.shape[0], _FILL_QUERIES):
            chosen = slice(left, left + _FILL_QUERIES)
            self.values[:, chosen] = self._candidates.products(vectors[chosen]).T.float()

    def squares(self, weights: Float[Tensor, " q"]) -> Float[Tensor, " c"]:
        """Sum the weighted squares of every row.

        Args:
            weights: Shape [q], float64.

        Returns:
            Σ_q weights_q b_nq², shape [c], float64.
        """
        return torch.cat([block.double().square() @ weights for block in torch.split(self.values, self._block)])

    def advance(
        self, direction: Float[Tensor, " m"], coefficients: Float[Tensor, " q"], weights: Float[Tensor, " q"]
    ) -> tuple[Float[Tensor, " c"], Float[Tensor, " c"]]:
        """Take one pick into account.

        Args:
            direction: Shape [m], float64: its product with a row is the row's column value.
            coefficients: Shape [q], float64.
            weights: Shape [q], float64.

        Returns:
            Column values and the new ``squares``, both shape [c], float64.
        """
        columns = self._candidates.products(direction.unsqueeze(0))[0]
        squares = torch.empty_like(columns)
        for left in range(0, columns.shape[0], self._block):
            rows = slice(left, left + self._block)
            self.values[rows] = (self.values[rows].double() - columns[rows, None] * coefficients).float()
            squares[rows] = self.values[rows].double().square() @ weights
        return columns, squares
