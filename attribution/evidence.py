"""How well a noise variance explains targets: the log marginal likelihood of the surrogate, from a spectrum."""

import math
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from attribution.errors import ShapeError
from attribution.inverse_covariance import InverseCovariance
from attribution.spectrum import Spectrum

Amplitude = Literal["profiled", "one"]


@dataclass(frozen=True)
class TargetEnergies:
    """A target as the eigenvectors of K see it: all that its evidence at any σ² needs.

    Attributes:
        eigenvalues: λ ≥ 0 of K along the directions that the spectrum resolves, shape [m].
        energies: (u_iᵀt)² along them, shape [m].
        rest: What is left of ‖t‖², where K has nothing, ≥ 0.
        size: n, the number of rows.
    """

    eigenvalues: Float[Tensor, " m"]
    energies: Float[Tensor, " m"]
    rest: float
    size: int


def target_energies(
    spectrum: Spectrum,
    targets: Float[Tensor, " n"],
    moments: Float[Tensor, " d"] | None,
    smallest_noise_variance: float,
) -> TargetEnergies:
    r"""Take a target apart along the eigenvectors of K.

    In the gram form ΦᵀΦ = V diag(λ) Vᵀ the eigenvector of K that belongs to λ_j is Φ v_j / √λ_j, hence
    :math:`(u_j^\top t)^2 = (v_j^\top \Phi^\top t)^2 / \lambda_j`, and K has n − d eigenvalues 0 more.

    Args:
        spectrum: Spectrum of the rows.
        targets: t, one value per row, float64.
        moments: Φᵀt, float64; needed by the gram form (n > d) only.
        smallest_noise_variance: The least σ² that will be asked for.

    Returns:
        The energies.

    Raises:
        ShapeError: If targets or moments do not fit the spectrum.
    """
    posterior = InverseCovariance(spectrum, smallest_noise_variance)  # refuses a noise that rounding swamps
    size = spectrum.eigenvalues.shape[0]
    source = targets if posterior.is_kernel else moments
    if source is None or source.shape != (size,):
        given = "none" if source is None else str(list(source.shape))
        what = "targets" if posterior.is_kernel else "moments Φᵀt"
        raise ShapeError(f"{what} must have shape [{size}] as the spectrum's {spectrum.form} form has, got {given}.")
    targets = targets.double()
    resolved = posterior.resolved
    eigenvalues = spectrum.eigenvalues[resolved]
    energies = (spectrum.eigenvectors.T @ source.double()).square()[resolved]
    if not posterior.is_kernel:
        energies = energies / eigenvalues
    # Bessel: what the directions hold does not exceed ‖t‖²; below zero the difference is rounding.
    rest = max(float(targets.square().sum() - energies.sum()), 0.0)
    return TargetEnergies(eigenvalues, energies, rest, targets.shape[0])


def log_evidence(target: TargetEnergies, noise_variance: float, amplitude: Amplitude = "profiled") -> float:
    r"""Compute the log marginal likelihood of a target under the surrogate (5).

    .. math:: \log p(t \mid \sigma^2, a) = -\tfrac12 \Bigl( \frac{q}{a^2} + \log\det(K + \sigma^2 I) + n \log 2 \pi a^2
        \Bigr), \qquad q = t^\top (K + \sigma^2 I)^{-1} t

    for t ~ N(0, a²(K + σ²I)). ``profiled`` takes the amplitude that explains t best, a² = q/n: nats depend on σ² in
    units of K only, and the targets need not have the units of the measurement. ``one`` takes a = 1.

    Args:
        target: The target and the spectrum.
        noise_variance: σ², in squared units of the measurement, at least what ``target_energies`` was told.
        amplitude: ``profiled`` or ``one``.

    Returns:
        Log evidence in nats; minus infinity never, infinity only for a target of zeros with a profiled amplitude.
    """
    n, shifted = target.size, target.eigenvalues + noise_variance
    quadratic = float((target.energies / shifted).sum()) + target.rest / noise_variance
    log_determinant = float(shifted.log().sum()) + (n - shifted.shape[0]) * math.log(noise_variance)
    if amplitude == "one":
        return -0.5 * (quadratic + log_determinant + n * math.log(2 * math.pi))
    if quadratic == 0:
        return math.inf
    return -0.5 * (n + log_determinant + n * math.log(2 * math.pi * quadratic / n))
