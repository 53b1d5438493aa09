r"""Leverages h_n(σ²) = φ_nᵀ(Φ_TᵀΦ_T + σ²I)⁻¹φ_n of the rows of one T as functions of σ², each kept at a few noises.

With U, λ from the spectrum of T and s_nk = (u_k·φ_n)², h_n(σ²) = Σ_k s_nk/(λ_k + σ²): positive multiples of d known
functions. So coefficients c with Σ_j c_j/(λ_k + t_j) ≈ 1/(λ_k + σ²) on the d eigenvalues give every row's leverage at
σ² from those at the nodes t_j, and the worst relative error over the d eigenvalues bounds that over all rows.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from attribution.exact_sums import inner_product_error, unit_roundoff
from attribution.rotation_products import RotationProducts
from attribution.spectrum import Spectrum

#: Nodes, and the noises relative to the mean squared norm that the first and the last stand for.
NUM_NODES = 32
_FIRST_NODE, _LAST_NODE = 1e-4, 1e5
#: Relative error of the interpolation beyond which leverages are computed from the rows.
_LARGEST_ERROR = 1e-4
#: Singular values below this share of the largest are left out: coefficients of both signs would grow with rounding.
_SMALLEST_SINGULAR_VALUE = 1e-11


@dataclass(frozen=True)
class KnownLeverages:
    """Leverages at one σ² that need no row.

    Attributes:
        values: h of every row of T, shape [n], float64.
        errors: Bound of their absolute error against Σ_k s_nk/(λ_k + σ²) of the spectrum, shape [n].
    """

    values: Float[Tensor, " n"]
    errors: Float[Tensor, " n"]


@dataclass(frozen=True)
class LeverageCurves:
    r"""Leverages of the rows of T at some noises, from which those at any other follow.

    Attributes:
        nodes: t, noise variances, shape [m], squared units of the measurement.
        values: Σ_k s_nk/(λ_k + t_j) with the products y_nk ≈ u_k·φ_n that were computed, s_nk = y_nk², shape [n, m],
            float64.
        product_errors: Bound of \|y_nk − u_k·φ_n\| for every k, shape [n], units of the measurement.
    """

    nodes: Float[Tensor, " m"]
    values: Float[Tensor, "n m"]
    product_errors: Float[Tensor, " n"]

    def at(self, spectrum: Spectrum, noise_variance: float) -> KnownLeverages | None:
        r"""Give the leverages of all rows at one σ²: n · m operations.

        **Error.** Interpolated are sums of positive terms s_nk, so its relative error ρ is that of
        :func:`interpolate`. With e_n the error of the products and T = √(Σ_k 1/(λ_k + σ²)), √h_n is a norm of the
        vector √w ∘ y_n, and moves by no more than e_n T.

        Args:
            spectrum: The decomposition they were computed from.
            noise_variance: σ² > 0.

        Returns:
            The leverages; None where σ² is so far from the nodes that ρ exceeds 1e-4.
        """
        coefficients, error = interpolate(spectrum, self.nodes, noise_variance)
        if not error <= _LARGEST_ERROR:
            return None
        values = self.values @ coefficients
        interpolated = error / (1 - error)
        weights = (1 / (spectrum.eigenvalues + noise_variance))[spectrum.resolved]
        shift = self.product_errors * float(weights.sum()) ** 0.5
        root = torch.sqrt(values.clamp(min=0) * (1 + interpolated))
        return KnownLeverages(values, interpolated * values + shift * (2 * root + shift))


def noise_nodes(spectrum: Spectrum, num_rows: int) -> Float[Tensor, " m"]:
    """Choose the noises at which leverages are kept.

    Args:
        spectrum: Decomposition of T's Gram matrix, not all zero.
        num_rows: n = |T|.

    Returns:
        32 noise variances, evenly in their logarithm from 1e-4 to 1e5 times the mean squared norm, squared units of
        the measurement.
    """
    unit = float(spectrum.gram.diagonal().sum()) / num_rows
    exponents = torch.linspace(np.log10(_FIRST_NODE), np.log10(_LAST_NODE), NUM_NODES, dtype=torch.float64)
    return unit * 10**exponents


def leverage_curves(
    spectrum: Spectrum, blocks: Iterable[Float[Tensor, "b d"]], nodes: Float[Tensor, " m"]
) -> LeverageCurves:
    """Compute the leverages of the rows of T at some noises: one product of T with U.

    Args:
        spectrum: Decomposition of T's Gram matrix, of the gram form.
        blocks: The sketches of T in ascending rows, with d columns each.
        nodes: The noises t, each > 0, shape [m].

    Returns:
        The leverages.
    """
    weights = 1 / (spectrum.eigenvalues[:, None] + nodes)
    weights[~spectrum.resolved] = 0.0
    products = RotationProducts(spectrum.eigenvectors, weights)
    found = [products.weigh(block) for block in blocks]
    values, errors = (torch.cat(parts) for parts in zip(*found, strict=True))
    return LeverageCurves(nodes, values, errors)


def interpolate(
    spectrum: Spectrum, nodes: Float[Tensor, " m"], noise_variance: float
) -> tuple[Float[Tensor, " m"], float]:
    r"""Fit c such that Σ_j c_j h(t_j) is h(σ²), for every row of T.

    .. math:: \rho = \max_k \Big| (\lambda_k + \sigma^2) \sum_j \frac{c_j}{\lambda_k + t_j} - 1 \Big|, \quad
        a = \max_k\, (\lambda_k + \sigma^2) \sum_j \frac{|c_j|}{\lambda_k + t_j}

    As h is a sum of positive multiples of 1/(λ_k + σ²), what is true of these term by term is true of h: its
    relative error is at most ρ, and rounding by η in what is kept and summed adds at most aη.

    Args:
        spectrum: Decomposition of T's Gram matrix.
        nodes: The noises t, each > 0, shape [m].
        noise_variance: σ² > 0.

    Returns:
        c, and a bound of the relative error with all rounding, also that of the bound itself.
    """
    kept = spectrum.eigenvalues[spectrum.resolved]
    ratios = (kept + noise_variance)[:, None] / (kept[:, None] + nodes)  # [k, m]
    scales = torch.linalg.vector_norm(ratios, dim=0)
    if not (kept.numel() and bool(torch.isfinite(scales).all()) and float(scales.min()) > 0):
        return torch.zeros_like(nodes), float("inf")
    fitted = np.linalg.lstsq((ratios / scales).numpy(), np.ones(kept.numel()), rcond=_SMALLEST_SINGULAR_VALUE)[0]
    coefficients = torch.from_numpy(fitted) / scales
    misfit = float((ratios @ coefficients - 1).abs().max())
    amplification = float((ratios @ coefficients.abs()).max())
    # In what is kept, a sum of d positive terms; in its sum over the nodes, and in the misfit: m + 8 roundings each.
    rounding = inner_product_error(spectrum.eigenvalues.shape[0] + 8, torch.float64)
    rounding += 4 * (nodes.shape[0] + 8) * unit_roundoff(torch.float64)
    return coefficients, misfit + 2 * amplification * rounding
