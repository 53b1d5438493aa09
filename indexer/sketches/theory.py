r"""How far a sketched inner product strays: the variance that theory gives for each family.

For entries of R that are independent with mean 0, variance 1/d and kurtosis κ,

.. math:: \mathrm{Var}[(Rg)\cdot(Rg')] = \tfrac1d\bigl(\|g\|^2\|g'\|^2 + (g\cdot g')^2
          + (\kappa - 3)\textstyle\sum_i g_i^2 g_i'^2\bigr).

Signs have κ = 1, a normal 3. The sparse family has exactly the variance of signs: its s parts are independent count
sketches of d/s buckets, and the mean of s independent estimates with variance (…)·s/d has variance (…)/d.
"""

from __future__ import annotations

import torch
from torch import Tensor

from indexer.parameters import ParameterList
from indexer.sketches.gaussian import quantile_table
from indexer.sketches.kronecker_plan import MatrixPart, read_parts, sides
from indexer.sketches.spec import SketchSpec


def kurtosis(spec: SketchSpec) -> float:
    """κ of the entries of √d R, or for sjlt the value with the same variance.

    Args:
        spec: Family and dimension.

    Returns:
        E[entry⁴]: 1 for rademacher and sjlt, that of the quantile table (2.9993) for gaussian; 3 for identity, where
        it has no meaning and no effect.
    """
    if spec.family in ("rademacher", "sjlt"):
        return 1.0
    if spec.family == "gaussian":
        return float(quantile_table().double().pow(4).mean())
    return 3.0


def inner_product_variance(
    spec: SketchSpec, squared_norms: Tensor, other_squared_norms: Tensor, products: Tensor, squared_products: Tensor
) -> Tensor:
    """Variance over seeds of the sketched inner product of g and g′.

    Args:
        spec: Family and dimension.
        squared_norms: ‖g‖².
        other_squared_norms: ‖g′‖², same shape.
        products: g·g′, same shape.
        squared_products: Σ g_i² g′_i², same shape.

    Returns:
        The variance, same shape; 0 for identity.
    """
    if spec.family == "identity":
        return torch.zeros_like(products)
    spread = squared_norms * other_squared_norms + products.square() + (kurtosis(spec) - 3.0) * squared_products
    return spread / spec.dim


def two_sided_variance(first: Tensor, second: Tensor, row_dim: int, column_dim: int) -> Tensor:
    r"""Variance over signs of the inner product of two gradients sketched from both sides, one block.

    With :math:`S = R^\top R/m`, :math:`T = C^\top C/n`, gradients G and H, and o(X) = Σ_i X_ii², the estimate is
    :math:`\mathrm{tr}(S\,G\,T\,H^\top)`. Over C first and then R:

    .. math:: \tfrac1n\bigl(\|H^\top G\|^2 + \mathrm{tr}((H^\top G)^2) - 2\,o(H^\top G)\bigr)
              + \tfrac1m\,\mathrm{E}\bigl[\|M\|^2 + \mathrm{tr}(M^2) - 2\,o(M)\bigr], \quad M = G\,T\,H^\top.

    Args:
        first: G, float64 [rows, columns].
        second: H, of the same shape.
        row_dim: m; all rows: they are kept, and the second term is 0.
        column_dim: n; all columns: they are kept, T = I.

    Returns:
        The variance, shape [].
    """
    keeps_rows, keeps_columns = row_dim == first.shape[0], column_dim == first.shape[1]
    inner, outer = second.T @ first, first @ second.T
    variance = first.new_zeros(())
    if not keeps_columns:
        squares = inner.square().sum() + (inner * inner.T).sum() - 2 * inner.diagonal().square().sum()
        variance = variance + squares / column_dim
    if keeps_rows:
        return variance
    grams = (second.T @ second, first.T @ first)  # E‖M‖² = E tr(T HᵀH T GᵀG)
    norm = outer.square().sum()
    trace = (outer * outer.T).sum()
    diagonal = outer.diagonal().square().sum()
    if not keeps_columns:
        products = (first * second).sum()
        norm = norm + (
            (grams[0] * grams[1]).sum() + grams[0].trace() * grams[1].trace()
            - 2 * (grams[0].diagonal() * grams[1].diagonal()).sum()
        ) / column_dim  # fmt: skip
        trace = trace + (
            inner.square().sum() + products.square() - 2 * inner.diagonal().square().sum()
        ) / column_dim  # fmt: skip
        by_row = (first * second).square().sum(1)
        lengths = first.square().sum(1) * second.square().sum(1) + (first * second).sum(1).square()
        diagonal = diagonal + (lengths - 2 * by_row).sum() / column_dim
    return variance + (norm + trace - 2 * diagonal) / row_dim


def kronecker_variance_bound(
    spec: SketchSpec, parameters: ParameterList, squared_norms: Tensor, other_squared_norms: Tensor, products: Tensor
) -> Tensor:
    r"""An upper bound on the variance of a kronecker sketch's inner products, from norms and products of the parts.

    A weight sketched in B blocks of m × n adds at most :math:`\|g\|^2\|g'\|^2\,((1 + 2/m)(1 + 2/n) - 1)/B`, reached
    by equal gradients of rank one; unlike ones have about :math:`(1/m + 1/n + 1/(mn))/B` or less. A side that is kept
    has no term. The vector part adds what dense signs add.

    Args:
        spec: The sketch.
        parameters: The coordinates.
        squared_norms: ‖g‖² of each part, [k, …].
        other_squared_norms: ‖g′‖², same shape.
        products: g·g′, same shape.

    Returns:
        The bound, shape […].
    """
    shapes = {parameter.name: sides(parameter) for parameter in parameters if len(parameter.shape)}
    total = torch.zeros_like(products[0])
    for number, part in enumerate(read_parts(spec, parameters)):
        lengths = squared_norms[number] * other_squared_norms[number]
        if isinstance(part, MatrixPart):
            total = total + lengths * _two_sided_factor(part, *shapes[part.parameter])
        elif part.dim < sum(parameter.size for parameter in parameters if parameter.name in part.parameters):
            total = total + (lengths + products[number].square()) / part.dim
    return total


def _two_sided_factor(part: MatrixPart, height: int, width: int) -> float:
    rows = 1.0 if part.row_dim == height else 1.0 + 2.0 / part.row_dim
    columns = 1.0 if part.column_dim == width else 1.0 + 2.0 / part.column_dim
    return (rows * columns - 1.0) / part.blocks
