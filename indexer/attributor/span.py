"""Products with every candidate without a pass over the rows, from a cached kernel matrix.

Every vector that a greedy rule multiplies with the candidates is a combination of the query and of rows it has read:
r = φ_* − Σ α_i φ_i. Its products with all candidates are the same combination of columns of K_TT: 12 kB each where a
pass over 1,500 rows of 4,096 float16 values is 12 MB. The combination is found by least squares and then checked:
what it leaves of the vector, and what rounding can make of it, bound the error of every product.
"""

import torch
from torch import Tensor

from attribution.exact_sums import inner_product_error

#: Products from a span are promised to be this good, relative to the product of the norms; else a pass is made.
RELATIVE_ERROR = 1e-9
#: Beyond this many vectors, finding the combination costs more than a pass over the rows.
_MOST_VECTORS = 768
_JITTER = 1e-14


class Span:
    """Vectors whose products with all candidates are known.

    Args:
        num_candidates: c.
        dim: d.
    """

    def __init__(self, num_candidates: int, dim: int) -> None:
        self._dim = dim
        self._vectors = torch.empty(16, dim, dtype=torch.float64)
        self._columns = torch.empty(16, num_candidates, dtype=torch.float64)
        self._norms = torch.empty(16, dtype=torch.float64)
        self._gram = torch.empty(16, 16, dtype=torch.float64)
        self.size = 0
        self._entry_error = inner_product_error(dim, torch.float64)

    @property
    def full(self) -> bool:
        """Whether no more vectors are worth adding."""
        return self.size >= _MOST_VECTORS

    def add(self, vector: Tensor, column: Tensor) -> None:
        """Add a vector whose products are known.

        Args:
            vector: The vector, float64 [d].
            column: Its product with every candidate, float64 [c], each within γ_d of the true one.
        """
        t = self.size
        if t == self._vectors.shape[0]:
            self._grow(2 * t)
        self._vectors[t] = vector
        self._columns[t] = column
        self._norms[t] = torch.linalg.vector_norm(vector)
        along = self._vectors[: t + 1] @ vector
        self._gram[t, : t + 1] = along
        self._gram[: t + 1, t] = along
        self.size = t + 1

    def products(self, vector: Tensor) -> Tensor | None:
        """Multiply a vector with every candidate.

        Args:
            vector: A combination of the vectors added, float64 [d].

        Returns:
            Products, float64 [c], within ``RELATIVE_ERROR · ‖φ_n‖ · ‖vector‖``; None if that cannot be promised.
        """
        t = self.size
        length = float(torch.linalg.vector_norm(vector))
        if t == 0 or length == 0:
            return None
        vectors, columns, norms = self._vectors[:t], self._columns[:t], self._norms[:t]
        gram = self._gram[:t, :t]
        scale = torch.where(norms > 0, norms, 1.0)
        factor, failed = torch.linalg.cholesky_ex(
            gram / (scale[:, None] * scale) + _JITTER * t * torch.eye(t, dtype=torch.float64)
        )
        if bool(failed):
            return None
        weights = torch.zeros(t, dtype=torch.float64)
        rest = vector
        for _ in range(3):  # the second and third rounds remove what rounding and the jitter left
            along = (vectors @ rest / scale).unsqueeze(1)
            weights = weights + torch.cholesky_solve(along, factor).squeeze(1) / scale
            rest = vector - weights @ vectors
            if self._error(weights, norms, rest, length) <= RELATIVE_ERROR * length:
                return weights @ columns
        return None

    def _error(self, weights: Tensor, norms: Tensor, rest: Tensor, length: float) -> float:
        # ‖φ_n‖ times this bounds the error of a product: the rest of the vector, the columns' errors, and the sums'.
        terms = float((weights.abs() * norms).sum())
        t = self.size
        sums = inner_product_error(t + 2, torch.float64)
        return float(torch.linalg.vector_norm(rest)) + terms * (self._entry_error + 2 * sums) + sums * length

    def _grow(self, capacity: int) -> None:
        t = self.size
        for name in ("_vectors", "_columns"):
            old: Tensor = getattr(self, name)
            larger = torch.empty(capacity, old.shape[1], dtype=torch.float64)
            larger[:t] = old
            setattr(self, name, larger)
        norms, gram = self._norms, self._gram
        self._norms = torch.empty(capacity, dtype=torch.float64)
        self._norms[:t] = norms
        self._gram = torch.empty(capacity, capacity, dtype=torch.float64)
        self._gram[:t, :t] = gram
