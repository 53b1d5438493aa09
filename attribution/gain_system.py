"""InfoGain as a pursuit (Eqs. 8, 94, 95): M = K + σ²I and b = K_* over the candidates, given what is acquired."""

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from attribution.acquired import AcquiredSet, Added
from attribution.candidates import Candidates
from attribution.checks import check_query
from attribution.exact_sums import inner_product_error, inner_products, squared_norms
from attribution.pursuit import Column, Evaluated, Nominated
from attribution.rounded_pursuit import Given, Move

#: Gives K(n, a) of every candidate n, in their order, for one a: float64, shape [c].
KernelColumn = Callable[[int], Float[Tensor, " c"]]

#: Maps the acquired set to G of the score ‖b_n G‖².
Weighting = Callable[[AcquiredSet], Float[Tensor, "q q"] | Float[Tensor, " q"]]


def unweighted(acquired: AcquiredSet) -> Float[Tensor, " q"]:
    """Count every query alike.

    Args:
        acquired: The acquired set.

    Returns:
        Ones, shape [q].
    """
    return torch.ones_like(acquired.variances)


class GainSystem:
    """The candidates' covariances with the queries, and their own variances, given the acquired set.

    Args:
        queries: Sketches of the queries, shape [q, d].
        candidates: The rows that may be picked.
        noise_variance: σ² > 0, in squared units of the measurement.
        budget: How many will be picked.
        weighting: Weights of the queries, from the acquired set.
        kernel_column: Gives K(n, a) of every candidate n with candidate a in float64, shape [c], for instance from a
            stored Gram matrix; columns then need no product with the candidates.

    Attributes:
        acquired: The acquired set, in float64.
        added: What the latest pick did.
    """

    def __init__(
        self,
        queries: Float[Tensor, "q d"],
        candidates: Candidates,
        noise_variance: float,
        budget: int,
        weighting: Weighting = unweighted,
        kernel_column: KernelColumn | None = None,
    ) -> None:
        for query in queries:
            check_query(query, candidates.dim)
        self.acquired = AcquiredSet(queries, noise_variance, budget)
        self.added: Added | None = None
        self._latest = -1
        self._moved = 0
        self._candidates = candidates
        self._noise_variance = noise_variance
        self._weighting = weighting
        self._kernel_column = kernel_column
        self._squared_norms = candidates.squared_norms()
        self._norms = torch.sqrt(self._squared_norms)
        # v(n | A) in float64, and how many of the acquired it accounts for: brought up to date only where it decides.
        self._variances = torch.zeros_like(self._squared_norms)
        self._accounted = torch.full(self._norms.shape, -1, dtype=torch.int64)
        stored = budget if kernel_column is not None else 0
        self._columns = torch.zeros(stored, candidates.count, dtype=torch.float64)
        self._column_errors = torch.zeros(stored, candidates.count, dtype=torch.float64)

    def nominate(self) -> Nominated:
        """Multiply every candidate with every query.

        Returns:
            b = K_{n*} and the diagonal σ² + K_nn.
        """
        decided = inner_product_error(self._candidates.dim, torch.float64)
        targets = self._candidates.products(self.acquired.residuals).T.contiguous()
        diagonal = self._noise_variance + self._squared_norms
        return Nominated(
            targets=targets,
            target_error=(self._candidates.relative_error + decided) * self._norms,
            target_scale=torch.sqrt(self.acquired.prior_variances),
            diagonal=diagonal,
            diagonal_error=decided * diagonal,
            floor=torch.full_like(diagonal, self._noise_variance),
            decided_error=decided * self._norms,
            decided_diagonal_error=decided * diagonal,
        )

    def given(self) -> Given:
        """Give the system of one query before the first pick, without a product.

        Returns:
            The residual, which is the query, and the diagonal σ² + ‖φ_n‖².
        """
        decided = inner_product_error(self._candidates.dim, torch.float64)
        diagonal = (self._noise_variance + self._squared_norms).numpy()
        return Given(
            residual=self.acquired.residuals[0].numpy().copy(),
            residual_error=decided * math.sqrt(float(self.acquired.prior_variances[0])),
            diagonal=diagonal,
            diagonal_error=decided * diagonal,
            floor=np.full_like(diagonal, self._noise_variance),
            noise_variance=self._noise_variance,
        )

    def moves(self) -> Iterator[Move]:
        """Give what the latest pick added, once.

        Yields:
            Λ_A⁻¹ φ_a/√(σ² + v_a), whose product with φ_n is c(n, a | A)/√(σ² + v_a).
        """
        if self._moved == self.acquired.size:
            return
        self._moved = self.acquired.size
        assert self.added is not None, "something was acquired"
        decided = inner_product_error(self._candidates.dim, torch.float64)
        residual = self.acquired.residuals[0]
        yield Move(
            row=self.added.direction.numpy(),
            error=decided * float(torch.linalg.vector_norm(self.added.direction)),
            coefficient=float(self.added.coefficients[0]),
            residual=residual.numpy().copy(),
            residual_error=decided * float(torch.linalg.vector_norm(residual)),
        )

    def evaluate(self, positions: Int[Tensor, " s"]) -> Evaluated:
        """Compute c(x_q, n | A) and σ² + v(n | A) in float64.

        Args:
            positions: Which candidates, shape [s].

        Returns:
            Covariances [s, q] and noisy variances [s]: the values that decide.
        """
        sketches = self._candidates.sketches(positions)
        new = self._accounted[positions] < 0
        if bool(new.any()):
            self._variances[positions[new]] = squared_norms(sketches[new])
            self._accounted[positions[new]] = 0
        # One subtraction per acquired example, in order: the same bits however often a candidate was looked at before.
        for position, sketch in zip(positions.tolist(), sketches, strict=True):
            variance = float(self._variances[position])
            for along in inner_products(self.acquired.basis[int(self._accounted[position]) :], sketch).tolist():
                variance -= along**2
            self._variances[position] = variance
        self._accounted[positions] = self.acquired.size
        variances = self._variances[positions]
        # Rounding can leave a variance of −1e-16‖φ‖²; none is negative.
        pivots = self._noise_variance + torch.clamp(variances, min=0.0)
        return Evaluated(self.acquired.covariances(sketches), pivots, torch.zeros_like(pivots))

    def settle(self, positions: Int[Tensor, " s"]) -> Float[Tensor, " s"]:
        """Compute σ² + v(n | A), which :meth:`evaluate` leaves nothing to add to.

        Args:
            positions: Which candidates, shape [s].

        Returns:
            Noisy variances [s].
        """
        return self.evaluate(positions).pivots

    def twins(self, position: int, others: Int[Tensor, " s"]) -> Int[Tensor, " t"]:
        """Name equal candidates whose values differ: none, for equal rows have equal values here.

        Args:
            position: A candidate.
            others: Other candidates, shape [s].

        Returns:
            Nothing, shape [0].
        """
        return others[:0]

    def accept(self, position: int) -> None:
        """Add a candidate to the acquired set.

        Args:
            position: Which candidate.
        """
        self.added = self.acquired.add(self._candidates.sketches(torch.tensor([position]))[0])
        self._latest = position

    def column(self) -> Column:
        """Multiply all candidates with Λ_A⁻¹ φ_a of the latest pick: the step's one product.

        Returns:
            c(n, a | A)/√(σ² + v_a).
        """
        assert self.added is not None, "accept comes first"
        if self._kernel_column is not None:
            return self._stored_column(self._latest, self._kernel_column)
        direction = self.added.direction
        length = float(torch.linalg.vector_norm(direction))
        return Column(
            values=self._candidates.products(direction.unsqueeze(0))[0],
            error=torch.from_numpy(self._norms.numpy() * (self._candidates.relative_error * length)),
            coefficients=self.added.coefficients,
        )

    def _stored_column(self, position: int, kernel_column: KernelColumn) -> Column:
        # c(n, a | A) = K_na − Σ_j c_nj c_aj over the columns before: no row of Φ is read.
        assert self.added is not None, "accept adds"
        t = self.acquired.size - 1
        length = math.sqrt(self.added.noisy_variance)
        along = self.added.along
        values = (kernel_column(position) - along @ self._columns[:t]) / length
        rounding = inner_product_error(self._candidates.dim, torch.float64) * self._norms * self._norms[position]
        errors = (rounding + along.abs() @ self._column_errors[:t]) / length
        self._columns[t], self._column_errors[t] = values, errors
        return Column(values, errors, self.added.coefficients)

    def weighting(self) -> Float[Tensor, "q q"] | Float[Tensor, " q"]:
        """Weigh the queries.

        Returns:
            G of the score ‖b_n G‖².
        """
        return self._weighting(self.acquired)
