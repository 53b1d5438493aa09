"""The rows a selection may choose from: fast products that nominate, stored sketches that decide."""

from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attribution.checks import check_sketches
from attribution.errors import ShapeError
from attribution.exact_sums import inner_product_error


class Candidates(Protocol):
    """Rows that may be selected.

    Attributes:
        count: c, how many.
        dim: d, the sketch dimension.
        relative_error: Products are within ``relative_error · ‖φ‖ · ‖vector‖`` of the true inner product.
    """

    @property
    def count(self) -> int:
        """How many candidates there are."""

    @property
    def dim(self) -> int:
        """The sketch dimension d."""

    @property
    def relative_error(self) -> float:
        """Error bound of :meth:`products`, relative to the product of the norms."""

    def squared_norms(self) -> Float[Tensor, " c"]:
        """‖φ_n‖² of every candidate, float64."""

    def products(self, vectors: Float[Tensor, "b d"]) -> Float[Tensor, "b c"]:
        """φ_n · vector for every vector (float64) and candidate, fast, within ``relative_error``."""

    def sketches(self, positions: Int[Tensor, " m"]) -> Float[Tensor, "m d"]:
        """The exact stored sketches at these positions, float64."""


class DenseCandidates:
    """Candidates held in memory.

    Args:
        sketches: Their sketches, shape [c, d].
        nominate_dtype: Type of the fast products. float32 halves the memory and time of float64; picks and nats are
            the same, because float64 decides.

    Raises:
        ShapeError: If ``sketches`` is not a matrix.
    """

    def __init__(self, sketches: Float[Tensor, "c d"], nominate_dtype: torch.dtype = torch.float32) -> None:
        if sketches.ndim != 2:
            raise ShapeError(f"sketches must have shape [c, d], got {list(sketches.shape)}.")
        check_sketches(sketches, sketches.shape[1], "sketches")
        self._stored = sketches
        self._squared_norms = (sketches.double() ** 2).sum(dim=1)
        positive = self._squared_norms[self._squared_norms > 0]
        # Float32 products of sketches this large or small leave its range (1e±38), where no relative bound holds.
        out_of_range = positive.numel() > 0 and not bool(((positive > 1e-30) & (positive < 1e30)).all())
        self._nominating = sketches.to(torch.float64 if out_of_range else nominate_dtype)
        self._relative_error = inner_product_error(self.dim, self._nominating.dtype)

    @property
    def count(self) -> int:
        """How many candidates there are."""
        return int(self._stored.shape[0])

    @property
    def dim(self) -> int:
        """The sketch dimension d."""
        return int(self._stored.shape[1])

    @property
    def relative_error(self) -> float:
        """Error bound of :meth:`products`, relative to the product of the norms."""
        return self._relative_error

    def squared_norms(self) -> Float[Tensor, " c"]:
        """Give ‖φ_n‖² of every candidate.

        Returns:
            Squared norms, shape [c], float64.
        """
        return self._squared_norms

    def products(self, vectors: Float[Tensor, "b d"]) -> Float[Tensor, "b c"]:
        """Multiply every candidate with each vector, fast.

        Args:
            vectors: Vectors, shape [b, d], float64.

        Returns:
            Inner products, shape [b, c], float64, within ``relative_error · ‖φ‖ · ‖vector‖``.
        """
        # Unit vectors: a residual of norm 1e-30 must not vanish in float32.
        norms: Tensor = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
        units = (vectors / torch.where(norms > 0, norms, 1.0)).to(self._nominating.dtype)
        if units.shape[0] == 1:
            return (self._nominating @ units[0]).double().unsqueeze(0) * norms
        return (units @ self._nominating.T).double() * norms

    def sketches(self, positions: Int[Tensor, " m"]) -> Float[Tensor, "m d"]:
        """Read stored sketches.

        Args:
            positions: Which candidates, shape [m].

        Returns:
            Sketches, shape [m, d], float64.
        """
        return self._stored[positions].double()
