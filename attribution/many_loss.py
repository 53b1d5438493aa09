r"""InfoLoss for many queries: M = P = (K_TT + σ²I)⁻¹ and b = α = P k, both read off one row vector per example.

With U, λ from the spectrum of T and w = 1/(λ + σ²):

* kernel form (|T| ≤ d): x_n is a row of U, L = diag(w), P_nn = x_n · L x_n, α_nq = x_n · (w ∘ Uᵀ k_q);
* gram form (|T| > d): x_n = φ_n, L = −Λ/σ² with Λ = U diag(w) Uᵀ, P_nn = (1 − φ_n · Λ φ_n)/σ², α_nq = φ_n · Λ φ_q.

Either way P_nm = x_n · L x_m for n ≠ m, so removing a example by example gives directions

    e = (L x_a − Σ_i (x_a · e_i) e_i) / √P_aa   with   P_na / √P_aa = x_n · e,

and α_n, P_nn given the removals follow from the products x_n · e_i. No Cholesky factor is solved with.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from attribution.candidates import Candidates, DenseCandidates
from attribution.errors import NotPositiveDefiniteError
from attribution.exact_sums import Array, inner_product_error, row_dots, unit_roundoff
from attribution.inverse_covariance import InverseCovariance
from attribution.leverages import SketchReader
from attribution.many_pursuit import Conditioned, Evaluated
from attribution.posterior import QueryPosterior
from attribution.row_products import RowProducts, row_products

#: Values (rows × d) up to which a pool's products are made in float64; beyond, float32 halves their memory.
_FLOAT64_VALUES = 2**25
#: Contenders whose L x is remembered: they contend again at the next picks.
_MOST_MAPPED = 256


@dataclass(frozen=True)
class ManyPosterior:
    """Many queries given T, or T without some examples.

    Attributes:
        posterior: P at one σ².
        duals: ρ_q with α_nq = x_n · ρ_q, nothing left out, shape [q, m].
        sources: ‖k_q‖ or ‖φ_q‖, to judge what is rounding, shape [q].
        variances: v(x_q | T), the excluded left out, shape [q], measurement².
        excluded: Positions in T that are left out.
        sketches: Reads sketches of T by position, float64.
    """

    posterior: InverseCovariance
    duals: Float[Tensor, "q m"]
    sources: Float[Tensor, " q"]
    variances: Float[Tensor, " q"]
    excluded: tuple[int, ...]
    sketches: SketchReader

    @classmethod
    def of_posteriors(cls, posteriors: Sequence[QueryPosterior]) -> "ManyPosterior":
        """Join posteriors of single queries.

        Args:
            posteriors: At least one; of one set, with the same exclusions.

        Returns:
            The same for all of them.
        """
        first = posteriors[0]
        given = first.posterior
        sources = [each.cross if given.is_kernel else each.query for each in posteriors]
        stacked = torch.stack([source.double() for source in sources if source is not None])
        return cls(
            given,
            _duals(given, stacked),
            torch.linalg.vector_norm(stacked, dim=1),
            torch.tensor([each.variance for each in posteriors], dtype=torch.float64),
            first.excluded,
            first.sketches,
        )

    @classmethod
    def of_queries(
        cls, posterior: InverseCovariance, queries: Float[Tensor, "q d"], sketches: SketchReader
    ) -> "ManyPosterior":
        """Condition many queries on T at once, in the gram form.

        Args:
            posterior: P in the gram form (|T| > d).
            queries: Sketches of the queries, shape [q, d].
            sketches: Reads sketches of T by position.

        Returns:
            The queries given T.
        """
        queries = queries.double()
        rotated = queries @ posterior.spectrum.eigenvectors
        variances = posterior.noise_variance * (rotated.square() @ posterior.weights)
        norms = torch.linalg.vector_norm(queries, dim=1)
        return cls(posterior, _duals(posterior, queries), norms, variances, (), sketches)


def _duals(posterior: InverseCovariance, sources: Float[Tensor, "q m"]) -> Float[Tensor, "q m"]:
    rotated = sources @ posterior.spectrum.eigenvectors
    if posterior.is_kernel:
        return posterior.weights * torch.where(posterior.resolved, rotated, 0.0)
    return (posterior.weights * rotated) @ posterior.spectrum.eigenvectors.T


class ManyLossSystem:
    """P and α of a pool within T for many queries, given T without what was removed.

    Its memory beside the candidates is 8 (q m + 2 t m + t q) bytes for a budget of t, and 8 d² in the gram form.

    Args:
        given: The queries given T.
        pool: Positions in T that may be removed, shape [c].
        budget: How many will be removed.
        weigh: Maps the variances v(x_q | T∖A) to the weights w_q.
        candidates: The pool's rows for fast products, in the order of ``pool``; read into memory, if None. Used by the
            gram form only.
        products: Makes the products that decide.

    Attributes:
        rows: The x_n of the pool: what a table multiplies.
        increases: v(x_q | T∖A) − v(x_q | T), shape [q], as sums of squares.
    """

    def __init__(
        self,
        given: ManyPosterior,
        pool: Int[Tensor, " c"],
        budget: int,
        weigh: Callable[[Float[Tensor, " q"]], Float[Tensor, " q"]],
        candidates: Candidates | None = None,
        products: RowProducts = row_products,
    ) -> None:
        posterior = given.posterior
        self._given, self._posterior, self._pool, self._weigh = given, posterior, pool, weigh
        self._noise = posterior.noise_variance
        self._products = products
        self.vectors = given.duals.contiguous()
        self.rows = self._rows(candidates)
        self.squared_norms = self.rows.squared_norms()
        self.diagonal, nominated_error = posterior.diagonal(pool, given.sketches)
        size = posterior.weights.shape[0]
        capacity = budget + len(given.excluded)
        self.decided_error = 8 * inner_product_error(size + capacity, torch.float64)
        # Of P_nn: relative in the kernel form; of 1 − h_n, absolute, in the gram form.
        self.diagonal_error = nominated_error + (
            2 * self.decided_error * self.diagonal
            if posterior.is_kernel
            else torch.full_like(self.diagonal, self.decided_error / self._noise)
        )
        # 1/P_nn = σ² + v(n | T∖n) ≤ σ² + K_nn, and the largest eigenvalue bounds every K_nn of T.
        self.floor = torch.full_like(self.diagonal, float(posterior.weights[-1]) * 0.5)
        eigenvectors = posterior.spectrum.eigenvectors
        self._inverse = (
            None if posterior.is_kernel else ((eigenvectors * posterior.weights) @ eigenvectors.T).contiguous().numpy()
        )
        count = self.vectors.shape[0]
        self._directions, self._transposed = np.zeros((capacity, size)), np.zeros((size, capacity))
        self._coefficients = np.zeros((count, capacity))
        self._removed = 0
        self._mapped: dict[int, Array] = {}
        self.increases = torch.zeros(count, dtype=torch.float64)

    def exclude(self) -> list[Conditioned]:
        """Remove what the posterior leaves out; its variances already know.

        Returns:
            What each removal did, for the table to follow.
        """
        conditioned = [self._remove(position) for position in self._given.excluded]
        self.increases = torch.zeros_like(self.increases)
        return conditioned

    def evaluate(self, positions: Int[Tensor, " s"]) -> list[Evaluated]:
        """Compute α_n and P_nn given what was removed, each row by sums of its own.

        Args:
            positions: Places in the pool, shape [s].

        Returns:
            One evaluation per row; an α within rounding of 0 is exactly 0, for it must not pass for information.
        """
        return [
            Evaluated(torch.from_numpy(duals), pivot) for duals, pivot, _, _ in self._evaluate(self._pool[positions])
        ]

    def accept(self, position: int) -> Conditioned:
        """Remove one example of the pool.

        Args:
            position: Its place in the pool.

        Returns:
            What it did.
        """
        return self._remove(int(self._pool[position]))

    def sketches(self, positions: Int[Tensor, " s"]) -> Float[Tensor, "s d"]:
        """Read examples as stored.

        Args:
            positions: Places in the pool, shape [s].

        Returns:
            Sketches, shape [s, d], float64.
        """
        return self._given.sketches(self._pool[positions])

    def weights(self) -> Float[Tensor, " q"]:
        """Weigh the queries.

        Returns:
            w_q, shape [q].
        """
        return self._weigh(self._given.variances + self.increases)

    def _rows(self, candidates: Candidates | None) -> Candidates:
        if self._posterior.is_kernel:
            return DenseCandidates(self._posterior.spectrum.eigenvectors[self._pool], torch.float64)
        if candidates is not None:
            return candidates
        rows = self._given.sketches(self._pool)
        return DenseCandidates(rows, torch.float64 if rows.numel() <= _FLOAT64_VALUES else torch.float32)

    def _evaluate(self, positions: Int[Tensor, " s"]) -> list[tuple[Array, float, Array, Array]]:
        # α, P_nn, L x and the products with earlier directions of some positions in T.
        kernel = self._posterior.is_kernel
        source = self._posterior.spectrum.eigenvectors[positions] if kernel else self._given.sketches(positions)
        rows = np.ascontiguousarray(source.numpy())
        mapped = self._map(positions.tolist(), rows)
        diagonal = row_dots(rows, mapped)
        if not kernel:
            diagonal = 1 / self._noise + diagonal
        t = self._removed
        duals = self._products(self.vectors.numpy(), rows)
        rounding = self._rounding(rows, mapped)
        along = self._products(self._directions[:t], rows)
        if t:
            duals = duals - self._products(self._coefficients, along)
            diagonal = diagonal - row_dots(along, along)
        duals = np.where(np.abs(duals) <= rounding, 0.0, duals)
        return [(duals[s], float(diagonal[s]), mapped[s], along[s]) for s in range(len(rows))]

    def _map(self, positions: list[int], rows: Array) -> Array:
        # L x; in the gram form one pass over d² values for all rows not met before.
        if self._inverse is None:
            return np.ascontiguousarray(rows * self._posterior.weights.numpy())
        while len(self._mapped) > _MOST_MAPPED:
            self._mapped.pop(next(iter(self._mapped)))
        fresh = [place for place, position in enumerate(positions) if position not in self._mapped]
        if fresh:
            found = self._products(self._inverse, np.ascontiguousarray(rows[fresh])) / -self._noise
            for place, values in zip(fresh, found, strict=True):
                self._mapped[positions[place]] = values
        return np.stack([self._mapped[position] for position in positions])

    def _rounding(self, rows: Array, mapped: Array) -> Array:
        # Error of α_n = x_n · ρ_q: of ρ_q, and of the product. Rounding errors add like a random walk.
        # Only resolved directions carry a product of T with a query in the kernel form.
        lengths = np.sqrt(row_dots(rows, rows))
        known = mapped * self._posterior.resolved.numpy() if self._posterior.is_kernel else mapped * self._noise
        reach = np.sqrt(row_dots(known, known))
        duals = torch.linalg.vector_norm(self.vectors, dim=1).numpy()
        scale = reach[:, None] * self._given.sources.numpy() + lengths[:, None] * duals
        unit = 8 * math.sqrt(rows.shape[1]) * unit_roundoff(torch.float64)
        rounding: Array = unit * scale
        return rounding

    def _remove(self, position: int) -> Conditioned:
        ((duals, pivot, mapped, along),) = self._evaluate(torch.tensor([position]))
        if not pivot > 0:
            smallest = max(float(self._posterior.eigenvalues[-1]) * 1e-12, 10 * self._noise)
            raise NotPositiveDefiniteError(
                f"σ² − v(n | T) of position {position} is not positive in float64 at noise_variance {self._noise}. Use "
                f"a noise_variance of at least {smallest:.3g}.",
                smallest_noise_variance=smallest,
            )
        length, t = math.sqrt(pivot), self._removed
        direction = mapped if t == 0 else mapped - self._products(self._transposed, along[None])[0]
        direction = direction / length
        coefficients = duals / length
        self._directions[t], self._transposed[:, t] = direction, direction
        self._coefficients[:, t] = coefficients
        self._removed = t + 1
        self._mapped.pop(position, None)
        self.increases = self.increases + torch.from_numpy(coefficients**2)
        rounding = self.decided_error * (float(np.linalg.norm(mapped)) / length + float(np.linalg.norm(direction)))
        return Conditioned(torch.from_numpy(direction), rounding, torch.from_numpy(coefficients))
