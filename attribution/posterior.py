"""One query's posterior given a conditioning set T, or part of it: what T knows, and what removal costs."""

from collections.abc import Iterable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from attribution.checks import check_query
from attribution.errors import ShapeError
from attribution.exact_sums import inner_product, inner_product_error, inner_products, row_dots, weighted_sum
from attribution.information import info_gain_nats, info_loss_nats
from attribution.inverse_covariance import InverseCovariance
from attribution.leverages import SketchReader
from attribution.removal import Removal
from attribution.spectrum import Spectrum, spectrum_of, spectrum_of_blocks

__all__ = [
    "QueryPosterior",
    "SetPosterior",
    "Spectrum",
    "cross_products",
    "spectrum_of",
    "spectrum_of_blocks",
]

#: Rows of T read at a time for a residual.
_GROUP_ROWS = 2048
#: Rows whose directions are computed at once.
_FILTERED_TOGETHER = 16
#: Relative error of a leverage from which a variance is not taken from it.
_LARGEST_RELATIVE = 0.5


def cross_products(blocks: Iterable[Float[Tensor, "b d"]], query: Float[Tensor, " d"]) -> Float[Tensor, " n"]:
    """Multiply every row of T with the query, in float64 sums that depend on the row alone.

    Args:
        blocks: Sketches of T in ascending rows.
        query: Sketch of the query, shape [d].

    Returns:
        Φ_T φ_*, shape [n], float64.
    """
    return torch.cat([inner_products(block.double(), query.double()) for block in blocks])


class SetPosterior(InverseCovariance):
    """The posterior given T at one σ², for any number of queries.

    Args:
        spectrum: Eigendecomposition of T's Gram matrix.
        noise_variance: σ² > 0, in squared units of the measurement.
    """

    def of_query(
        self, query: Float[Tensor, " d"], cross: Float[Tensor, " n"] | None, sketches: SketchReader
    ) -> "QueryPosterior":
        """Condition one query on T.

        Args:
            query: Sketch of the query, shape [d].
            cross: Φ_T φ_*, shape [n], float64; needed by the kernel form (|T| ≤ d) only.
            sketches: Reads sketches of T by position, float64, shape [s, d].

        Returns:
            The query's posterior.
        """
        return QueryPosterior(self, query, cross, sketches)


class QueryPosterior:
    """One query's posterior given T, or T without some examples.

    Args:
        posterior: The posterior given T.
        query: Sketch of the query, shape [d].
        cross: Φ_T φ_*, shape [n], float64, as :func:`cross_products` gives it; needed by the kernel form (|T| ≤ d),
            ignored by the gram form.
        sketches: Reads sketches of T by position (0 … n−1, ascending rows), float64, shape [s, d].
        excluded: Positions in T that are left out.

    Attributes:
        prior_variance: v(x_* | ∅) = ‖φ_*‖², measurement².
        variance: v(x_* | T), the excluded left out, measurement².
        info_gain_nats: InfoGain of all of T, the excluded left out: what T knows about the query.

    Raises:
        ShapeError: If the kernel form is given no ``cross``, or one of another length, or ``query`` has another
            dimension than the gram form.
    """

    def __init__(
        self,
        posterior: InverseCovariance,
        query: Float[Tensor, " d"],
        cross: Float[Tensor, " n"] | None,
        sketches: SketchReader,
        excluded: tuple[int, ...] = (),
    ) -> None:
        check_query(query)
        size = posterior.weights.shape[0]
        source = cross if posterior.is_kernel else query
        if source is None or source.shape != (size,):
            given = "none" if source is None else str(list(source.shape))
            raise ShapeError(
                f"The kernel form needs cross, the query's inner product with each of the {size} rows of T "
                f"(cross_products computes it); got {given}."
                if posterior.is_kernel
                else f"query must have the {size} dimensions of the conditioning set's sketches, got {given}."
            )
        self.posterior = posterior
        self.query = query.double()
        self.cross = cross
        self.sketches = sketches
        self.excluded = excluded
        self.prior_variance = inner_product(self.query, self.query)
        rotated, dual = posterior.filter(source.double())
        norm = torch.linalg.vector_norm(source.double()).unsqueeze(0)
        self._removal = Removal(posterior, dual.unsqueeze(0), norm, sketches)
        if posterior.is_kernel:
            reduction = inner_product(dual, rotated)  # kᵀ P k
            variance = self._variance_in_function_space(reduction, dual)
        else:
            # φ_*ᵀ Λ⁻¹ φ_* = σ² Σ w (uᵀφ_*)², and λ w = 1 − σ² w is the rest: two sums of squares.
            weighted = posterior.weights * rotated
            reduction = inner_product(posterior.eigenvalues * weighted, rotated)
            variance = posterior.noise_variance * inner_product(weighted, rotated)
        self._removal.remove_all(excluded)
        increase = float(self._removal.increases[0])
        self.variance = variance + increase
        self.info_gain_nats = info_gain_nats(self.prior_variance, max(reduction - increase, 0.0), self.variance)

    def _variance_in_function_space(self, reduction: float, dual: Float[Tensor, " m"]) -> float:
        # φ_*·φ_* − kᵀPk; where that cancels, ‖φ_* − Φᵀα‖² + σ²‖α‖², by one pass over T.
        variance = self.prior_variance - reduction
        # Above this share, cancellation costs less than 1e-12 of v.
        if variance > 1e-3 * self.prior_variance:
            return variance
        alpha = inner_products(self.posterior.spectrum.eigenvectors, dual)
        rest = self.query.clone()
        for positions in torch.split(torch.arange(alpha.shape[0]), _GROUP_ROWS):
            rest -= weighted_sum(self.sketches(positions), alpha[positions])
        return inner_product(rest, rest) + self.posterior.noise_variance * inner_product(alpha, alpha)

    def without(self, positions: Int[Tensor, " s"] | list[int]) -> "QueryPosterior":
        """Leave more examples out of T.

        Args:
            positions: Their positions in T, each not yet left out.

        Returns:
            The query's posterior given T without them.
        """
        more = self._left_in(positions)
        return QueryPosterior(self.posterior, self.query, self.cross, self.sketches, (*self.excluded, *more))

    def increase(self, positions: Int[Tensor, " s"] | list[int]) -> float:
        r"""Compute how much the query's variance grows when a set is left out of T (Eq. 54).

        .. math:: v(x_* \mid T \setminus S) - v(x_* \mid T)
            = c_{*S} (\sigma^2 I - V_{SS})^{-1} c_{S*} = \alpha_S^\top (P_{SS})^{-1} \alpha_S

        Args:
            positions: Positions of S in T, each not yet left out; may be empty.

        Returns:
            The increase, ≥ 0, measurement².
        """
        removal = self._removal.copy()
        removal.increases = torch.zeros_like(removal.increases)
        removal.remove_all(self._left_in(positions))
        return float(removal.increases[0])

    def info_loss_nats(self, positions: Int[Tensor, " s"] | list[int]) -> float:
        """Compute the InfoLoss of a set (Eq. 4).

        Args:
            positions: Positions of S in T, each not yet left out; may be empty.

        Returns:
            Nats lost about the query when S is removed from T.
        """
        return info_loss_nats(self.variance, self.increase(positions))

    def covariances(self, positions: Int[Tensor, " s"]) -> Float[Tensor, " s"]:
        """Compute c(x_*, n | T) of members of T by sums of fixed order, what is left out of T not counted.

        Args:
            positions: Their positions in T, shape [s], none left out.

        Returns:
            Covariances, shape [s], measurement², exactly 0 where they are within rounding of 0.
        """
        groups = [self._removal.evaluate(group)[0][:, 0] for group in torch.split(positions, _GROUP_ROWS)]
        return self.posterior.noise_variance * torch.cat(groups)

    def direction(self) -> Float[Tensor, " d"] | None:
        r"""Give the vector whose products with sketches are covariances, so that a pass can have them all.

        .. math:: c(x_*, n \mid T \setminus S) = \phi_n \cdot r, \quad r = \sigma^2 D_* + D_S^\top L^{-\top} z

        with the D, L and z of :class:`attribution.removal.Removal`: the residual (15) of the query given all of T.

        Returns:
            r, shape [d], measurement; None in the kernel form, which has the covariances without it.
        """
        if self.posterior.is_kernel:
            return None
        found = self.posterior.noise_variance * self._removal.duals[0]
        if self.excluded:
            factor = torch.zeros(len(self.excluded), len(self.excluded), dtype=torch.float64)
            for place, row in enumerate(self._removal.factor):
                factor[place, : len(row)] = torch.tensor(row, dtype=torch.float64)
            shares = torch.linalg.solve_triangular(factor.T, self._removal.coefficients[:, :1], upper=True)
            found = found + weighted_sum(self._removal.directions, shares[:, 0].contiguous())
        return found

    def variances(self, positions: Int[Tensor, " s"]) -> Float[Tensor, " s"]:
        r"""Compute v(n | T) of members of T by sums of fixed order, what is left out of T not counted.

        .. math:: v(n \mid T) = \sigma^2 h_n, \quad
            v(n \mid T \setminus S) = v(n \mid T) + \sigma^4 (P_{nn} - P^{T \setminus S}_{nn})

        with leverages h_n = φ_nᵀ(Φ_TᵀΦ_T + σ²I)⁻¹φ_n: sums of positive terms, nothing cancels.

        Args:
            positions: Their positions in T, shape [s], none left out; d² each in the gram form.

        Returns:
            Variances, shape [s], measurement².
        """
        rows = self.posterior.rows(positions, self.sketches)
        if self.posterior.is_kernel:
            shares = (self.posterior.eigenvalues * self.posterior.weights).numpy()
            leverages = torch.from_numpy(row_dots(rows.numpy() * shares, rows.contiguous().numpy()))
        else:
            groups = torch.split(rows.contiguous(), _FILTERED_TOGETHER)
            found = [row_dots(group.numpy(), self.posterior.directions(group).numpy()) for group in groups]
            leverages = torch.from_numpy(np.concatenate(found))
        return self._given_what_is_left(positions, leverages)

    def nominated_variances(self, positions: Int[Tensor, " s"]) -> tuple[Float[Tensor, " s"], Float[Tensor, " s"]]:
        """Compute v(n | T) of members of T fast, to nominate.

        Args:
            positions: Their positions in T, shape [s], none left out.

        Returns:
            Variances, shape [s], measurement², and a bound of their relative difference to :meth:`variances`, at most
            about a half, shape [s].
        """
        if self.posterior.leverages is None:
            return self.variances(positions), torch.zeros(positions.shape[0], dtype=torch.float64)
        leverages, errors = self.posterior.leverages.of(positions, self.sketches)
        variances = self._given_what_is_left(positions, leverages)
        # What is left of T without some rows has more variance, by a positive term: the relative error is no larger.
        relative = torch.where(errors > 0, errors / leverages, 0.0)
        poor = ~(relative <= _LARGEST_RELATIVE)
        if bool(poor.any()):
            variances[poor], relative[poor] = self.variances(positions[poor]), 0.0
        return variances, relative + 8 * inner_product_error(self.query.shape[0], torch.float64)

    def refine_variances(self, positions: Int[Tensor, " s"]) -> None:
        """Have :meth:`nominated_variances` know members of T to float64: one product of their rows with U.

        Args:
            positions: Their positions in T, shape [s].
        """
        if self.posterior.leverages is not None:
            self.posterior.leverages.refine(positions, self.sketches)

    def _given_what_is_left(self, positions: Int[Tensor, " s"], leverages: Tensor) -> Tensor:
        noise = self.posterior.noise_variance
        if not self.excluded:
            return noise * leverages
        taken = [self._removal.evaluate(group)[1] for group in torch.split(positions, _GROUP_ROWS)]
        return noise * leverages + noise**2 * torch.cat(taken)

    def removal(self) -> Removal:
        """Start removing examples one by one, the excluded already removed.

        Returns:
            A state of its own, with ``increases`` counted from here.
        """
        removal = self._removal.copy()
        removal.increases = torch.zeros_like(removal.increases)
        return removal

    def _left_in(self, positions: Int[Tensor, " s"] | list[int]) -> list[int]:
        named = [int(position) for position in positions]
        if len(set(named)) != len(named) or set(named) & set(self.excluded):
            raise ShapeError("positions must name each example once, and none that is already left out of T.")
        return named
