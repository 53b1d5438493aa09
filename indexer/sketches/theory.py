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

from indexer.sketches.gaussian import quantile_table
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
