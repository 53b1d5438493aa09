r"""What whole groups of examples tell queries: InfoGain and InfoLoss of sets, by one factorisation per group.

Removing a group example by example costs a step each. Here a group S of s examples costs one factorisation: of size s
in function space, of size d in weight space, whichever is less work. With A = Φ_DᵀΦ_D + σ²I, w = A⁻¹φ_* and b = Φ_S w,
(54) reads

.. math:: v(x_* \mid D \setminus S) - v(x_* \mid D) = \sigma^2 b^\top (I - \Phi_S A^{-1} \Phi_S^\top)^{-1} b
    = \sigma^2 \left( \|b\|^2 + u^\top (A - \Phi_S^\top \Phi_S)^{-1} u \right), \quad u = \Phi_S^\top b

Every variance here is a sum of squares, so that small losses keep their digits. The products are BLAS's: nats agree to
rounding, about 1e-10, on any number of threads, not to the last bit.
"""

from collections.abc import Iterator
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attribution.checks import check_noise_variance, check_sketches
from attribution.errors import NotPositiveDefiniteError, ShapeError
from attribution.function_space import cholesky_of_covariance
from attribution.information import info_gain_nats, info_loss_nats
from attribution.leverages import SketchReader

#: Rows read in float64 at a time.
_GROUP_ROWS = 2048
#: The smallest eigenvalue of K + σ²I, relative to the largest, at which nats keep six digits.
_SMALLEST_RATIO = 1e-10


class GroupInformation:
    """Queries given D, or D without some groups, at one σ²: what any group tells them.

    Args:
        gram: Of D, float64: K_DD [n, n] (``kernel``) or Φ_DᵀΦ_D [d, d] (``gram``), in measurement².
        form: Which of them. ``kernel`` is less work while n ≤ d.
        num_rows: n = |D|.
        queries: Sketches of the queries, shape [q, d].
        noise_variance: σ² > 0, in squared units of the measurement.
        sketches: Reads sketches of D by position (0 … n−1), float64, shape [s, d].

    Attributes:
        num_rows: n.
        prior_variances: v(x_q | ∅), shape [q], measurement².
        variances: v(x_q | D), shape [q], measurement².
        gain_nats: InfoGain of all of D about each query, shape [q].

    Raises:
        ShapeError: If the Gram matrix does not have the form's size.
        NotPositiveDefiniteError: If σ² is so small that rounding would take more than the last digits; the message
            names one that works.
    """

    def __init__(
        self,
        gram: Float[Tensor, "m m"],
        form: Literal["kernel", "gram"],
        num_rows: int,
        queries: Float[Tensor, "q d"],
        noise_variance: float,
        sketches: SketchReader,
    ) -> None:
        check_noise_variance(noise_variance)
        check_sketches(queries, queries.shape[-1], "queries")
        size = num_rows if form == "kernel" else queries.shape[1]
        if gram.shape != (size, size):
            raise ShapeError(f"The {form} form needs a matrix of {size} × {size}, got {list(gram.shape)}.")
        self.num_rows = num_rows
        self._gram, self._form = gram, form
        self._queries = queries.double()
        self._noise_variance = noise_variance
        self._sketches = sketches
        try:
            self._factor = cholesky_of_covariance(gram, noise_variance)
        except NotPositiveDefiniteError as error:
            raise self._too_small() from error
        self.prior_variances = self._queries.square().sum(dim=1)
        if form == "kernel":
            self._inverse = torch.cholesky_inverse(self._factor)  # P = (K + σ²I)⁻¹
            self._check_rounding()
            cross = torch.cat([part @ self._queries.T for _, part in self._parts(torch.arange(num_rows))])  # [n, q]
            reductions = _whitened(self._factor, cross).square().sum(dim=0)
            self._duals = torch.cholesky_solve(cross, self._factor)  # α = P k
            residuals = self._queries.T - self._weighted(torch.arange(num_rows), self._duals)  # [d, q]
            self.variances = residuals.square().sum(dim=0) + noise_variance * self._duals.square().sum(dim=0)
        else:
            self._check_rounding()
            self.variances, reductions, self._duals = self._in_weight_space(self._factor, gram)  # w = A⁻¹φ_*
        self.gain_nats = _gains(self.prior_variances, reductions, self.variances)

    def gains(self, positions: Int[Tensor, " s"]) -> Float[Tensor, " q"]:
        """Compute the InfoGain of a group about each query: what it tells if it is all that is known (Eq. 6).

        Args:
            positions: Positions of S in D, each once; may be empty.

        Returns:
            Nats, ≥ 0, shape [q].
        """
        size, dim = positions.shape[0], self._queries.shape[1]
        if size > dim:
            gram = self._feature_gram(positions)
            variances, reductions, _ = self._in_weight_space(cholesky_of_covariance(gram, self._noise_variance), gram)
            return _gains(self.prior_variances, reductions, variances)
        if self._form == "kernel":
            kernel = self._gram[positions][:, positions]
            cross = torch.cat([part @ self._queries.T for _, part in self._parts(positions)])
        else:
            rows = self._sketches(positions)
            kernel, cross = rows @ rows.T, rows @ self._queries.T
        factor = cholesky_of_covariance(kernel, self._noise_variance)
        reductions = _whitened(factor, cross).square().sum(dim=0)
        weights = torch.cholesky_solve(cross, factor)
        residuals = self._queries.T - self._weighted(positions, weights)
        variances = residuals.square().sum(dim=0) + self._noise_variance * weights.square().sum(dim=0)
        return _gains(self.prior_variances, reductions, variances)

    def losses(self, positions: Int[Tensor, " s"]) -> Float[Tensor, " q"]:
        """Compute the InfoLoss of a group: what each query's prediction loses if it leaves D (Eqs. 4 and 54).

        Args:
            positions: Positions of S in D, each once; may be empty.

        Returns:
            Nats, ≥ 0, shape [q].
        """
        increases = self._increases(positions)
        pairs = zip(self.variances.tolist(), increases.tolist(), strict=True)
        return torch.tensor([info_loss_nats(variance, increase) for variance, increase in pairs], dtype=torch.float64)

    def without(self, positions: Int[Tensor, " s"]) -> tuple["GroupInformation", Int[Tensor, " k"]]:
        """Remove a group from D.

        Args:
            positions: Positions of S in D, each once.

        Returns:
            The queries given D∖S, and the positions in D of what is left, shape [n − s], ascending.
        """
        kept = self._complement(positions)
        gram = self._gram[kept][:, kept] if self._form == "kernel" else self._gram_without(positions, kept)
        left = GroupInformation(
            gram,
            self._form,
            int(kept.shape[0]),
            self._queries,
            self._noise_variance,
            lambda places: self._sketches(kept[places]),
        )
        return left, kept

    def _increases(self, positions: Int[Tensor, " s"]) -> Float[Tensor, " q"]:
        size, dim = positions.shape[0], self._queries.shape[1]
        if self._form == "kernel":  # α_Sᵀ (P_SS)⁻¹ α_S
            return self._whitened_squares(self._inverse[positions][:, positions], self._duals[positions])
        if 2 * size <= dim:
            rows = self._sketches(positions)
            whitened = _whitened(self._factor, rows.T)  # [d, s]
            rest = torch.eye(size, dtype=torch.float64) - whitened.T @ whitened  # I − Φ_S A⁻¹ Φ_Sᵀ
            return self._noise_variance * self._whitened_squares(rest, rows @ self._duals)
        kept = self._complement(positions)
        factor = cholesky_of_covariance(self._gram_without(positions, kept), self._noise_variance)
        squares = torch.zeros_like(self.variances)
        images = torch.zeros_like(self._duals)
        for _, part in self._parts(positions):
            products = part @ self._duals
            squares += products.square().sum(dim=0)
            images += part.T @ products
        return self._noise_variance * (squares + _whitened(factor, images).square().sum(dim=0))

    def _whitened_squares(self, matrix: Float[Tensor, "s s"], values: Float[Tensor, "s q"]) -> Float[Tensor, " q"]:
        # valuesᵀ matrix⁻¹ values, for each query.
        factor, info = torch.linalg.cholesky_ex(matrix)
        if int(info) != 0:
            raise self._too_small()
        return _whitened(factor, values).square().sum(dim=0)

    def _in_weight_space(
        self, factor: Float[Tensor, "d d"], gram: Float[Tensor, "d d"]
    ) -> tuple[Float[Tensor, " q"], Float[Tensor, " q"], Float[Tensor, "d q"]]:
        # v = σ² φ_*ᵀ A⁻¹ φ_*, what it is less than ‖φ_*‖², φ_*ᵀ G A⁻¹ φ_* = ‖Gw‖² + σ² wᵀGw, and w = A⁻¹φ_*.
        variances = self._noise_variance * _whitened(factor, self._queries.T).square().sum(dim=0)
        duals = torch.cholesky_solve(self._queries.T, factor)
        images = gram @ duals
        along = torch.clamp((duals * images).sum(dim=0), min=0.0)
        return variances, images.square().sum(dim=0) + self._noise_variance * along, duals

    def _gram_without(self, positions: Int[Tensor, " s"], kept: Int[Tensor, " k"]) -> Float[Tensor, "d d"]:
        # Whichever set is smaller is read.
        if kept.shape[0] < positions.shape[0]:
            return self._feature_gram(kept)
        return self._gram - self._feature_gram(positions)

    def _feature_gram(self, positions: Int[Tensor, " s"]) -> Float[Tensor, "d d"]:
        dim = self._queries.shape[1]
        gram = torch.zeros(dim, dim, dtype=torch.float64)
        for _, part in self._parts(positions):
            gram.addmm_(part.T, part)
        return gram

    def _weighted(self, positions: Int[Tensor, " s"], weights: Float[Tensor, "s q"]) -> Float[Tensor, "d q"]:
        total = torch.zeros(self._queries.shape[1], weights.shape[1], dtype=torch.float64)
        for first, part in self._parts(positions):
            total.addmm_(part.T, weights[first : first + part.shape[0]])
        return total

    def _parts(self, positions: Int[Tensor, " s"]) -> Iterator[tuple[int, Tensor]]:
        # Sketches some rows at a time, with the place of the first; one empty part of an empty set.
        for number, part in enumerate(torch.split(positions, _GROUP_ROWS)):
            yield number * _GROUP_ROWS, self._sketches(part)

    def _complement(self, positions: Int[Tensor, " s"]) -> Int[Tensor, " k"]:
        left = torch.ones(self.num_rows, dtype=torch.bool)
        left[positions] = False
        if int(left.sum()) != self.num_rows - positions.shape[0]:
            raise ShapeError("positions must name each example of a group once.")
        return left.nonzero().squeeze(1)

    def _check_rounding(self) -> None:
        # The smallest eigenvalue is at least σ², and in the kernel form at least 1/‖P‖; the largest at most ‖K‖ + σ².
        smallest = self._noise_variance
        if self._form == "kernel" and self.num_rows:
            smallest = max(smallest, 1 / float(torch.linalg.matrix_norm(self._inverse)))
        if smallest < _SMALLEST_RATIO * float(torch.linalg.matrix_norm(self._gram)):
            raise self._too_small()

    def _too_small(self) -> NotPositiveDefiniteError:
        smallest = max(_SMALLEST_RATIO * float(torch.linalg.matrix_norm(self._gram)), 2 * self._noise_variance)
        return NotPositiveDefiniteError(
            f"noise_variance {self._noise_variance} is too near to the rounding of D's Gram matrix for the nats of its "
            f"groups. Use a noise_variance of at least {smallest:.3g}.",
            smallest_noise_variance=smallest,
        )


def _whitened(factor: Float[Tensor, "m m"], values: Float[Tensor, "m q"]) -> Float[Tensor, "m q"]:
    # L⁻¹ values.
    solved: Tensor = torch.linalg.solve_triangular(factor, values, upper=False)
    return solved


def _gains(
    prior: Float[Tensor, " q"], reductions: Float[Tensor, " q"], variances: Float[Tensor, " q"]
) -> Float[Tensor, " q"]:
    # info_gain_nats of every query; by the first form rounding may explain a little more than there was.
    parts = zip(prior.tolist(), torch.minimum(reductions, prior).tolist(), variances.tolist(), strict=True)
    return torch.tensor([info_gain_nats(*part) for part in parts], dtype=torch.float64)
