"""The posterior in weight space (Eqs. 12, 13): solves of size d × d, for sets larger than d."""

import torch
from jaxtyping import Float
from torch import Tensor

from attribution.checks import check_noise_variance
from attribution.errors import ShapeError


def precision(acquired: Float[Tensor, "t d"], noise_variance: float) -> Float[Tensor, "d d"]:
    r"""Compute the posterior precision of the weights (Eq. 13).

    .. math:: \Lambda_A = I_d + \sigma^{-2} \Phi_A^\top \Phi_A

    Its eigenvalues are at least 1, so it always has a Cholesky factor.

    Args:
        acquired: Sketches of the set A conditioned on, shape [t, d]; t may be 0.
        noise_variance: σ² > 0, in squared units of the measurement.

    Returns:
        Λ_A, shape [d, d], dimensionless.

    Raises:
        ShapeError: If ``acquired`` is not a matrix.
    """
    check_noise_variance(noise_variance)
    if acquired.ndim != 2:
        raise ShapeError(f"acquired must have shape [t, d], got {list(acquired.shape)}.")
    identity = torch.eye(acquired.shape[1], dtype=acquired.dtype, device=acquired.device)
    return identity + acquired.T @ acquired / noise_variance


def covariance(
    left: Float[Tensor, "a d"], right: Float[Tensor, "b d"], acquired: Float[Tensor, "t d"], noise_variance: float
) -> Float[Tensor, "a b"]:
    r"""Compute posterior covariances of the latent f (Eq. 12); equal to Eq. 9 by Woodbury.

    .. math:: c(x, x' \mid A) = \phi(x)^\top \Lambda_A^{-1} \phi(x')

    Args:
        left: Sketches, shape [a, d].
        right: Sketches, shape [b, d].
        acquired: Sketches of the set A conditioned on, shape [t, d]; t may be 0.
        noise_variance: σ² > 0, in squared units of the measurement.

    Returns:
        Covariances, shape [a, b], squared units of the measurement.
    """
    factor = torch.linalg.cholesky(precision(acquired, noise_variance))
    left_whitened = torch.linalg.solve_triangular(factor, left.T, upper=False)  # [d, a]
    covariances: Tensor = left_whitened.T @ torch.linalg.solve_triangular(factor, right.T, upper=False)
    return covariances


def variance(
    points: Float[Tensor, "a d"], acquired: Float[Tensor, "t d"], noise_variance: float
) -> Float[Tensor, " a"]:
    r"""Compute posterior variances of the latent f (Eq. 12), noise excluded.

    .. math:: v(x \mid A) = \phi(x)^\top \Lambda_A^{-1} \phi(x)

    Args:
        points: Sketches, shape [a, d].
        acquired: Sketches of the set A conditioned on, shape [t, d]; t may be 0.
        noise_variance: σ² > 0, in squared units of the measurement.

    Returns:
        Variances, shape [a], squared units of the measurement. A sum of squares: never negative.
    """
    factor = torch.linalg.cholesky(precision(acquired, noise_variance))
    whitened: Tensor = torch.linalg.solve_triangular(factor, points.T, upper=False)  # [d, a]
    return (whitened**2).sum(dim=0)


def residual(query: Float[Tensor, " d"], acquired: Float[Tensor, "t d"], noise_variance: float) -> Float[Tensor, " d"]:
    r"""Remove from a query what the acquired set already explains (Eq. 15, first form).

    .. math:: r = \Lambda_A^{-1} \phi_*

    Args:
        query: Sketch of the query, shape [d].
        acquired: Sketches of the acquired set A, shape [t, d]; t may be 0.
        noise_variance: σ² > 0, in squared units of the measurement.

    Returns:
        The residual, shape [d]; its inner product with a sketch is the posterior covariance with the query.
    """
    factor = torch.linalg.cholesky(precision(acquired, noise_variance))
    solved: Tensor = torch.cholesky_solve(query.unsqueeze(1), factor)
    return solved.squeeze(1)
