"""InfoGain as a pursuit (Eqs. 8, 94, 95): M = K + σ²I and b = K_* over the candidates, conditioned on what is acquired."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attribution.acquired import AcquiredSet, Added
from attribution.candidates import Candidates
from attribution.checks import check_query
from attribution.exact_sums import inner_product_error, inner_products, squared_norms
from attribution.pursuit import Column, Nominated

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
    ) -> None:
        for query in queries:
            check_query(query, candidates.dim)
        self.acquired = AcquiredSet(queries, noise_variance, budget)
        self.added: Added | None = None
        self._candidates = candidates
        self._noise_variance = noise_variance
        self._weighting = weighting
        self._squared_norms = candidates.squared_norms()
        self._norms = torch.sqrt(self._squared_norms)
        # v(n | A) in float64, and how many of the acquired it accounts for: brought up to date only where it decides.
        self._variances = torch.zeros_like(self._squared_norms)
        self._accounted = torch.full(self._norms.shape, -1, dtype=torch.int64)

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

    def evaluate(self, positions: Int[Tensor, " s"]) -> tuple[Float[Tensor, "s q"], Float[Tensor, " s"]]:
        """Compute c(x_q, n | A) and σ² + v(n | A) in float64.

        Args:
            positions: Which candidates, shape [s].

        Returns:
            Covariances [s, q] and noisy variances [s].
        """
        sketches = self._candidates.sketches(positions)
        new = self._accounted[positions] < 0
        if bool(new.any()):
            self._variances[positions[new]] = squared_norms(sketches[new])
            self._accounted[positions[new]] = 0
        accounted, variances = self._accounted[positions], self._variances[positions]
        # One subtraction per acquired example, in order: the same bits however often a candidate was looked at before.
        for step in range(int(accounted.min()), self.acquired.size):
            along = inner_products(sketches, self.acquired.basis[step])
            variances = torch.where(accounted <= step, variances - along**2, variances)
        self._variances[positions] = variances
        self._accounted[positions] = self.acquired.size
        # Rounding can leave a variance of −1e-16‖φ‖²; none is negative.
        return self.acquired.covariances(sketches), self._noise_variance + torch.clamp(variances, min=0.0)

    def accept(self, position: int) -> Column:
        """Add a candidate to the acquired set, and multiply all others with Λ_A⁻¹ φ_a: the step's one product.

        Args:
            position: Which candidate.

        Returns:
            c(n, a | A)/√(σ² + v_a).
        """
        self.added = self.acquired.add(self._candidates.sketches(torch.tensor([position]))[0])
        direction = self.added.direction
        length = float(torch.linalg.vector_norm(direction))
        return Column(
            values=self._candidates.products(direction.unsqueeze(0))[0],
            error=self._candidates.relative_error * length * self._norms,
            coefficients=self.added.coefficients,
        )

    def weighting(self) -> Float[Tensor, "q q"] | Float[Tensor, " q"]:
        """Weigh the queries.

        Returns:
            G of the score ‖b_n G‖².
        """
        return self._weighting(self.acquired)
