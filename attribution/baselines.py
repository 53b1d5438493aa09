r"""Scores of other methods for the same rows, so that they are compared like with like: dense, any number of queries.

A large score means a proponent, always: a training duplicate of the query scores positive. φ is the sketch of the
margin log(p/(1 − p)) where 1 − p enters; RelatIF and RepSim take any measurement. TracIn at the final checkpoint, its
only one here, is GradDot.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from attribution import function_space, weight_space
from attribution.checks import check_noise_variance, check_query, check_sketches
from attribution.errors import NoiseVarianceError, NotPositiveDefiniteError, ShapeError


def random_scores(num_rows: int, seed: int) -> Float[Tensor, " n"]:
    """Draw a number from [0, 1) for every training example: what every method must beat.

    Args:
        num_rows: n.
        seed: The seed; the same one gives the same numbers on every machine.

    Returns:
        Scores, shape [n], float64, no unit.
    """
    return torch.rand(num_rows, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def repsim(queries: Float[Tensor, "q h"], representations: Float[Tensor, "n h"]) -> Float[Tensor, "q n"]:
    r"""Score training examples by the cosine of penultimate features (RepSim).

    .. math:: \cos(h_*, h_i) = \frac{h_* \cdot h_i}{\|h_*\| \|h_i\|}

    Args:
        queries: Penultimate features of the queries, shape [q, h].
        representations: Those of the training examples, shape [n, h].

    Returns:
        Scores, shape [q, n], float64, from −1 to 1; 0 where either is zero.
    """
    check_sketches(representations, queries.shape[-1], "representations")
    check_sketches(queries, representations.shape[1], "queries")
    return _unit(queries.double()) @ _unit(representations.double()).T


def graddot(
    queries: Float[Tensor, "q d"], sketches: Float[Tensor, "n d"], one_minus_p: Float[Tensor, " n"]
) -> Float[Tensor, "q n"]:
    r"""Score training examples by the gradient of their loss (GradDot; TracIn at the final checkpoint).

    .. math:: -\nabla f_* \cdot \nabla \ell_i = (1 - p_i)\, \phi_* \cdot \phi_i

    Exact for softmax cross-entropy and the margin m, whose gradients are ∇ℓ_i = −(1 − p_i) ∇m_i. Without the minus it
    would rank opponents first.

    Args:
        queries: Sketches of the queries' margins, shape [q, d].
        sketches: Sketches of the training examples' margins, shape [n, d].
        one_minus_p: 1 − p of each training example's own label, shape [n], from 0 to 1.

    Returns:
        Scores, shape [q, n], float64, squared units of the measurement.
    """
    _check(queries, sketches, one_minus_p)
    return one_minus_p.double() * (queries.double() @ sketches.double().T)


def trak(
    queries: Float[Tensor, "q d"],
    sketches: Float[Tensor, "n d"],
    one_minus_p: Float[Tensor, " n"],
    regularisation: float,
) -> Float[Tensor, "q n"]:
    r"""Score training examples by TRAK with one model.

    .. math:: \phi_*^\top (\Phi^\top \Phi + \lambda I)^{-1} \phi_i \, (1 - p_i)
        = (1 - p_i)\, c(x_*, i \mid D) / \lambda

    The right side is the posterior covariance (12) at σ² = λ: a Gaussian process knows the same.

    Args:
        queries: Sketches of the queries' margins, shape [q, d].
        sketches: Φ, sketches of **all** training examples' margins, shape [n, d].
        one_minus_p: 1 − p of each training example's own label, shape [n], from 0 to 1.
        regularisation: λ ≥ 0, in squared units of the measurement; 0 needs n ≥ d rows of full rank.

    Returns:
        Scores, shape [q, n], float64, no unit.

    Raises:
        NoiseVarianceError: If ``regularisation`` is negative or not finite.
        NotPositiveDefiniteError: If ΦᵀΦ + λI has no Cholesky factor; it names a λ that works.
    """
    _check(queries, sketches, one_minus_p)
    if regularisation < 0 or not regularisation < float("inf"):
        raise NoiseVarianceError(f"regularisation must be a finite number from 0, got {regularisation}.")
    rows, asked = sketches.double(), queries.double()
    in_kernel_form = regularisation > 0 and rows.shape[0] <= rows.shape[1]
    gram = rows @ rows.T if in_kernel_form else rows.T @ rows
    factor, failed = torch.linalg.cholesky_ex(
        gram + regularisation * torch.eye(gram.shape[0], dtype=torch.float64, device=gram.device)
    )
    # A factor that only just exists has pivots of rounding, and scores made of them.
    smallest = gram.shape[0] * torch.finfo(torch.float64).eps * float(gram.diagonal().max())
    if int(failed) or float(factor.diagonal().min()) ** 2 <= smallest:
        enough = max(100 * smallest, torch.finfo(torch.float64).tiny)
        raise NotPositiveDefiniteError(
            f"ΦᵀΦ + {regularisation} I is not positive definite in float64: {rows.shape[0]} rows of {rows.shape[1]} "
            f"dimensions do not span them. Use a regularisation of at least {enough:.3g}.",
            smallest_noise_variance=enough,
        )
    if in_kernel_form:  # (ΦᵀΦ + λI)⁻¹Φᵀ = Φᵀ(ΦΦᵀ + λI)⁻¹
        found = torch.cholesky_solve(rows @ asked.T, factor).T
    else:
        found = torch.cholesky_solve(asked.T, factor).T @ rows.T
    return one_minus_p.double() * found


def relatif(
    queries: Float[Tensor, "q d"], sketches: Float[Tensor, "n d"], noise_variance: float
) -> Float[Tensor, "q n"]:
    r"""Score training examples by RelatIF without labels (Eq. 86): posterior correlation with the query.

    .. math:: \frac{c(x_*, i \mid D)}{\sqrt{v(x_* \mid D)\, v(i \mid D)}}

    Influence over the root of self-influence ranks the same for each query up to the sign of the residuals; with
    margins 1 − p > 0 keeps that sign.

    Args:
        queries: Sketches of the queries, shape [q, d], none of zeros.
        sketches: Sketches of D, shape [n, d].
        noise_variance: σ² > 0, in squared units of the measurement.

    Returns:
        Scores, shape [q, n], float64, from −1 to 1; 0 for an example whose sketch is zero.
    """
    check_noise_variance(noise_variance)
    check_sketches(sketches, queries.shape[-1], "sketches")
    for query in queries:
        check_query(query, sketches.shape[1])
    rows, asked = sketches.double(), queries.double()
    space = function_space if rows.shape[0] <= rows.shape[1] else weight_space
    covariances = space.covariance(asked, rows, rows, noise_variance)
    own = space.variance(rows, rows, noise_variance)
    scale = space.variance(asked, rows, noise_variance).sqrt()[:, None] * own.clamp(min=0).sqrt()
    return torch.where(rows.square().sum(dim=1) > 0, covariances / scale, 0.0)


def _check(queries: Tensor, sketches: Tensor, one_minus_p: Tensor) -> None:
    check_sketches(sketches, queries.shape[-1], "sketches")
    check_sketches(queries, sketches.shape[1], "queries")
    if one_minus_p.shape != (sketches.shape[0],):
        raise ShapeError(
            f"one_minus_p must have one value for each of the {sketches.shape[0]} sketches, got "
            f"{list(one_minus_p.shape)}."
        )


def _unit(rows: Float[Tensor, "n h"]) -> Float[Tensor, "n h"]:
    # Rows of length 1; zero rows stay zero.
    lengths = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return torch.where(lengths > 0, rows / lengths, 0.0)
