"""P = (K_TT + σ²I)⁻¹ of a whole conditioning set T at one σ², shared by all queries, without a solve.

With U, λ from the spectrum of T and w = 1/(λ + σ²), both forms read P off one row F_n per example:

* ``kernel`` (|T| ≤ d): F_n is a row of U, and P_nm = F_n · (w ∘ F_m);
* ``gram`` (|T| > d): F_n = φ_n U, and P_nm = (δ_nm − F_n · (w ∘ F_m)) / σ².

Either way α_n = (P k)_n = F_n · (w ∘ Uᵀk) or F_n · (w ∘ Uᵀφ_*), and c(x_*, n | T) = σ² α_n, σ² − v(n | T) = σ⁴ P_nn.
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from attribution.checks import check_noise_variance
from attribution.errors import NotPositiveDefiniteError
from attribution.exact_sums import unit_roundoff, weighted_sum
from attribution.spectrum import Spectrum

#: Reads stored sketches of T by position, float64, shape [s, d].
SketchReader = Callable[[Int[Tensor, " s"]], Float[Tensor, "s d"]]

#: Rows of T multiplied at a time while leverages are computed.
_GROUP_ROWS = 2048


class InverseCovariance:
    """P of a conditioning set at one σ²: what depends on σ² only is computed once, for any number of queries.

    Args:
        spectrum: Eigendecomposition of T's Gram matrix.
        noise_variance: σ² > 0, in squared units of the measurement.

    Attributes:
        spectrum: The decomposition.
        noise_variance: σ².
        eigenvalues: λ ≥ 0, shape [m]; those within rounding of zero are zero.
        weights: w = 1/(λ + σ²), shape [m].

    Raises:
        NotPositiveDefiniteError: If rounding in the Gram matrix is as large as σ²; the message names a σ² that works.
    """

    def __init__(self, spectrum: Spectrum, noise_variance: float) -> None:
        check_noise_variance(noise_variance)
        # A Gram matrix has no negative eigenvalue, so a negative one measures the rounding in all of them.
        rounding = max(0.0, -float(spectrum.eigenvalues[0]))
        if noise_variance < 4 * rounding:
            raise NotPositiveDefiniteError(
                f"noise_variance {noise_variance} is below the rounding of the Gram matrix ({rounding:.3g}): K + σ²I "
                f"is not positive definite in float64. Use a noise_variance of at least {8 * rounding:.3g}.",
                smallest_noise_variance=8 * rounding,
            )
        self.spectrum = spectrum
        self.noise_variance = noise_variance
        # A direction whose eigenvalue is rounding holds no product of T with any query: the query's part along it,
        # itself rounding, would be multiplied by 1/σ².
        resolution = 16 * unit_roundoff(torch.float64) * max(float(spectrum.eigenvalues[-1]), 0.0)
        self.resolved: Bool[Tensor, " m"] = spectrum.eigenvalues > resolution
        self.eigenvalues = torch.where(self.resolved, spectrum.eigenvalues, 0.0)
        self.weights = 1 / (self.eigenvalues + noise_variance)
        self._diagonal: dict[int, float] = {}

    @property
    def is_kernel(self) -> bool:
        """Whether K_TT was decomposed (|T| ≤ d), not ΦᵀΦ."""
        return self.spectrum.form == "kernel"

    def rotate(self, query_or_cross: Float[Tensor, " m"]) -> Float[Tensor, " m"]:
        """Express a query in the eigenvectors: Uᵀk in the kernel form, Uᵀφ_* in the gram form.

        Args:
            query_or_cross: k = Φ_T φ_* or φ_*, shape [m], float64.

        Returns:
            Its coefficients, shape [m], 0 along unresolved directions of the kernel form.
        """
        rotated = weighted_sum(self.spectrum.eigenvectors, query_or_cross)
        return torch.where(self.resolved, rotated, 0.0) if self.is_kernel else rotated

    def features(self, positions: Int[Tensor, " s"], sketches: SketchReader) -> Float[Tensor, "s m"]:
        """Give the rows F_n of the module's docstring, each by sums of its own.

        Args:
            positions: Positions in T, shape [s].
            sketches: Reads sketches of T by position; used by the gram form.

        Returns:
            F, shape [s, m].
        """
        if self.is_kernel:
            return self.spectrum.eigenvectors[positions]
        return torch.stack([weighted_sum(self.spectrum.eigenvectors, row) for row in sketches(positions)])

    def diagonal(self, positions: Int[Tensor, " s"], sketches: SketchReader) -> Float[Tensor, " s"]:
        """Give P_nn fast, to nominate, and keep it for later queries.

        Args:
            positions: Positions in T, shape [s].
            sketches: Reads sketches of T by position; used by the gram form, which costs d² per row the first time.

        Returns:
            P_nn, shape [s], 1/measurement².
        """
        missing = torch.tensor([p for p in positions.tolist() if p not in self._diagonal], dtype=torch.int64)
        for chunk in torch.split(missing, _GROUP_ROWS) if missing.numel() else ():
            if self.is_kernel:
                values = self.spectrum.eigenvectors[chunk].square() @ self.weights
            else:
                leverages = (sketches(chunk) @ self.spectrum.eigenvectors).square() @ self.weights
                values = (1 - leverages) / self.noise_variance
            self._diagonal.update(zip(chunk.tolist(), values.tolist(), strict=True))
        return torch.tensor([self._diagonal[p] for p in positions.tolist()], dtype=torch.float64)
