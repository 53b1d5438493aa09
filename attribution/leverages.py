r"""Leverages h_n = φ_nᵀ(Φ_TᵀΦ_T + σ²I)⁻¹φ_n of the rows of T at one σ²: what greedy InfoLoss divides by (gram form).

P_nn = (1 − h_n)/σ² and v(n | T) = σ²h_n. With LLᵀ = Φ_TᵀΦ_T + σ²I, h_n = ‖L⁻¹φ_n‖²: one product of T with a triangular
matrix, half the work of a product with U. They come from fast products with a known error and decide wherever scores
differ by more; where they do not, :class:`attribution.removal.Removal` computes h_n in sums of fixed order.
"""

import threading
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from attribution.exact_sums import inner_product_error
from attribution.leverage_curves import KnownLeverages
from attribution.spectrum import Spectrum

#: Reads stored sketches of T by position, float64, shape [s, d].
SketchReader = Callable[[Int[Tensor, " s"]], Float[Tensor, "s d"]]

#: Rows of T multiplied at a time.
_GROUP_ROWS = 2048
#: Columns multiplied at a time: zeros above the diagonal cost 1 + _STRIP/d times the work.
_STRIP = 512
#: Relative error beyond which the triangular factor, whose error grows with the condition, gives way to U.
_LARGEST_ERROR = 1e-4


class Leverages:
    r"""Leverages of the rows of one T at one σ², each computed once, for any number of queries and threads.

    **Error.** ``relative_error`` bounds \|h − h'\|/h' between two ways to compute h from the decomposition: fast
    products, and :func:`attribution.spectral_filter.spectral_filter`. With A = Φ_TᵀΦ_T + σ²I, γ = γ_d of float64,
    τ = tr A · ‖A⁻¹‖ and κ = √(tr A · tr A⁻¹), each of these moves h by at most the multiple of γh given:

    * A ≠ LLᵀ by γ tr A (Higham 2002, Theorem 10.3), A ≠ UΛUᵀ by as much, UUᵀ ≠ I by γ: τ each;
    * rounding in L⁻¹, whose rows are solved for (\|XL − I\| ≤ γ\|X\|\|L\|), and in L⁻¹φ: 2κ each;
    * rounding in Uᵀφ, in the sum of eigenvectors, and in its product with φ: κ each, for ‖φ‖ ≤ √(h tr A).

    Together 3τ + 7κ, taken as 4(τ + 2κ). At the noise of its first use, relative 1 with N = 60,000, it is about 1e-7;
    where σ² is so small that it exceeds 1e-4, or directions of T are within rounding of nothing, h = ‖√w ∘ Uᵀφ‖² is
    used, whose error has no τ: 8κ.

    Args:
        spectrum: Eigendecomposition of T's Gram matrix, of the gram form.
        noise_variance: σ² > 0, in squared units of the measurement.
        weights: w = 1/(λ + σ²), shape [d].
        resolved: Which eigenvalues are not rounding, shape [d].
        known: Leverages of all rows of T that need no row.

    Attributes:
        relative_error: Bound of the relative error of every leverage that is computed from its row.
    """

    def __init__(
        self,
        spectrum: Spectrum,
        noise_variance: float,
        weights: Float[Tensor, " d"],
        resolved: Bool[Tensor, " d"],
        known: KnownLeverages | None = None,
    ) -> None:
        self._spectrum = spectrum
        self._noise_variance = noise_variance
        self._kept_weights = torch.where(resolved, weights, 0.0)
        trace = float((1 / weights).sum())
        tau = trace * float(weights.max())
        kappa = (trace * float(weights.sum())) ** 0.5
        rounding = inner_product_error(weights.shape[0], torch.float64)
        triangular = 4 * rounding * (tau + 2 * kappa)
        self._triangular = bool(resolved.all()) and triangular <= _LARGEST_ERROR
        self._eigenvector_error = 8 * rounding * kappa
        self.relative_error = triangular if self._triangular else self._eigenvector_error
        if known is None:
            self._values = self._errors = torch.empty(0, dtype=torch.float64)
        else:
            # What decides, by eigenvectors, has the error of eigenvectors.
            self._values, self._errors = known.values, known.errors + self._eigenvector_error * known.values
        self._lock = threading.Lock()

    @property
    def num_bytes(self) -> int:
        """What is kept in memory."""
        return 16 * self._values.numel()

    def of(
        self, positions: Int[Tensor, " s"], sketches: SketchReader
    ) -> tuple[Float[Tensor, " s"], Float[Tensor, " s"]]:
        """Give the leverages of some rows, computing those that no one asked for before.

        Args:
            positions: Positions in T, shape [s].
            sketches: Reads sketches of T by position.

        Returns:
            h, and a bound of its absolute error against the values that decide, each shape [s].
        """
        if not positions.numel():
            return torch.empty(0, dtype=torch.float64), torch.empty(0, dtype=torch.float64)
        with self._lock:  # who asks for the same meanwhile waits for it
            size = int(positions.max()) + 1
            if size > self._values.shape[0]:
                unknown = torch.full((size - self._values.shape[0],), float("nan"), dtype=torch.float64)
                self._values = torch.cat([self._values, unknown])
                self._errors = torch.cat([self._errors, unknown])
            missing = torch.unique(positions[self._values[positions].isnan()])
            if missing.numel():
                self._values[missing] = self._compute(missing, sketches)
                self._errors[missing] = self.relative_error * self._values[missing]
            return self._values[positions], self._errors[positions]

    def refine(self, positions: Int[Tensor, " s"], sketches: SketchReader) -> None:
        """Compute leverages anew that were given with a larger error than a float64 product with U has.

        Args:
            positions: Positions in T, shape [s].
            sketches: Reads sketches of T by position.
        """
        self.of(positions, sketches)
        with self._lock:
            poor = positions[self._errors[positions] > self._eigenvector_error * self._values[positions]]
            if not poor.numel():
                return
            self._values, self._errors = self._values.clone(), self._errors.clone()
            for group in torch.split(poor, _GROUP_ROWS):
                self._values[group] = (sketches(group) @ self._spectrum.eigenvectors).square_() @ self._kept_weights
            self._errors[poor] = self._eigenvector_error * self._values[poor]

    def _compute(self, positions: Int[Tensor, " s"], sketches: SketchReader) -> Float[Tensor, " s"]:
        right = self._inverse_factor() if self._triangular else self._rotation()
        dim, strip = right.shape[0], min(_STRIP, right.shape[0])
        leverages = []
        for group in torch.split(positions, _GROUP_ROWS):
            rows = sketches(group)
            total = torch.zeros(group.shape[0], dtype=torch.float64)
            room = torch.empty(group.shape[0] * strip, dtype=torch.float64)
            for left in range(0, dim, strip):
                end = min(left + strip, dim)
                depth = end if self._triangular else dim  # below it, the triangle's columns are 0
                product = room[: group.shape[0] * (end - left)].view(group.shape[0], end - left)
                torch.mm(rows[:, :depth], right[:depth, left:end], out=product)
                total += product.square_().sum(dim=1)
            leverages.append(total)
        return torch.cat(leverages)

    def _inverse_factor(self) -> Float[Tensor, "d d"]:
        # L⁻ᵀ, upper triangular, a strip of columns at a time: each solves Lᵀ x = e, no deeper than x is not 0.
        covariance = self._spectrum.gram.clone()
        covariance.diagonal().add_(self._noise_variance)
        upper = torch.linalg.cholesky(covariance).T
        dim = upper.shape[0]
        inverse = covariance.zero_()
        for left in range(0, dim, _STRIP):
            end = min(left + _STRIP, dim)
            units = torch.zeros(end, end - left, dtype=torch.float64)
            units[left:] = torch.eye(end - left, dtype=torch.float64)
            inverse[:end, left:end] = torch.linalg.solve_triangular(upper[:end, :end], units, upper=True)
        return inverse

    def _rotation(self) -> Float[Tensor, "d d"]:
        # √w ∘ U, without the directions of which T has nothing.
        return self._spectrum.eigenvectors * self._kept_weights.sqrt()
