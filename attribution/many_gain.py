"""InfoGain for many queries (Eqs. 94, 95): M = K + σ²I and b = K_*, the queries never rewritten.

As in ``acquired``, the rows [Φ_A, σI] are kept as an orthonormal basis, so that what an example still brings is a sum
of squares. There the residual of every query is rewritten at every pick: 2 q d values. Here a *candidate* loses its
parts along the basis, 2 t d values, and meets the queries as they are: c(x_q, n | A) = φ_q · (φ_n − Wᵀ W φ_n).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int
from torch import Tensor

from attribution.candidates import Candidates
from attribution.checks import check_noise_variance, check_query
from attribution.exact_sums import Array, inner_product_error, row_dots, squared_norms
from attribution.many_pursuit import Conditioned, Evaluated
from attribution.row_products import RowProducts, row_products

#: Share of its prior variance below which a query's variance is summed from its own residual: above it,
#: v₀ − Σ z² loses at most three digits.
_CANCELLING = 1e-3


class QueryVariances:
    """v(x_q | A) of many queries: v₀ − Σ z² while that keeps its digits, sums of squares where it would not.

    Args:
        queries: φ_q, shape [q, d], float64.
        capacity: How many examples may be added.

    Attributes:
        prior: v(x_q | ∅), shape [q].
        reductions: v(x_q | ∅) − v(x_q | A), shape [q], as sums of squares.
        variances: v(x_q | A), shape [q].
    """

    def __init__(self, queries: Float[Tensor, "q d"], capacity: int) -> None:
        self._queries = queries.numpy()
        self.prior = squared_norms(queries)
        self.reductions = torch.zeros_like(self.prior)
        self.variances = self.prior.clone()
        self._coefficients = np.zeros((capacity, queries.shape[0]))
        self._small = np.zeros(0, dtype=np.int64)  # queries with a residual of their own
        self._heads = np.zeros((0, queries.shape[1]))
        self._tails = np.zeros((0, capacity))

    def add(self, coefficients: Array, basis: Array, tails: Array, size: int) -> None:
        """Take one more basis vector into account.

        Args:
            coefficients: z of each query, shape [q].
            basis: First d columns of the basis, shape [capacity, d].
            tails: The other columns, shape [capacity, capacity].
            size: t, how many basis vectors there are now.
        """
        self._coefficients[size - 1] = coefficients
        self.reductions = self.reductions + torch.from_numpy(coefficients**2)
        if self._small.size:
            own = coefficients[self._small, None]
            self._heads -= own * basis[size - 1]
            self._tails -= own * tails[size - 1]
        variances = (self.prior - self.reductions).numpy()
        cancelling = variances < _CANCELLING * self.prior.numpy()
        cancelling[self._small] = False
        if cancelling.any():
            self._promote(np.flatnonzero(cancelling), basis, tails, size)
        if self._small.size:
            variances[self._small] = row_dots(self._heads, self._heads) + row_dots(self._tails, self._tails)
        self.variances = torch.from_numpy(variances)

    def _promote(self, queries: npt.NDArray[np.int64], basis: Array, tails: Array, size: int) -> None:
        # One basis vector after the other, in order: the bits do not depend on who is promoted together.
        heads, ends = self._queries[queries].copy(), np.zeros((queries.size, tails.shape[1]))
        for place in range(size):
            along = self._coefficients[place, queries, None]
            heads -= along * basis[place]
            ends -= along * tails[place]
        self._small = np.concatenate([self._small, queries])
        self._heads = np.concatenate([self._heads, heads])
        self._tails = np.concatenate([self._tails, ends])


@dataclass(frozen=True)
class _Remainder:
    """What a candidate is beyond the basis: its sketch and its tail without their parts along it."""

    head: Array
    tail: Array
    squared: float  # σ² + v(n | A)
    covariances: Array


class ManyGainSystem:
    """The candidates' covariances with many queries given the acquired set.

    Its memory beside the candidates is 8 (q d + 2 t d + 2 t² + t q) bytes for a budget of t, and 4 q d for queries that
    float32 holds.

    Args:
        queries: Sketches of the queries, shape [q, d].
        candidates: The rows that may be picked.
        noise_variance: σ² > 0, in squared units of the measurement.
        budget: How many will be picked.
        weigh: Maps the variances v(x_q | A) to the weights w_q.
        products: Makes the products that decide.

    Attributes:
        queries: The queries' variances given the acquired set.
    """

    def __init__(
        self,
        queries: Float[Tensor, "q d"],
        candidates: Candidates,
        noise_variance: float,
        budget: int,
        weigh: Callable[[Float[Tensor, " q"]], Float[Tensor, " q"]],
        products: RowProducts = row_products,
    ) -> None:
        check_noise_variance(noise_variance)
        for query in queries:
            check_query(query)
        self.vectors = queries.double().contiguous()
        self.squared_norms = candidates.squared_norms()
        self.diagonal = self.squared_norms + noise_variance
        self.decided_error = 4 * inner_product_error(candidates.dim + budget, torch.float64)
        self.diagonal_error = self.decided_error * self.diagonal
        self.floor = torch.full_like(self.diagonal, noise_variance)
        self.queries = QueryVariances(self.vectors, budget)
        # Stored queries are float32: as such they are half as much to read.
        single = self.vectors.float()
        self._met = (single if torch.equal(single.double(), self.vectors) else self.vectors).numpy()
        self._candidates = candidates
        self._noise_variance = noise_variance
        self._weigh = weigh
        self._products = products
        # Each matrix beside its transpose: both products of a candidate are then sums along rows.
        self._basis, self._transposed = np.zeros((budget, candidates.dim)), np.zeros((candidates.dim, budget))
        self._tails, self._tails_transposed = np.zeros((budget, budget)), np.zeros((budget, budget))
        self._size = 0
        self._remainders: dict[int, _Remainder] = {}

    def evaluate(self, positions: Int[Tensor, " s"]) -> list[Evaluated]:
        """Compute c(x_q, n | A) and σ² + v(n | A), each row by sums of its own.

        Args:
            positions: Which candidates, shape [s].

        Returns:
            One evaluation per candidate.
        """
        remainders = self._remainders_of(np.ascontiguousarray(self._candidates.sketches(positions).numpy()))
        self._remainders.update(zip(positions.tolist(), remainders, strict=True))
        return [Evaluated(torch.from_numpy(found.covariances), found.squared) for found in remainders]

    def accept(self, position: int) -> Conditioned:
        """Add a candidate to the acquired set.

        Args:
            position: Which candidate.

        Returns:
            Λ_A⁻¹ φ_a / √(σ² + v(a | A)) and the queries' coefficients.
        """
        if position not in self._remainders:
            self.evaluate(torch.tensor([position]))
        found, t = self._remainders[position], self._size
        self._remainders = {}
        length = math.sqrt(found.squared)
        direction, tail = found.head / length, found.tail / length
        coefficients = found.covariances / length
        self._basis[t], self._transposed[:, t] = direction, direction
        self._tails[t, : t + 1], self._tails_transposed[: t + 1, t] = tail, tail
        self._size = t + 1
        self.queries.add(coefficients, self._basis, self._tails, t + 1)
        # What is left of a sketch carries the rounding of the whole sketch.
        rounding = self.decided_error * math.sqrt(float(self.squared_norms[position])) / length
        return Conditioned(torch.from_numpy(direction), rounding, torch.from_numpy(coefficients))

    def sketches(self, positions: Int[Tensor, " s"]) -> Float[Tensor, "s d"]:
        """Read candidates as stored.

        Args:
            positions: Which candidates, shape [s].

        Returns:
            Sketches, shape [s, d], float64.
        """
        return self._candidates.sketches(positions)

    def weights(self) -> Float[Tensor, " q"]:
        """Weigh the queries.

        Returns:
            w_q, shape [q].
        """
        return self._weigh(self.queries.variances)

    def _remainders_of(self, heads: Array) -> list[_Remainder]:
        t, count = self._size, heads.shape[0]
        tails = np.zeros((count, t + 1))
        tails[:, t] = math.sqrt(self._noise_variance)
        before = row_dots(heads, heads) + self._noise_variance
        squared = before
        if t:
            heads = heads - self._products(self._transposed, along := self._products(self._basis[:t], heads))
            tails[:, :t] -= self._products(self._tails_transposed[:t], along)
            squared = row_dots(heads, heads) + row_dots(tails, tails)
            # A remainder much shorter than what it came from has lost digits: what rounding left along the basis is
            # removed as well ("twice is enough", Parlett 1998).
            short = np.flatnonzero(squared <= 0.1 * before)
            if short.size:
                again, ends = heads[short], np.ascontiguousarray(tails[short, :t])
                along = self._products(self._basis[:t], again) + self._products(self._tails[:t], ends)
                heads[short] = again - self._products(self._transposed, along)
                tails[short, :t] = ends - self._products(self._tails_transposed[:t], along)
                squared = row_dots(heads, heads) + row_dots(tails, tails)
        covariances = self._products(self._met, heads)
        return [
            _Remainder(heads[place], tails[place], float(squared[place]), covariances[place]) for place in range(count)
        ]
