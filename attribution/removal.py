"""Removing examples from a conditioning set one by one (Eq. 54): a Cholesky factor of P_SS, grown by a row per example.

With L Lᵀ = P_SS and z = L⁻¹ α_S the variance of a query grows by ‖z‖² = α_Sᵀ P_SS⁻¹ α_S, and by its own z² with each
removal: sums of squares, never a difference of variances. All sums are of fixed order: here is what decides.
"""

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from attribution.errors import NotPositiveDefiniteError
from attribution.exact_sums import Array, row_dots
from attribution.inverse_covariance import InverseCovariance
from attribution.leverages import SketchReader

#: Directions kept of rows that are not removed: contenders of one step contend in the next.
_KEPT_DIRECTIONS = 64
#: Directions computed together, each eigenvector being read once for all of them.
_TOGETHER = 16


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
        duals: D_* of each query (``InverseCovariance.filter``), shape [q, m].
        source_norms: ‖k‖ or ‖φ_*‖ of each query, shape [q], to judge what is rounding.
        sketches: Reads sketches of T by position.

    Attributes:
        positions: S in order of removal.
        increases: v(x_q | T∖S) − v(x_q | T), shape [q], measurement².
        duals: D_* of each query: α_n = R_n · D_* before any removal.
    """

    def __init__(
        self,
        posterior: InverseCovariance,
        duals: Float[Tensor, "q m"],
        source_norms: Float[Tensor, " q"],
        sketches: SketchReader,
    ) -> None:
        self.duals = duals.contiguous()
        self.positions: list[int] = []
        self.increases = torch.zeros(duals.shape[0], dtype=torch.float64)
        self._posterior = posterior
        self._source_norms = source_norms
        self._dual_norms = torch.linalg.vector_norm(duals, dim=1)
        self._sketches = sketches
        self._room = np.zeros((0, duals.shape[1]))  # D_s of the removed, in order, and space for more
        self._factor: list[Array] = []
        self._coefficients = np.zeros((duals.shape[0], 0))  # [q, t]: summed over the removed, so they lie together
        self._known: OrderedDict[bytes, tuple[float, Array]] = OrderedDict()

    @classmethod
    def of_many(cls, removals: Sequence["Removal"]) -> "Removal":
        """Join the states of several queries that removed the same examples from the same set.

        Args:
            removals: One state per query, at least one.

        Returns:
            A state of its own for all of them.
        """
        joined = removals[0].copy()
        joined.duals = torch.cat([removal.duals for removal in removals])
        joined._source_norms = torch.cat([removal._source_norms for removal in removals])
        joined._dual_norms = torch.cat([removal._dual_norms for removal in removals])
        joined.increases = torch.cat([removal.increases for removal in removals])
        joined._coefficients = np.concatenate([removal._coefficients for removal in removals])
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
        other._known = OrderedDict(self._known)
        other._room = self._directions.copy()
        return other

    @property
    def directions(self) -> Float[Tensor, "t m"]:
        """D_s of the removed, in order."""
        return torch.from_numpy(self._directions)

    @property
    def _directions(self) -> Array:
        return self._room[: len(self.positions)]

    @property
    def factor(self) -> list[list[float]]:
        """Rows of L, in order of removal."""
        return [cast(list[float], row.tolist()) for row in self._factor]

    @property
    def coefficients(self) -> Float[Tensor, "t q"]:
        """The z of each removal, in order."""
        return torch.from_numpy(self._coefficients.T)

    def evaluate(self, positions: Int[Tensor, " s"]) -> tuple[Float[Tensor, "s q"], Float[Tensor, " s"]]:
        """Compute α_n of some examples given T∖S, and what the removals took from P_nn, each by sums of its own.

        Args:
            positions: Their positions in T, shape [s], none removed.

        Returns:
            α [s, q], exactly 0 where it is within rounding of 0, and P_nn given T less P_nn given T∖S, shape [s].
        """
        duals, along = self._evaluate(self._posterior.rows(positions, self._sketches))
        return torch.from_numpy(duals), torch.from_numpy(row_dots(along, along))

    def pivots(self, positions: Int[Tensor, " s"]) -> Float[Tensor, " s"]:
        """Compute P_nn of some examples given all of T; d² each in the gram form, once per distinct row.

        Args:
            positions: Their positions in T, shape [s].

        Returns:
            P_nn, shape [s].
        """
        rows = self._posterior.rows(positions, self._sketches)
        return torch.tensor([self._pivot(row)[0] for row in rows], dtype=torch.float64)

    def _evaluate(self, rows: Float[Tensor, "s m"]) -> tuple[Array, Array]:
        # α_n given T∖S, and the row of L that removing n would add, by forward substitution.
        values = np.ascontiguousarray(rows.numpy())
        along = row_dots(self._directions[None, :, :], values[:, None, :]) * self._posterior.covariance_unit()
        for place, factor in enumerate(self._factor):
            if place:
                along[:, place] -= row_dots(along[:, :place], factor[:place])
            along[:, place] /= factor[place]
        duals = row_dots(self.duals.numpy()[None, :, :], values[:, None, :])
        if self._factor:
            duals -= row_dots(self._coefficients[None, :, :], along[:, None, :])
        # A product that is exactly 0 comes as rounding; it must not pass for information.
        rounding = self._posterior.rounding(rows, self._source_norms, self._dual_norms).numpy()
        return np.where(np.abs(duals) <= rounding, 0.0, duals), along

    def _pivot(self, row: Float[Tensor, " m"]) -> tuple[float, Array]:
        # P_nn given T, and D_n.
        key = row.numpy().tobytes()
        if key not in self._known:
            self._learn(row.unsqueeze(0))
        return self._known[key]

    def _learn(self, rows: Float[Tensor, "s m"]) -> None:
        # Equal rows have equal directions: a pool of duplicates costs one.
        keyed = {row.numpy().tobytes(): row for row in rows}
        fresh = {key: row for key, row in keyed.items() if key not in self._known}
        if not fresh:
            return
        while len(self._known) > max(_KEPT_DIRECTIONS - len(fresh), 0):
            self._known.popitem(last=False)
        directions = self._posterior.directions(torch.stack(list(fresh.values()))).numpy()
        for (key, row), direction in zip(fresh.items(), directions, strict=True):
            product = float(row_dots(np.ascontiguousarray(row.numpy()), direction))
            pivot = product if self._posterior.is_kernel else (1 - product) / self._posterior.noise_variance
            # Its own copy: a view would keep all that were computed with it.
            self._known[key] = (pivot, direction.copy())

    def remove(self, position: int) -> Removed:
        """Remove one example.

        Args:
            position: Its position in T, not yet removed.

        Returns:
            What the removal did.

        Raises:
            NotPositiveDefiniteError: If rounding leaves σ² − v(n | T∖S) without a positive value.
        """
        rows = self._posterior.rows(torch.tensor([position]), self._sketches)
        duals, along = self._evaluate(rows)
        pivot, direction = self._pivot(rows[0])
        pivot -= float(row_dots(along[0], along[0]))
        if not pivot > 0:
            raise self.not_positive(position)
        length = math.sqrt(pivot)
        coefficients = duals[0] / length
        size = len(self.positions)
        if size == self._room.shape[0]:
            self._room = np.concatenate([self._room, np.zeros((max(8, size), direction.shape[0]))])
        self._room[size] = direction
        self.positions.append(position)
        self.increases = self.increases + torch.from_numpy(coefficients**2)
        self._factor.append(np.append(along[0], length))
        self._coefficients = np.concatenate([self._coefficients, coefficients[:, None]], axis=1)
        return Removed(torch.from_numpy(duals[0]), pivot, torch.from_numpy(coefficients))

    def remove_all(self, positions: Sequence[int]) -> None:
        """Remove several examples, one after the other.

        Args:
            positions: Their positions in T, in order, none yet removed.
        """
        for start in range(0, len(positions), _TOGETHER):
            chunk = [int(position) for position in positions[start : start + _TOGETHER]]
            self._learn(self._posterior.rows(torch.tensor(chunk), self._sketches))
            for position in chunk:
                self.remove(position)

    def not_positive(self, position: int) -> NotPositiveDefiniteError:
        """Say that rounding left nothing of P_nn.

        Args:
            position: The example's position in T.

        Returns:
            The error, with a σ² to try.
        """
        noise = self._posterior.noise_variance
        smallest = max(float(self._posterior.eigenvalues[-1]) * 1e-12, 10 * noise)
        return NotPositiveDefiniteError(
            f"σ² − v(n | T) of position {position} is not positive in float64 at noise_variance {noise}. Use a "
            f"noise_variance of at least {smallest:.3g}.",
            smallest_noise_variance=smallest,
        )
