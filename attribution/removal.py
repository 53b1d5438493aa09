"""Removing examples from a conditioning set one by one (Eq. 54): a Cholesky factor of P_SS, grown by a row per example.

With L Lᵀ = P_SS and z = L⁻¹ α_S the variance of a query grows by ‖z‖² = α_Sᵀ P_SS⁻¹ α_S, and by its own z² with each
removal: sums of squares, never a difference of variances.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from attribution.errors import NotPositiveDefiniteError
from attribution.exact_sums import inner_product, inner_products, row_dots, unit_roundoff, weighted_sum
from attribution.inverse_covariance import InverseCovariance, SketchReader


@dataclass(frozen=True)
class Removed:
    """What removing one example did.

    Attributes:
        duals: α_n of each query before the removal, shape [q]; σ² α_n = c(x_q, n | T).
        pivot: P_nn before the removal, 1/measurement²; σ⁴ P_nn = σ² − v(n | T).
        coefficients: α_n/√P_nn, shape [q]; their squares are how much the variances grow.
    """

    duals: Float[Tensor, " q"]
    pivot: float
    coefficients: Float[Tensor, " q"]


class Removal:
    """The examples removed so far, S, and what each example left means to each query without them.

    Args:
        posterior: The posterior given all of T.
        rotated: Each query in T's eigenvectors (``InverseCovariance.rotate``), shape [q, m].
        source_norms: ‖k‖ or ‖φ_*‖ of each query, shape [q], to judge what is rounding.
        sketches: Reads sketches of T by position.

    Attributes:
        positions: S in order of removal.
        increases: v(x_q | T∖S) − v(x_q | T), shape [q], measurement².
    """

    def __init__(
        self,
        posterior: InverseCovariance,
        rotated: Float[Tensor, "q m"],
        source_norms: Float[Tensor, " q"],
        sketches: SketchReader,
    ) -> None:
        self._posterior = posterior
        self._duals = posterior.weights * rotated
        self._source_norms = source_norms
        self._dual_norms = torch.linalg.vector_norm(self._duals, dim=1)
        self._sketches = sketches
        self.positions: list[int] = []
        self.increases = torch.zeros(rotated.shape[0], dtype=torch.float64)
        self._features = torch.zeros(0, rotated.shape[1], dtype=torch.float64)
        self._factor: list[list[float]] = []
        self._coefficients = torch.zeros(0, rotated.shape[0], dtype=torch.float64)

    @classmethod
    def of_many(cls, removals: Sequence["Removal"]) -> "Removal":
        """Join the states of several queries that removed the same examples from the same set.

        Args:
            removals: One state per query, at least one.

        Returns:
            A state of its own for all of them.
        """
        joined = removals[0].copy()
        joined._duals = torch.cat([removal._duals for removal in removals])
        joined._source_norms = torch.cat([removal._source_norms for removal in removals])
        joined._dual_norms = torch.cat([removal._dual_norms for removal in removals])
        joined.increases = torch.cat([removal.increases for removal in removals])
        joined._coefficients = torch.cat([removal._coefficients for removal in removals], dim=1)
        return joined

    def copy(self) -> "Removal":
        """Branch off: later removals from either leave the other alone.

        Returns:
            A state with the same examples removed.
        """
        other = Removal.__new__(Removal)
        other.__dict__.update(self.__dict__)
        other.positions = list(self.positions)
        other._factor = list(self._factor)
        return other

    @property
    def duals(self) -> Float[Tensor, "q m"]:
        """Each query as w ∘ rotated: α_n = F_n · duals before any removal."""
        return self._duals

    @property
    def features(self) -> Float[Tensor, "t m"]:
        """F_a of the removed, in order."""
        return self._features

    @property
    def factor(self) -> list[list[float]]:
        """Rows of L, in order of removal."""
        return self._factor

    @property
    def coefficients(self) -> Float[Tensor, "t q"]:
        """The z of each removal, in order."""
        return self._coefficients

    def evaluate(self, positions: Int[Tensor, " s"]) -> tuple[Float[Tensor, "s q"], Float[Tensor, " s"]]:
        """Compute α_n and P_nn of some examples given T∖S, each by sums of its own.

        Args:
            positions: Their positions in T, shape [s], none removed.

        Returns:
            α [s, q], exactly 0 where it is within rounding of 0, and P_nn [s].
        """
        features = self._posterior.features(positions, self._sketches)
        evaluated = [self._evaluate_one(feature) for feature in features]
        duals = torch.stack([dual for dual, _, _ in evaluated])
        # Eigenvectors turn a product that is exactly 0 into rounding; it must not pass for information.
        duals = torch.where(duals.abs() <= self._rounding(features), 0.0, duals)
        return duals, torch.tensor([pivot for _, pivot, _ in evaluated], dtype=torch.float64)

    def _evaluate_one(self, feature: Float[Tensor, " m"]) -> tuple[Float[Tensor, " q"], float, list[float]]:
        # α_n, P_nn and the row of L that removing n would add, by forward substitution.
        weighted = self._posterior.weights * feature
        products = inner_products(self._features, weighted).tolist()
        pivot = inner_product(feature, weighted)
        if not self._posterior.is_kernel:
            noise = self._posterior.noise_variance
            products = [-product / noise for product in products]
            pivot = (1 - pivot) / noise
        row: list[float] = []
        for product, factor in zip(products, self._factor, strict=True):
            for along, earlier in zip(row, factor, strict=False):
                product -= along * earlier
            row.append(product / factor[-1])
            pivot -= row[-1] ** 2
        duals = inner_products(self._duals, feature)
        duals -= weighted_sum(self._coefficients, torch.tensor(row, dtype=torch.float64))
        return duals, pivot, row

    def remove(self, position: int) -> Removed:
        """Remove one example.

        Args:
            position: Its position in T, not yet removed.

        Returns:
            What the removal did.

        Raises:
            NotPositiveDefiniteError: If rounding leaves σ² − v(n | T∖S) without a positive value.
        """
        features = self._posterior.features(torch.tensor([position]), self._sketches)
        duals, pivot, row = self._evaluate_one(features[0])
        duals = torch.where(duals.abs() <= self._rounding(features)[0], 0.0, duals)
        if not pivot > 0:
            raise self._not_positive(position)
        length = math.sqrt(pivot)
        coefficients = duals / length
        self.positions.append(position)
        self.increases = self.increases + coefficients**2
        self._features = torch.cat([self._features, features])
        self._factor.append([*row, length])
        self._coefficients = torch.cat([self._coefficients, coefficients.unsqueeze(0)])
        return Removed(duals, pivot, coefficients)

    def remove_all(self, positions: Sequence[int]) -> None:
        """Remove several examples: :meth:`remove` one after the other, with all products made at once.

        Args:
            positions: Their positions in T, in order, none yet removed.

        Raises:
            NotPositiveDefiniteError: If rounding leaves σ² − v(n | T∖S) of one without a positive value.
        """
        if not positions:
            return
        posterior, t, size = self._posterior, len(self.positions), len(positions)
        features = posterior.features(torch.tensor(positions), self._sketches)
        every = torch.cat([self._features, features])
        fresh = features.contiguous().numpy()
        weighted = fresh * posterior.weights.numpy()
        products = row_dots(every.numpy()[None, :, :], weighted[:, None, :])  # [s, t + s]
        if not posterior.is_kernel:
            products = (np.eye(size, t + size, t) - products) / posterior.noise_variance
        duals = row_dots(self._duals.contiguous().numpy()[None, :, :], fresh[:, None, :])  # [s, q]
        rounding = self._rounding(features).numpy()
        factor = np.zeros((t + size, t + size))
        coefficients = np.concatenate([self._coefficients.numpy(), np.zeros((size, duals.shape[1]))])
        for place, row in enumerate(self._factor):
            factor[place, : place + 1] = row
        increases = self.increases.numpy().copy()
        for place in range(t + size):
            # Column by column: products and duals are those given all removals before this one.
            below = max(place - t + 1, 0)
            if place >= t:
                new = place - t
                pivot = float(products[new, place])
                if not pivot > 0:
                    raise self._not_positive(positions[new])
                factor[place, place] = math.sqrt(pivot)
                duals[new] = np.where(np.abs(duals[new]) <= rounding[new], 0.0, duals[new])
                coefficients[place] = duals[new] / factor[place, place]
                increases += coefficients[place] ** 2
                column = products[below:, place] / factor[place, place]
                products[below:, place + 1 :] -= column[:, None] * column
            else:
                column = products[:, place] / factor[place, place]
                products[:, place + 1 : t] -= column[:, None] * factor[place + 1 : t, place]
                products[:, t:] -= column[:, None] * column
            factor[t + below :, place] = column
            duals[below:] -= column[:, None] * coefficients[place]
        self.positions.extend(int(position) for position in positions)
        self.increases = torch.from_numpy(increases)
        self._features = every
        self._factor.extend(factor[place, : place + 1].tolist() for place in range(t, t + size))
        self._coefficients = torch.from_numpy(coefficients)

    def _not_positive(self, position: int) -> NotPositiveDefiniteError:
        noise = self._posterior.noise_variance
        smallest = max(float(self._posterior.eigenvalues[-1]) * 1e-12, 10 * noise)
        return NotPositiveDefiniteError(
            f"σ² − v(n | T) of position {position} is not positive in float64 at noise_variance {noise}. Use a "
            f"noise_variance of at least {smallest:.3g}.",
            smallest_noise_variance=smallest,
        )

    def _rounding(self, features: Float[Tensor, "s m"]) -> Float[Tensor, "s q"]:
        # Error of α_n = F_n · (w ∘ rotated): of the rotation, and of F_n. Rounding errors add like a random walk.
        posterior = self._posterior
        lengths = (
            torch.ones(features.shape[0], dtype=torch.float64)
            if posterior.is_kernel
            else torch.linalg.vector_norm(features, dim=1)
        )
        weighted = torch.linalg.vector_norm(features * (posterior.weights * posterior.resolved), dim=1)
        scale: Tensor = weighted[:, None] * self._source_norms + lengths[:, None] * self._dual_norms
        return 8 * math.sqrt(features.shape[1]) * unit_roundoff(torch.float64) * scale
