"""The acquired set: its posterior in factored form, grown by one sketch per step, and the exact nats of an ordered set.

The rows [Φ_A, σI] are kept as an orthonormal basis (modified Gram–Schmidt, orthogonalised twice where digits would be
lost), so that variances come as sums of squares: positive by construction, and accurate at noise variances where the
Gram matrix K + σ²I has no digits left. By Woodbury Λ_A⁻¹ = I − WᵀW, with W the first d columns of that basis.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from attribution.checks import check_noise_variance, check_query, check_sketches
from attribution.errors import ShapeError
from attribution.exact_sums import inner_products, row_dots, row_sum, squared_norms
from attribution.information import info_gain_nats
from attribution.steps import Step


@dataclass(frozen=True)
class Added:
    """What adding one example to the acquired set did.

    Attributes:
        covariances: c(x_q, a | A) before, shape [q], measurement².
        noisy_variance: σ² + v(a | A) before, measurement².
        direction: Λ_A⁻¹ φ_a / √(σ² + v(a | A)), shape [d]: its product with φ_n is c(n, a | A) in units of the square
            root of ``noisy_variance``.
        coefficients: covariances / √noisy_variance, shape [q]; their squares are the reductions of variance.
        along: w_j · φ_a for the t directions before it, shape [t]: the row that the Cholesky factor of K_AA + σ²I
            gains, its diagonal being √noisy_variance.
    """

    covariances: Float[Tensor, " q"]
    noisy_variance: float
    direction: Float[Tensor, " d"]
    coefficients: Float[Tensor, " q"]
    along: Float[Tensor, " t"]


class AcquiredSet:
    """The posterior of one or more queries given the examples acquired so far.

    Args:
        queries: Sketches of the queries, shape [q, d].
        noise_variance: σ² > 0, in squared units of the measurement.
        capacity: How many examples may be added.

    Attributes:
        prior_variances: v(x_q | ∅), shape [q].
        residuals: r_q = Λ_A⁻¹ φ_q (Eq. 15), shape [q, d]; r_q · φ_n = c(x_q, n | A).
        variances: v(x_q | A), shape [q], as sums of squares.
        reductions: v(x_q | ∅) − v(x_q | A), shape [q], as sums of squares.
        size: t, how many examples were added.
        capacity: How many may be.

    Raises:
        ShapeError: If ``queries`` is not a matrix.
    """

    def __init__(self, queries: Float[Tensor, "q d"], noise_variance: float, capacity: int) -> None:
        check_noise_variance(noise_variance)
        if queries.ndim != 2:
            raise ShapeError(f"queries must have shape [q, d], got {list(queries.shape)}.")
        for query in queries:
            check_query(query)
        self.noise_variance = noise_variance
        self.residuals = queries.double().contiguous().clone()
        self.prior_variances = squared_norms(self.residuals)
        self.variances = self.prior_variances.clone()
        self.reductions = torch.zeros_like(self.prior_variances)
        self.size = 0
        self.capacity = capacity
        # Arrays, for their operations cost a tenth of torch's at this size; the properties show them as tensors.
        self._residuals = self.residuals.numpy()
        self._basis = np.zeros((capacity, queries.shape[1]))
        self._tails = np.zeros((capacity, capacity))
        self._query_tails = np.zeros((queries.shape[0], capacity))

    @property
    def basis(self) -> Float[Tensor, "t d"]:
        """W, with Λ_A⁻¹ = I − WᵀW."""
        return torch.from_numpy(self._basis[: self.size])

    @property
    def query_weights(self) -> Float[Tensor, "q t"]:
        """The α_q of r_q = φ_q − Φ_Aᵀ α_q, with α_q = (K_AA + σ²I)⁻¹ K_Aq."""
        return torch.from_numpy(self._query_tails[:, : self.size] / -math.sqrt(self.noise_variance))

    def covariances(self, sketches: Float[Tensor, "m d"]) -> Float[Tensor, "m q"]:
        """Compute c(x_q, n | A) for some examples, each by sums of its own (Eq. 12).

        Args:
            sketches: Their sketches, shape [m, d], float64.

        Returns:
            Covariances with each query, shape [m, q].
        """
        if sketches.shape[0] > self.residuals.shape[0]:
            return torch.stack([inner_products(sketches, residual) for residual in self.residuals], dim=1)
        return torch.stack([inner_products(self.residuals, sketch) for sketch in sketches])

    def query_covariances(self) -> Float[Tensor, "q q"]:
        """Compute c(x_q, x_p | A) between the queries, as sums of products of residuals (M of Eq. 89).

        Returns:
            Φ_* Λ_A⁻¹ Φ_*ᵀ, shape [q, q], symmetric, measurement².
        """
        extended = torch.cat([self.residuals, torch.from_numpy(self._query_tails)], dim=1)
        return torch.stack([inner_products(extended, row) for row in extended])

    def add(self, sketch: Float[Tensor, " d"]) -> Added:
        r"""Condition on one more example, a.

        .. math:: r_q \leftarrow r_q - \Lambda_A^{-1} \phi_a \frac{c(x_q, a \mid A)}{\sigma^2 + v(a \mid A)}

        Args:
            sketch: φ_a, shape [d], float64.

        Returns:
            The covariances and variance that this step is made of.
        """
        t = self.size
        basis, tails = self._basis[:t], self._tails[:t, : t + 1]
        head = np.ascontiguousarray(sketch.numpy())
        covariances = row_dots(self._residuals, head)
        tail = np.zeros(t + 1)
        tail[t] = math.sqrt(self.noise_variance)
        before = float(row_dots(head, head)) + self.noise_variance
        squared = before
        total_along = np.zeros(t)
        # What is left after the first pass has lost digits if it is much shorter than what it came from: then the
        # components along the basis that rounding left are removed as well ("twice is enough", Parlett 1998).
        for _ in range(2 if t else 0):
            along = row_dots(basis, head) + row_dots(tails, tail)
            total_along += along
            head = head - row_sum(basis, along)
            tail = tail - row_sum(tails, along)
            squared = float(row_dots(head, head)) + float(row_dots(tail, tail))
            if squared > 0.1 * before:
                break
        length = math.sqrt(squared)
        direction, tail = head / length, tail / length
        coefficients = covariances / length
        self._basis[t] = direction
        self._tails[t, : t + 1] = tail
        self._residuals -= coefficients[:, None] * direction
        query_tails = self._query_tails[:, : t + 1]
        query_tails -= coefficients[:, None] * tail
        variances = row_dots(self._residuals, self._residuals) + row_dots(query_tails, query_tails)
        self.variances = torch.from_numpy(variances)
        self.reductions = self.reductions + torch.from_numpy(coefficients**2)
        self.size = t + 1
        return Added(
            torch.from_numpy(covariances),
            squared,
            torch.from_numpy(direction),
            torch.from_numpy(coefficients),
            torch.from_numpy(total_along),
        )


def gain_step(acquired: AcquiredSet, added: Added, variance_before: float, *, position: int, score: float) -> Step:
    """Describe the latest addition for the first query, with its exact InfoGain in nats.

    Args:
        acquired: The set after the addition.
        added: What the addition did.
        variance_before: v(x_* | A) before it.
        position: Which candidate was added.
        score: What the rule maximised.

    Returns:
        The step.
    """
    reduction = float(added.coefficients[0]) ** 2
    variance = float(acquired.variances[0])
    return Step(
        rank=acquired.size,
        position=position,
        score=score,
        covariance=float(added.covariances[0]),
        query_variance=variance,
        step_nats=info_gain_nats(variance_before, reduction, variance),
        cumulative_nats=info_gain_nats(float(acquired.prior_variances[0]), float(acquired.reductions[0]), variance),
    )


def acquire(query: Float[Tensor, " d"], sketches: Float[Tensor, "t d"], noise_variance: float) -> Iterator[Step]:
    """Compute the exact InfoGain of an ordered set, member by member (Eq. 6): for picks that another rule made.

    Args:
        query: Sketch of the query, shape [d].
        sketches: Sketches of the picks in order, shape [t, d]; t may be 0.
        noise_variance: σ² > 0, in squared units of the measurement.

    Yields:
        One step per row, ``position`` being its place in ``sketches`` and ``score`` the gain rule's value (Eq. 8).
    """
    check_query(query)
    check_sketches(sketches, query.shape[0], "sketches")
    acquired = AcquiredSet(query.unsqueeze(0), noise_variance, sketches.shape[0])
    for position in range(sketches.shape[0]):
        variance_before = float(acquired.variances[0])
        added = acquired.add(sketches[position].double())
        score = float(added.covariances[0]) ** 2 / added.noisy_variance
        yield gain_step(acquired, added, variance_before, position=position, score=score)
