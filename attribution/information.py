"""Information in nats (Eqs. 4 and 6), formed from changes of variance so that small gains keep their digits."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from attribution.checks import check_noise_variance, check_query, check_sketches
from attribution.errors import NotPositiveDefiniteError
from attribution.function_space import cholesky_of_covariance


def info_gain_nats(prior_variance: float, reduction: float, posterior_variance: float | None = None) -> float:
    r"""Turn a reduction of the query's variance into information gained (Eq. 6).

    .. math:: \tfrac12 \log \frac{v_0}{v_0 - \Delta} = -\tfrac12 \mathrm{log1p}(-\Delta / v_0)

    The plain ratio loses 4e-5 of the result at σ² = 1e12, where Δ is far below v₀. At the other end, where Δ is nearly
    v₀, the difference is what loses digits; a caller that knows the remaining variance gives it.

    Args:
        prior_variance: v₀ > 0, variance before, in squared units of the measurement.
        reduction: Δ, from 0 to v₀: how much of it was explained.
        posterior_variance: v₀ − Δ, if known without cancellation; used when more than half of v₀ was explained.

    Returns:
        Nats, ≥ 0; infinity if nothing of the variance remains.

    Raises:
        NotPositiveDefiniteError: If the reduction exceeds the variance, which only rounding can do.
    """
    if posterior_variance is not None and 2 * reduction > prior_variance and posterior_variance > 0:
        return 0.5 * math.log(prior_variance / posterior_variance)
    if reduction > prior_variance:
        raise NotPositiveDefiniteError(
            f"The variance explained ({reduction}) exceeds the variance there was ({prior_variance}): rounding at "
            "this noise variance. Use a larger one.",
            smallest_noise_variance=(reduction - prior_variance) * 4,
        )
    return math.inf if reduction == prior_variance else -0.5 * math.log1p(-reduction / prior_variance)


def info_loss_nats(variance: float, increase: float) -> float:
    r"""Turn an increase of the query's variance into information lost (Eq. 4).

    .. math:: \tfrac12 \log \frac{v + \Delta}{v} = \tfrac12 \mathrm{log1p}(\Delta / v)

    Args:
        variance: v(x_* | D) > 0, in squared units of the measurement.
        increase: v(x_* | D∖S) − v(x_* | D) ≥ 0, computed as such, by Eq. 54.

    Returns:
        Nats, ≥ 0.
    """
    if variance <= 0:  # underflow of a query or a noise at the edge of float64
        return math.inf if increase > 0 else 0.0
    return 0.5 * math.log1p(increase / variance)


def info_gain(query: Float[Tensor, " d"], acquired: Float[Tensor, "t d"], noise_variance: float) -> float:
    r"""Compute the information that a set gives about a query (Eq. 6).

    .. math:: \mathrm{InfoGain}(S; x_*) = \tfrac12 \log \frac{v(x_* \mid \emptyset)}{v(x_* \mid S)}

    Args:
        query: Sketch of the query, shape [d].
        acquired: Sketches of the set S, shape [t, d]; t may be 0.
        noise_variance: σ² > 0, in squared units of the measurement.

    Returns:
        Nats; 0 for the empty set. It does not depend on the order of the rows.
    """
    check_noise_variance(noise_variance)
    check_query(query)
    check_sketches(acquired, query.shape[0], "acquired")
    explained, variance = _explained_in_order(query, acquired, noise_variance)
    return info_gain_nats(float(query.double() @ query.double()), float(explained.sum()), float(variance))


def info_loss(
    query: Float[Tensor, " d"], kept: Float[Tensor, "k d"], removed: Float[Tensor, "s d"], noise_variance: float
) -> float:
    r"""Compute the information lost about a query when a set is removed from D (Eq. 4).

    .. math:: \mathrm{InfoLoss}(S; x_*) = \tfrac12 \log \frac{v(x_* \mid D \setminus S)}{v(x_* \mid D)}

    Args:
        query: Sketch of the query, shape [d].
        kept: Sketches of D∖S, shape [k, d]; k may be 0.
        removed: Sketches of S, shape [s, d]; s may be 0.
        noise_variance: σ² > 0, in squared units of the measurement.

    Returns:
        Nats; 0 when nothing is removed.
    """
    check_noise_variance(noise_variance)
    check_query(query)
    check_sketches(kept, query.shape[0], "kept")
    check_sketches(removed, query.shape[0], "removed")
    explained, variance = _explained_in_order(query, torch.cat([kept, removed]), noise_variance)
    return info_loss_nats(float(variance), float(explained[kept.shape[0] :].sum()))


def _explained_in_order(
    query: Float[Tensor, " d"], acquired: Float[Tensor, "t d"], noise_variance: float
) -> tuple[Float[Tensor, " t"], Float[Tensor, ""]]:
    # The variance explained by an ordered set, split into what each row explains after those before it, and the rest.
    # With L Lᵀ = K_AA + σ²I and z = L⁻¹ K_A*, row i explains z_i². What remains is ‖r‖² + σ²‖α‖² with α = L⁻ᵀ z and
    # r = φ_* − Φ_Aᵀ α: a sum of squares, where φ_*·φ_* − ‖z‖² would cancel at small noise.
    query, acquired = query.double(), acquired.double()
    factor = cholesky_of_covariance(acquired @ acquired.T, noise_variance)
    whitened = torch.linalg.solve_triangular(factor, (acquired @ query).unsqueeze(1), upper=False)
    weights = torch.linalg.solve_triangular(factor.T, whitened, upper=True).squeeze(1)
    residual = query - acquired.T @ weights
    return whitened.squeeze(1) ** 2, residual @ residual + noise_variance * (weights @ weights)
