r"""P = (K_TT + σ²I)⁻¹ of a whole conditioning set T at one σ², shared by all queries, without a solve.

With U, λ from the spectrum of T and w = 1/(λ + σ²), both forms read P off a row R_n and a direction D_n per example:

* ``kernel`` (|T| ≤ d): R_n is a row of U, D_n = w ∘ R_n, and P_nm = R_n · D_m;
* ``gram`` (|T| > d): R_n = φ_n, D_n = (Φ_TᵀΦ_T + σ²I)⁻¹ φ_n = U(w ∘ Uᵀφ_n), and P_nm = (δ_nm − R_n · D_m)/σ².

Either way α_n = (P k)_n = R_n · D_* with D_* = w ∘ Uᵀk or U(w ∘ Uᵀφ_*), and c(x_*, n | T) = σ² α_n,
σ² − v(n | T) = σ⁴ P_nn. A row costs nothing to have; a direction of the gram form costs d².
"""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from attribution.checks import check_noise_variance
from attribution.errors import NotPositiveDefiniteError
from attribution.exact_sums import unit_roundoff, weighted_sum
from attribution.leverage_curves import KnownLeverages
from attribution.leverages import Leverages, SketchReader
from attribution.spectral_filter import SpectralFilter, spectral_filter
from attribution.spectrum import Spectrum

#: Below this, 1/σ² is too near to the end of float64 for anything to be computed with it.
_SMALLEST_NOISE = 1e-290


class InverseCovariance:
    """P of a conditioning set at one σ²: what depends on σ² only is computed once, for any number of queries.

    Args:
        spectrum: Eigendecomposition of T's Gram matrix.
        noise_variance: σ² > 0, in squared units of the measurement.
        known_leverages: Leverages of all rows of T at this σ², if computed before; used by the gram form.
        filtered: Multiplies eigenvectors; used by the gram form.

    Attributes:
        spectrum: The decomposition.
        noise_variance: σ².
        eigenvalues: λ ≥ 0, shape [m]; those within rounding of zero are zero.
        resolved: Which eigenvalues are not, shape [m].
        weights: w = 1/(λ + σ²), shape [m].
        leverages: Leverages of the rows of T, computed when first asked for; None in the kernel form.

    Raises:
        NotPositiveDefiniteError: If rounding in the Gram matrix is as large as σ²; the message names a σ² that works.
    """

    def __init__(
        self,
        spectrum: Spectrum,
        noise_variance: float,
        known_leverages: KnownLeverages | None = None,
        filtered: SpectralFilter = spectral_filter,
    ) -> None:
        check_noise_variance(noise_variance)
        # A direction whose eigenvalue is rounding holds no product of T with any query: the query's part along it,
        # itself rounding, would be multiplied by 1/σ².
        self.resolved: Bool[Tensor, " m"] = spectrum.resolved
        # A Gram matrix has no negative eigenvalue, so a negative one measures the rounding in all of them.
        rounding = max(0.0, -float(spectrum.eigenvalues[0]))
        if not bool(self.resolved.all()):
            # Whether T has nothing or a little along such a direction cannot be told, and near its size it matters:
            # available nats of a member of T are off by 4e-6 at 4 resolutions, by less than 1e-7 from 32 on.
            rounding = max(rounding, 8 * spectrum.resolution)
        if noise_variance < max(4 * rounding, _SMALLEST_NOISE):
            smallest = max(8 * rounding, _SMALLEST_NOISE)
            raise NotPositiveDefiniteError(
                f"noise_variance {noise_variance} is below the rounding of the Gram matrix ({rounding:.3g}): K + σ²I "
                f"is not positive definite in float64. Use a noise_variance of at least {smallest:.3g}.",
                smallest_noise_variance=smallest,
            )
        self.spectrum = spectrum
        self._filtered = filtered
        self.noise_variance = noise_variance
        self.eigenvalues = torch.where(self.resolved, spectrum.eigenvalues, 0.0)
        self.weights = 1 / (self.eigenvalues + noise_variance)
        # The kernel form needs none: there P_nn costs no more than reading a row.
        self.leverages = (
            None
            if self.is_kernel
            else Leverages(spectrum, noise_variance, self.weights, self.resolved, known_leverages)
        )

    @property
    def is_kernel(self) -> bool:
        """Whether K_TT was decomposed (|T| ≤ d), not ΦᵀΦ."""
        return self.spectrum.form == "kernel"

    def filter(self, source: Float[Tensor, " m"]) -> tuple[Float[Tensor, " m"], Float[Tensor, " m"]]:
        """Express a query in the eigenvectors, and give its direction.

        Args:
            source: k = Φ_T φ_* in the kernel form, φ_* in the gram form, shape [m], float64.

        Returns:
            Uᵀk (0 along unresolved directions) or Uᵀφ_*, and D_*, in which unresolved directions have no part: no row
            of T has one.
        """
        if self.is_kernel:
            rotated = torch.where(self.resolved, weighted_sum(self.spectrum.eigenvectors, source), 0.0)
            return rotated, self.weights * rotated
        rotated, directions = self._filter(source.unsqueeze(0))
        return rotated[0], directions[0]

    def _filter(self, sources: Float[Tensor, "b m"]) -> tuple[Float[Tensor, "b m"], Float[Tensor, "b m"]]:
        kept = torch.where(self.resolved, self.weights, 0.0)
        return self._filtered(self.spectrum.eigenvector_rows, kept, sources)

    def rows(self, positions: Int[Tensor, " s"], sketches: SketchReader) -> Float[Tensor, "s m"]:
        """Give the rows R_n of the module's docstring.

        Args:
            positions: Positions in T, shape [s].
            sketches: Reads sketches of T by position; used by the gram form.

        Returns:
            R, shape [s, m].
        """
        return self.spectrum.eigenvectors[positions] if self.is_kernel else sketches(positions)

    def directions(self, rows: Float[Tensor, "s m"]) -> Float[Tensor, "s m"]:
        """Give the directions D_n of examples, each in sums of fixed order; d² each in the gram form.

        Args:
            rows: R_n, shape [s, m]. Several at once read the eigenvectors once.

        Returns:
            D_n, shape [s, m].
        """
        return self.weights * rows if self.is_kernel else self._filter(rows)[1]

    def covariance_unit(self) -> float:
        """How P_nm follows from R_n · D_m for n ≠ m: 1 in the kernel form, −1/σ² in the gram form.

        Returns:
            The factor.
        """
        return 1.0 if self.is_kernel else -1 / self.noise_variance

    def diagonal(self, positions: Int[Tensor, " s"], sketches: SketchReader) -> tuple[Tensor, Tensor]:
        """Give P_nn fast, to nominate, with a bound of its error against the value that decides.

        Args:
            positions: Positions in T, shape [s].
            sketches: Reads sketches of T by position; used by the gram form, which multiplies each once.

        Returns:
            P_nn and its error, each shape [s], 1/measurement².
        """
        if self.leverages is None:
            values = self.spectrum.eigenvectors[positions].square() @ self.weights
            return values, 4 * (self.weights.shape[0] + 3) * unit_roundoff(torch.float64) * values
        leverages, error = self.leverages.of(positions, sketches)
        # 1 − h is rounded as well, relative to 1.
        error = error + 4 * unit_roundoff(torch.float64)
        return (1 - leverages) / self.noise_variance, error / self.noise_variance

    def rounding(
        self, rows: Float[Tensor, "s m"], source_norms: Float[Tensor, " q"], dual_norms: Float[Tensor, " q"]
    ) -> Float[Tensor, "s q"]:
        """Say below what size α_n = R_n · D_* is nothing but rounding, of the query's rotation and of the product.

        Args:
            rows: R_n, shape [s, m].
            source_norms: ‖k‖ or ‖φ_*‖ of each query, shape [q].
            dual_norms: ‖D_*‖ of each query, shape [q].

        Returns:
            The sizes, shape [s, q]. Rounding errors add like a random walk.
        """
        if self.is_kernel:
            lengths = torch.ones(rows.shape[0], dtype=torch.float64)
            weighted = torch.linalg.vector_norm(rows * (self.weights * self.resolved), dim=1)
        else:
            lengths = torch.linalg.vector_norm(rows, dim=1)
            # ‖w ∘ Uᵀφ‖² ≤ max w · h, and h is at most 1 and at most max w · ‖φ‖².
            most = float(torch.where(self.resolved, self.weights, 0.0).max())
            weighted = torch.sqrt(most * torch.clamp(most * lengths**2, max=1.0))
        scale: Tensor = weighted[:, None] * source_norms + lengths[:, None] * dual_norms
        return 8 * math.sqrt(rows.shape[1]) * unit_roundoff(torch.float64) * scale
