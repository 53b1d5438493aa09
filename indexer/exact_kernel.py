"""Kernel values of a few hundred rows without a sketch: the yardstick that a sketch is measured with.

The gradients pass by in slabs of parameters, each with all rows, and leave only products behind: no [n, P] exists.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from indexer.jacobians import Slab

COLUMNS_AT_ONCE = 8192
"""Coordinates whose products are formed together, so that the float64 copy of a slab stays small."""


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
        part_kernels: g·g′ over the coordinates of each part that was asked for, [k, n, n].
    """

    kernel: Tensor
    squared_products: Tensor
    squared_mean_products: Tensor
    part_kernels: Tensor


def exact_kernel(
    slabs: Iterable[Slab], rows: int, pairs: Pairs, parts: Sequence[Sequence[tuple[int, int]]] = ()
) -> ExactKernel:
    """Accumulate kernel values over slabs.

    Args:
        slabs: Slabs that hold all rows (`Featuriser.slabs`).
        rows: n.
        pairs: Pairs whose coordinate-wise products are wanted too.
        parts: Ranges of coordinates, first and after the last, whose products are wanted apart.

    Returns:
        The products.
    """
    kernel, squares = torch.zeros(2, rows, rows, dtype=torch.float64)
    part_kernels = torch.zeros(len(parts), rows, rows, dtype=torch.float64)
    squared_mean = torch.zeros((), dtype=torch.float64)
    # Row i of `partners` sums the rows that i is paired with: Σ_pairs g g′ at a coordinate = Σ_i g_i (partners g)_i.
    partners = torch.zeros(rows, rows)
    partners.index_put_((pairs.first, pairs.second), torch.ones(len(pairs.first)), accumulate=True)
    count = max(1, len(pairs.first))
    for slab in slabs:
        for start in range(0, slab.gradients.shape[1], COLUMNS_AT_ONCE):
            gradients = slab.gradients[:, start : start + COLUMNS_AT_ONCE].cpu()
            precise = gradients.double()
            kernel += precise @ precise.T
            first = slab.offset + start
            for number, ranges in enumerate(parts):
                for begin, end in ranges:
                    some = precise[:, max(0, begin - first) : max(0, end - first)]
                    if some.shape[1]:
                        part_kernels[number] += some @ some.T
            # What theory is made of needs no more than float32.
            squared = gradients.square()
            squares += squared @ squared.T
            products = (gradients * (partners @ gradients)).sum(0)
            squared_mean += (products / count).double().square().sum()
    return ExactKernel(kernel, squares[pairs.first, pairs.second], squared_mean, part_kernels)


def mean_square(kernel: Tensor, pairs: Pairs) -> Tensor:
    r"""Squared Frobenius norm of the mean over pairs of the symmetrised g g′ᵀ, from a kernel of the rows.

    Args:
        kernel: g·g′ of all rows, float64 [n, n].
        pairs: The pairs.

    Returns:
        :math:`\|M\|_F^2`, [].
    """
    first, second = pairs.first, pairs.second
    same = kernel[first][:, first] * kernel[second][:, second]
    crossed = kernel[first][:, second] * kernel[second][:, first]
    return (same + crossed).mean() / 2


def kernel_features(kernel: Tensor) -> Tensor:
    """Short vectors with the given inner products, so that rules written for sketches serve exact kernels.

    K = U Λ Uᵀ gives U √Λ. Eigenvalues that rounding made negative are those of directions that the rows do not span.

    Args:
        kernel: Positive semidefinite, float64 [n, n].

    Returns:
        float64 [n, n], row i for row i of the kernel.
    """
    eigenvalues, eigenvectors = torch.linalg.eigh(kernel)
    features: Tensor = eigenvectors * eigenvalues.clamp_min(0.0).sqrt()
    return features
