"""The posterior in function space (Eqs. 9, 10, 15): solves of size t × t, for sets smaller than d."""

import torch
from jaxtyping import Float
from torch import Tensor

from attribution.checks import check_noise_variance
from attribution.errors import NotPositiveDefiniteError, ShapeError


def cholesky_of_covariance(gram: Float[Tensor, "t t"], noise_variance: float) -> Float[Tensor, "t t"]:
    """Factor K_AA + σ²I, or say which σ² would let it be factored. No jitter is added.

    Args:
        gram: K_AA, shape [t, t].
        noise_variance: σ² > 0.

    Returns:
        The lower Cholesky factor, shape [t, t].

    Raises:
        NotPositiveDefiniteError: If rounding leaves the matrix without a factor in this dtype.
    """
    size = gram.shape[0]
    covariance = gram + noise_variance * torch.eye(size, dtype=gram.dtype, device=gram.device)
    factor, info = torch.linalg.cholesky_ex(covariance)
    if int(info) != 0:
        # Backward error of a Cholesky factorisation is below t·u·trace; a diagonal of that size restores definiteness.
        smallest = 2 * size * float(torch.finfo(gram.dtype).eps) * float(gram.diagonal().sum())
        raise NotPositiveDefiniteError(
            f"K + σ²I of {size} examples has no Cholesky factor in {gram.dtype} at noise_variance {noise_variance}. "
            f"It has one from {smallest:.3g} on: use such a noise_variance, or float64 sketches.",
            smallest_noise_variance=smallest,
        )
    lower: Tensor = factor
    return lower


def covariance(
    left: Float[Tensor, "a d"], right: Float[Tensor, "b d"], acquired: Float[Tensor, "t d"], noise_variance: float
) -> Float[Tensor, "a b"]:
    r"""Compute posterior covariances of the latent f between two sets of examples, given a third (Eq. 9).

    .. math:: c(x, x' \mid A) = K(x, x') - K(x, A) (K_{AA} + \sigma^2 I)^{-1} K(A, x')

    Args:
        left: Sketches, shape [a, d].
        right: Sketches, shape [b, d].
        acquired: Sketches of the set A conditioned on, shape [t, d]; t may be 0.
        noise_variance: σ² > 0, in squared units of the measurement.

    Returns:
        Covariances, shape [a, b], squared units of the measurement.
    """
    check_noise_variance(noise_variance)
    _check_same_dim(left, right, acquired)
    factor = cholesky_of_covariance(acquired @ acquired.T, noise_variance)
    left_whitened = torch.linalg.solve_triangular(factor, acquired @ left.T, upper=False)  # [t, a]
    right_whitened = torch.linalg.solve_triangular(factor, acquired @ right.T, upper=False)  # [t, b]
    covariances: Tensor = left @ right.T - left_whitened.T @ right_whitened
    return covariances


def variance(
    points: Float[Tensor, "a d"], acquired: Float[Tensor, "t d"], noise_variance: float
) -> Float[Tensor, " a"]:
    r"""Compute posterior variances of the latent f (Eq. 10), noise excluded.

    .. math:: v(x \mid A) = c(x, x \mid A)

    Args:
        points: Sketches, shape [a, d].
        acquired: Sketches of the set A conditioned on, shape [t, d]; t may be 0.
        noise_variance: σ² > 0, in squared units of the measurement.

    Returns:
        Variances, shape [a], squared units of the measurement.
    """
    check_noise_variance(noise_variance)
    _check_same_dim(points, points, acquired)
    factor = cholesky_of_covariance(acquired @ acquired.T, noise_variance)
    whitened: Tensor = torch.linalg.solve_triangular(factor, acquired @ points.T, upper=False)  # [t, a]
    return (points**2).sum(dim=1) - (whitened**2).sum(dim=0)


def residual(query: Float[Tensor, " d"], acquired: Float[Tensor, "t d"], noise_variance: float) -> Float[Tensor, " d"]:
    r"""Remove from a query what the acquired set already explains (Eq. 15).

    .. math:: r = \phi_* - \Phi_A^\top (\Phi_A \Phi_A^\top + \sigma^2 I)^{-1} \Phi_A \phi_*

    The inner product of r with a candidate's sketch is their posterior covariance given A (Eq. 12), so the largest
    absolute inner product is the next pick. By Woodbury it equals Λ_A⁻¹ φ_* with Λ_A = I + Φ_AᵀΦ_A/σ² (Eq. 13); this
    form solves t × t, not d × d.

    Args:
        query: Sketch of the query, shape [d].
        acquired: Sketches of the t examples chosen so far, shape [t, d]; t may be 0.
        noise_variance: σ² > 0, in squared units of the measurement.

    Returns:
        The residual, shape [d], with the dtype and device of ``query``.
    """
    check_noise_variance(noise_variance)
    _check_same_dim(query.unsqueeze(0), query.unsqueeze(0), acquired)
    factor = cholesky_of_covariance(acquired @ acquired.T, noise_variance)
    explained: Tensor = torch.cholesky_solve((acquired @ query).unsqueeze(1), factor).squeeze(1)  # [t]
    return query - acquired.T @ explained


def _check_same_dim(left: Tensor, right: Tensor, acquired: Tensor) -> None:
    if not left.ndim == right.ndim == acquired.ndim == 2:
        raise ShapeError(
            f"Sketches must be matrices of one row per example, got shapes {list(left.shape)}, {list(right.shape)} "
            f"and {list(acquired.shape)}."
        )
    if not left.shape[1] == right.shape[1] == acquired.shape[1]:
        raise ShapeError(
            f"Sketches must have one dimension, got {left.shape[1]}, {right.shape[1]} and {acquired.shape[1]}. "
            "Sketch all of them with the same spec."
        )
