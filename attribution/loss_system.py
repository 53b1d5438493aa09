"""InfoLoss as a pursuit (Eq. 62): M = P = (K_TT + σ²I)⁻¹ and b = α = P k over the pool, given what is not yet removed.

No pass over Φ is needed while |T| ≤ d; beyond, a column costs one product of the pool with Λ_T⁻¹ φ_a.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attribution.candidates import Candidates, DenseCandidates
from attribution.exact_sums import inner_product_error, unit_roundoff
from attribution.inverse_covariance import InverseCovariance
from attribution.leverages import SketchReader
from attribution.pursuit import Column, Evaluated, Nominated
from attribution.removal import Removal, Removed
from attribution.rounded_pursuit import Given, Move

#: Values (rows × d) up to which a pool's products are made in float64; beyond, float32 halves their memory.
_FLOAT64_VALUES = 2**25

#: Maps the removal state to G of the score ‖b_n G‖².
Weighting = Callable[[Removal], Float[Tensor, "q q"] | Float[Tensor, " q"]]


def unweighted(removal: Removal) -> Float[Tensor, " q"]:
    """Count every query alike.

    Args:
        removal: The removal state.

    Returns:
        Ones, shape [q].
    """
    return torch.ones_like(removal.increases)


class LossSystem:
    """P and α over a pool within T, given T without what was removed.

    Args:
        posterior: The posterior given T.
        removal: The removal state, advanced in place.
        pool: Positions in T that may be removed, shape [c].
        sketches: Reads sketches of T by position.
        candidates: The pool's rows for fast products, in the order of ``pool``; read into memory, if None. Used by the
            gram form only.
        weighting: Weights of the queries.

    Attributes:
        removal: The removal state.
        removed: What the latest pick did.
    """

    def __init__(
        self,
        posterior: InverseCovariance,
        removal: Removal,
        pool: Int[Tensor, " c"],
        sketches: SketchReader,
        candidates: Candidates | None = None,
        weighting: Weighting = unweighted,
    ) -> None:
        self.removal = removal
        self.removed: Removed | None = None
        self._posterior = posterior
        self._pool = pool
        self._sketches = sketches
        self._weighting = weighting
        # P_nn given T, and its error against the value that decides: 0 once that value was computed.
        self._base, self._base_error = posterior.diagonal(pool, sketches)
        self._columns: list[_Column] = []
        self._residual, self._residual_error = removal.duals[0].clone(), 0.0
        size = posterior.weights.shape[0]
        self._decided_error = inner_product_error(size, torch.float64)
        if posterior.is_kernel:
            vectors = posterior.spectrum.eigenvectors
            everything = torch.equal(pool, torch.arange(vectors.shape[0]))
            self._rows = vectors if everything else posterior.rows(pool, sketches)  # [c, n]
            self._relative_error = 2 * self._decided_error
            self._norms = torch.ones_like(self._base)
        else:
            if candidates is None:
                rows = sketches(pool)
                small = rows.numel() <= _FLOAT64_VALUES
                candidates = DenseCandidates(rows, torch.float64 if small else torch.float32)
            self._candidates = candidates
            self._relative_error = candidates.relative_error + self._decided_error
            self._norms = torch.sqrt(candidates.squared_norms())

    def nominate(self) -> Nominated:
        """Compute α_n and P_nn of the whole pool, fast, given what was removed before.

        Returns:
            b = α and the diagonal P_nn.
        """
        duals = self.removal.duals
        targets = self._multiply(duals).T.contiguous()
        diagonal, error = self._base.clone(), self._base_error.clone()
        target_error = self._relative_error * self._norms
        target_scale = torch.linalg.vector_norm(duals, dim=1)
        for place in range(len(self.removal.positions)):
            column = self._column(place)
            targets -= column.values[:, None] * column.coefficients
            diagonal -= column.values**2
            error += 2 * column.values.abs() * column.error + column.error**2
            # ‖z‖ bounds each coefficient's share of the error.
            share = column.coefficients.abs() / target_scale.clamp(min=1e-300)
            target_error = target_error + column.error * float(share.max())
        return Nominated(
            targets=targets,
            target_error=target_error,
            target_scale=target_scale,
            diagonal=diagonal,
            diagonal_error=error,
            floor=self._floor(),
            decided_error=self._decided_error * self._norms,
            decided_diagonal_error=4 * unit_roundoff(torch.float64) * self._base.abs(),
        )

    def given(self) -> Given:
        """Give the system of one query in the gram form before any removal, without a product.

        Returns:
            The residual D_* and the diagonal P_nn.
        """
        length = float(torch.linalg.vector_norm(self._residual))
        self._residual_error = self._decided_error * length
        return Given(
            residual=self._residual.numpy().copy(),
            residual_error=self._residual_error,
            diagonal=self._base.numpy(),
            diagonal_error=self._base_error.numpy(),
            floor=self._floor().numpy(),
            noise_variance=None,
        )

    def moves(self) -> Iterator[Move]:
        """Give what was removed since this was last asked, each with the direction of its column.

        Yields:
            E_a with R_n · E_a = P_na/√P_aa given what was removed before a; the residual loses α_a/√P_aa times it.
        """
        for place in range(len(self._columns), len(self.removal.positions)):
            added = self._add_direction(place)
            coefficient = float(self.removal.coefficients[place, 0])
            error = added.error + self._decided_error * added.length
            self._residual = self._residual - coefficient * added.direction
            self._residual_error += abs(coefficient) * (error + self._decided_error * added.length)
            yield Move(
                row=added.direction.numpy(),
                error=error,
                coefficient=coefficient,
                residual=self._residual.numpy(),
                residual_error=self._residual_error,
            )

    def evaluate(self, positions: Int[Tensor, " s"]) -> Evaluated:
        """Compute α_n in float64, given what was removed; P_nn with the error of a leverage.

        Args:
            positions: Places in the pool, shape [s].

        Returns:
            α [s, q], P_nn [s] and its error.
        """
        if self._posterior.is_kernel:
            self._settle_base(positions)
        duals, taken = self.removal.evaluate(self._pool[positions])
        error = self._base_error[positions]
        # Where the base is not the value that decides, their differences from `taken` are rounded as well.
        error = torch.where(error > 0, error + 4 * unit_roundoff(torch.float64) * (self._base[positions] + taken), 0.0)
        pivots = self._base[positions] - taken
        self._refuse_lost(positions[error == 0], duals[error == 0], pivots[error == 0])
        return Evaluated(duals, pivots, error)

    def settle(self, positions: Int[Tensor, " s"]) -> Float[Tensor, " s"]:
        """Compute P_nn in float64, given what was removed: d² for each distinct row of the gram form.

        Args:
            positions: Places in the pool, shape [s].

        Returns:
            P_nn [s].
        """
        self._settle_base(positions)
        duals, taken = self.removal.evaluate(self._pool[positions])
        pivots = self._base[positions] - taken
        self._refuse_lost(positions, duals, pivots)
        return pivots

    def twins(self, position: int, others: Int[Tensor, " s"]) -> Int[Tensor, " t"]:
        """Name equal rows whose values differ: in the kernel form, where eigenvectors hold them only up to rounding.

        Args:
            position: A place in the pool.
            others: Other places, shape [s].

        Returns:
            Those of them with the same sketch or its negative, shape [t].
        """
        if not self._posterior.is_kernel:
            return others[:0]
        sketch = self._sketches(self._pool[[position]])
        rows = self._sketches(self._pool[others])
        return others[(rows == sketch).all(dim=1) | (rows == -sketch).all(dim=1)]

    def accept(self, position: int) -> None:
        """Remove one example of the pool.

        Args:
            position: Its place in the pool.
        """
        self.removed = self.removal.remove(int(self._pool[position]))

    def column(self) -> Column:
        """Multiply the pool with the latest removal's direction: the step's one product.

        Returns:
            P_na/√P_aa given what was removed before.
        """
        return self._column(len(self.removal.positions) - 1)

    def weighting(self) -> Float[Tensor, "q q"] | Float[Tensor, " q"]:
        """Weigh the queries.

        Returns:
            G of the score ‖b_n G‖².
        """
        return self._weighting(self.removal)

    def _floor(self) -> Float[Tensor, " c"]:
        # 1/P_nn = σ² + v(n | T∖n) ≤ σ² + K_nn, and the largest eigenvalue bounds every K_nn of T.
        return torch.full_like(self._base, float(self._posterior.weights[-1]) * 0.5)

    def _settle_base(self, positions: Int[Tensor, " s"]) -> None:
        new = positions[self._base_error[positions] > 0]
        if new.numel():
            self._base[new] = self.removal.pivots(self._pool[new])
            self._base_error[new] = 0.0

    def _refuse_lost(
        self, positions: Int[Tensor, " s"], duals: Float[Tensor, "s q"], pivots: Float[Tensor, " s"]
    ) -> None:
        # P_nn is positive; where rounding left nothing of it, the rule cannot say what the row is worth.
        lost = ~(pivots > 0) & (duals != 0).any(dim=1)
        if bool(lost.any()):
            raise self.removal.not_positive(int(self._pool[positions[lost][0]]))

    def _multiply(self, directions: Float[Tensor, "b m"]) -> Float[Tensor, "b c"]:
        # R_n · D for the whole pool, fast: one product with the pool's rows.
        if self._posterior.is_kernel:
            return torch.stack([self._rows @ direction for direction in directions])
        return self._candidates.products(directions)

    def _column(self, place: int) -> Column:
        # The column of P that the removal at `place` used, given those before it: one product with its direction.
        added = self._add_direction(place)
        return Column(
            self._multiply(added.direction.unsqueeze(0))[0],
            torch.from_numpy(self._norms.numpy() * (added.error + self._relative_error * added.length)),
            self.removal.coefficients[place],
        )

    def _add_direction(self, place: int) -> "_Column":
        # E_a with column R_n · E_a of the rows left in. With L of P_SS and D_a as `removal` has them,
        # E_a = ±(D_a − Σ_j L_aj E_j)/L_aa. Its error is a multiple of ‖R_n‖: of the products, of E_a's own sum, and
        # what those of E_j carry over.
        factor = self.removal.factor[place]
        unit = self._posterior.covariance_unit()
        direction = unit * self.removal.directions[place]
        length = float(torch.linalg.vector_norm(direction))
        error = self._relative_error * length
        for along, earlier in zip(factor, self._columns, strict=False):
            direction = direction - along * earlier.direction
            length += abs(along) * earlier.length
            error += abs(along) * earlier.error
        rounding = 2 * (place + 3) * unit_roundoff(torch.float64)
        direction = direction / factor[place]
        error = (error + (rounding + self._decided_error) * length) / factor[place]
        self._columns.append(_Column(direction, float(torch.linalg.vector_norm(direction)), error))
        return self._columns[-1]


@dataclass(frozen=True)
class _Column:
    # E_a and its norm; what R_n · E_a is off the row of L that removing n would add, relative to ‖R_n‖.
    direction: Float[Tensor, " m"]
    length: float
    error: float
