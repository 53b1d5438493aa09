"""Kernel values of a few hundred rows without a sketch: the yardstick that a sketch is measured with.

The gradients pass by in slabs of parameters, each with all rows, and leave only products behind: no [n, P] exists.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from indexer.jacobians import Slab

PAIR_BYTES = 64 * 1024**2
"""Size of the products of pairs that are formed at once."""


@dataclass(frozen=True)
class Pairs:
    """Pairs of rows, by position.

    Attributes:
        first: int64 [k].
        second: int64 [k].
    """

    first: Tensor
    second: Tensor


@dataclass(frozen=True)
class ExactKernel:
    """Products of tangent features, float64.

    Attributes:
        kernel: g·g′ of all rows, [n, n].
        squared_products: Σ_i g_i² g′_i² of each pair, [k].
        squared_mean_products: Σ_i (mean over pairs of g_i g′_i)², [].
    """

    kernel: Tensor
    squared_products: Tensor
    squared_mean_products: Tensor


def exact_kernel(slabs: Iterable[Slab], rows: int, pairs: Pairs) -> ExactKernel:
    """Accumulate kernel values over slabs.

    Args:
        slabs: Slabs that hold all rows (`Featuriser.slabs`).
        rows: n.
        pairs: Pairs whose coordinate-wise products are wanted too.

    Returns:
        The products.
    """
    kernel = torch.zeros(rows, rows, dtype=torch.float64)
    squared_products = torch.zeros(len(pairs.first), dtype=torch.float64)
    squared_mean = torch.zeros((), dtype=torch.float64)
    width = max(1, PAIR_BYTES // (4 * max(1, len(pairs.first))))
    for slab in slabs:
        gradients = slab.gradients.cpu()
        for start in range(0, gradients.shape[1], width):
            part = gradients[:, start : start + width]
            precise = part.double()
            kernel += precise @ precise.T
            if len(pairs.first):
                products = part[pairs.first] * part[pairs.second]
                squared_products += products.square().sum(1, dtype=torch.float64)
                squared_mean += products.mean(0, dtype=torch.float64).square().sum()
    return ExactKernel(kernel, squared_products, squared_mean)


def kernel_features(kernel: Tensor) -> Tensor:
    """Short vectors with the given inner products, so that rules written for sketches serve exact kernels.

    K = U Λ Uᵀ gives U √Λ. Eigenvalues that rounding made negative are those of directions that the rows do not span.

    Args:
        kernel: Positive semidefinite, float64 [n, n].

    Returns:
        float64 [n, n], row i for row i of the kernel.
    """
    eigenvalues, eigenvectors = torch.linalg.eigh(kernel)
    return eigenvectors * eigenvalues.clamp_min(0.0).sqrt()
