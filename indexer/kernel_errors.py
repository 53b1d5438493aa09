"""Errors of sketched kernel values on random pairs of rows, held against what theory allows the sketch's family."""

from __future__ import annotations

import torch
from torch import Tensor

from indexer.exact_kernel import ExactKernel, Pairs, mean_square
from indexer.kronecker_scatter import BlockScatter
from indexer.parameters import ParameterList
from indexer.sketches import SketchSpec
from indexer.sketches.theory import inner_product_variance, kronecker_variance_bound, kurtosis


def random_pairs(rows: int, count: int) -> Pairs:
    """Different pairs of different rows.

    Args:
        rows: n, at least 2.
        count: Pairs wanted; all n(n − 1)/2 where there are fewer.

    Returns:
        The pairs, first position < second; the same for the same arguments.
    """
    first, second = torch.triu_indices(rows, rows, offset=1)
    order = torch.randperm(len(first), generator=torch.Generator().manual_seed(1))[:count]
    return Pairs(first[order], second[order])


def kernel_errors(
    spec: SketchSpec,
    exact: ExactKernel,
    sketches: Tensor,
    pairs: Pairs,
    parameters: ParameterList | None = None,
    scatter: BlockScatter | None = None,
) -> dict[str, float | None]:
    r"""Errors of sketched inner products of pairs, against zero bias and the theory's spread.

    One matrix R serves all pairs, so their errors go together and their mean is no average of independent ones. But
    it is itself tr((RᵀR − I) M) with M the mean of the symmetrised g g′ᵀ, whose standard deviation theory gives:

    .. math:: \tfrac1d \bigl(2\|M\|_F^2 + (\kappa - 3)\textstyle\sum_i M_{ii}^2\bigr).

    For kronecker sketches the mean's deviation is an empirical one (`kronecker_scatter.py`), and the spread is held
    against an upper bound (`theory.kronecker_variance_bound`).

    Args:
        spec: The sketch.
        exact: Exact products of the rows and pairs.
        sketches: Sketches of the rows, float64 [n, d].
        pairs: The pairs.
        parameters: The coordinates; kronecker alone needs them.
        scatter: What the slabs of ``exact`` passed through; without it the bias of a kronecker sketch has no unit.

    Returns:
        ``mean_exact`` and ``mean_sketched`` kernel value, ``bias_in_standard_errors`` (a right sketch: within ±3),
        ``squared_norm_ratio`` (Σ‖φ‖² over Σ‖g‖² of the rows; a right sketch: near 1), ``relative_spread`` (root mean
        square of error over ‖g‖‖g′‖) and ``spread_over_theory`` (a right sketch: near 1, for kronecker at most about
        1); null where the family has no error, or the gradients are all zero.
    """
    first, second = pairs.first, pairs.second
    kernel, norms = exact.kernel, exact.kernel.diagonal()
    products = kernel[first, second]
    sketched = (sketches @ sketches.T)[first, second]
    errors = sketched - products
    mean_variance = torch.zeros((), dtype=torch.float64)
    if spec.family == "kronecker":
        assert parameters is not None
        parts = exact.part_kernels
        norms_of_parts = parts.diagonal(dim1=1, dim2=2)  # [k, n]
        variance = kronecker_variance_bound(
            spec, parameters, norms_of_parts[:, first], norms_of_parts[:, second], parts[:, first, second]
        )
        if scatter is not None:
            mean_variance = scatter.mean_error_variance(exact, pairs)
    elif spec.family == "identity":
        variance = torch.zeros_like(products)
    else:
        variance = inner_product_variance(spec, norms[first], norms[second], products, exact.squared_products)
        squared = mean_square(kernel, pairs)
        mean_variance = (2 * squared + (kurtosis(spec) - 3) * exact.squared_mean_products) / spec.dim
    strays = variance > 0  # a gradient of zeros has no error, whatever R is
    length = norms.sum()
    lengths = (norms[first] * norms[second]).clamp_min(torch.finfo(torch.float64).tiny)
    return {
        "pairs": len(first),
        "mean_exact": float(products.mean()),
        "mean_sketched": float(sketched.mean()),
        "bias_in_standard_errors": float(errors.mean() / mean_variance.sqrt()) if mean_variance > 0 else None,
        "squared_norm_ratio": float(sketches.square().sum() / length) if length > 0 else None,
        "relative_spread": float((errors.square() / lengths).mean().sqrt()),
        "spread_over_theory": (
            float((errors.square()[strays] / variance[strays]).mean().sqrt()) if bool(strays.any()) else None
        ),
    }
