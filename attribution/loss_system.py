"""InfoLoss as a pursuit (Eq. 62): M = P = (K_TT + σ²I)⁻¹ and b = α = P k over the pool, given what is not yet removed.

No pass over Φ is needed while |T| ≤ d; beyond, a column costs one product of the pool with Λ_T⁻¹ φ_a.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attribution.candidates import Candidates, DenseCandidates
from attribution.exact_sums import inner_product_error, inner_products
from attribution.inverse_covariance import InverseCovariance, SketchReader
from attribution.pursuit import Column, Nominated
from attribution.removal import Removal, Removed

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
        self._weighting = weighting
        self._diagonal = posterior.diagonal(pool, sketches)
        self._columns: list[Column] = []
        size = posterior.weights.shape[0]
        if posterior.is_kernel:
            self._features = posterior.features(pool, sketches)  # [c, n]
            self._relative_error = inner_product_error(size, torch.float64)
            self._norms = torch.ones_like(self._diagonal)
        else:
            if candidates is None:
                rows = sketches(pool)
                small = rows.numel() <= _FLOAT64_VALUES
                candidates = DenseCandidates(rows, torch.float64 if small else torch.float32)
            self._candidates = candidates
            self._relative_error = candidates.relative_error + inner_product_error(size, torch.float64)
            self._norms = torch.sqrt(candidates.squared_norms())

    def nominate(self) -> Nominated:
        """Compute α_n and P_nn of the whole pool, fast, given what was removed before.

        Returns:
            b = α and the diagonal P_nn.
        """
        duals = self.removal.duals
        targets = torch.stack([self._multiply(dual) for dual in duals], dim=1)
        diagonal, error = self._diagonal.clone(), self._diagonal_rounding()
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
        decided = inner_product_error(self._posterior.weights.shape[0], torch.float64)
        return Nominated(
            targets=targets,
            target_error=target_error,
            target_scale=target_scale,
            diagonal=diagonal,
            diagonal_error=error,
            # 1/P_nn = σ² + v(n | T∖n) ≤ σ² + K_nn, and the largest eigenvalue bounds every K_nn of T.
            floor=torch.full_like(diagonal, float(self._posterior.weights[-1]) * 0.5),
            decided_error=decided * self._norms,
            decided_diagonal_error=self._diagonal_rounding(),
        )

    def evaluate(self, positions: Int[Tensor, " s"]) -> tuple[Float[Tensor, "s q"], Float[Tensor, " s"]]:
        """Compute α_n and P_nn in float64, given what was removed.

        Args:
            positions: Places in the pool, shape [s].

        Returns:
            α [s, q] and P_nn [s].
        """
        return self.removal.evaluate(self._pool[positions])

    def accept(self, position: int) -> Column:
        """Remove one example of the pool.

        Args:
            position: Its place in the pool.

        Returns:
            P_na/√P_aa given what was removed before.
        """
        self.removed = self.removal.remove(int(self._pool[position]))
        return self._column(len(self.removal.positions) - 1)

    def weighting(self) -> Float[Tensor, "q q"] | Float[Tensor, " q"]:
        """Weigh the queries.

        Returns:
            G of the score ‖b_n G‖².
        """
        return self._weighting(self.removal)

    def _diagonal_rounding(self) -> Float[Tensor, " c"]:
        # Error of P_nn: relative in the kernel form; of 1 − h_n, absolute, in the gram form.
        decided = inner_product_error(self._posterior.weights.shape[0], torch.float64)
        if self._posterior.is_kernel:
            return 2 * decided * self._diagonal
        return torch.full_like(self._diagonal, 4 * decided / self._posterior.noise_variance)

    def _multiply(self, right: Float[Tensor, " m"]) -> Float[Tensor, " c"]:
        # F · right for the whole pool, fast: one product with the pool's rows.
        if self._posterior.is_kernel:
            return self._features @ right
        direction = inner_products(self._posterior.spectrum.eigenvectors, right)
        return self._candidates.products(direction.unsqueeze(0))[0]

    def _column(self, place: int) -> Column:
        # The column of P that the removal at `place` used, given those before it.
        feature, factor = self.removal.features[place], self.removal.factor[place]
        weighted = self._posterior.weights * feature
        products = self._multiply(weighted)
        error = self._relative_error * self._norms * float(torch.linalg.vector_norm(weighted))
        if not self._posterior.is_kernel:
            own = self._pool == self.removal.positions[place]
            products = (own.double() - products) / self._posterior.noise_variance
            error = error / self._posterior.noise_variance
        for earlier, column in enumerate(self._columns[:place]):
            products = products - column.values * factor[earlier]
            error = error + column.error * abs(factor[earlier])
        pivot = factor[place]
        column = Column(products / pivot, error / pivot, self.removal.coefficients[place])
        self._columns.append(column)
        return column
