"""The compiled twin of ``attribution.spectral_filter``: one read of the eigenvectors at the speed of memory."""

from functools import partial

import numpy as np
import torch
from torch import Tensor

from attribution.cores import on_all_cores
from attribution.spectral_filter import CHUNK, in_order
from indexer.attributor.compiled import compiled_in_lanes


@compiled_in_lanes
def _filter(eigenvectors, weights, vectors, first, last, coefficients, totals):  # type: ignore[no-untyped-def]
    """Eigenvectors ``first`` to ``last``, four at a time: their products with each vector, and their weighted sums."""
    whole = first + (last - first) // 4 * 4
    for k in range(first, whole, 4):
        for i in range(vectors.shape[0]):
            values, total = vectors[i], totals[i]
            a, b, c, d = 0.0, 0.0, 0.0, 0.0
            for j in range(values.shape[0]):
                value = values[j]
                a += eigenvectors[k, j] * value
                b += eigenvectors[k + 1, j] * value
                c += eigenvectors[k + 2, j] * value
                d += eigenvectors[k + 3, j] * value
            coefficients[i, k], coefficients[i, k + 1] = a, b
            coefficients[i, k + 2], coefficients[i, k + 3] = c, d
            a, b, c, d = a * weights[k], b * weights[k + 1], c * weights[k + 2], d * weights[k + 3]
            for j in range(values.shape[0]):
                total[j] += (a * eigenvectors[k, j] + b * eigenvectors[k + 1, j]) + (
                    c * eigenvectors[k + 2, j] + d * eigenvectors[k + 3, j]
                )
    for k in range(whole, last):
        for i in range(vectors.shape[0]):
            values, total = vectors[i], totals[i]
            a = 0.0
            for j in range(values.shape[0]):
                a += eigenvectors[k, j] * values[j]
            coefficients[i, k] = a
            a *= weights[k]
            for j in range(values.shape[0]):
                total[j] += a * eigenvectors[k, j]


def spectral_filter(eigenvectors: Tensor, weights: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Multiply vectors with a matrix given by its eigenvectors, in sums of fixed order; see the twin.

    Args:
        eigenvectors: One u_k per row, float64 [m, m], contiguous.
        weights: w, float64 [m].
        vectors: One v per row, float64 [b, m].

    Returns:
        Uᵀv and Σ_k w_k (u_k · v) u_k of each, float64 [b, m].
    """
    rows, scale = eigenvectors.numpy(), weights.numpy()
    values = np.ascontiguousarray(vectors.numpy())
    count, size = values.shape
    coefficients = np.empty((count, size))
    starts = range(0, size, CHUNK)
    sums = np.zeros((len(starts), count, size))
    on_all_cores(
        [
            partial(_filter, rows, scale, values, start, min(start + CHUNK, size), coefficients, sums[place])
            for place, start in enumerate(starts)
        ]
    )
    return torch.from_numpy(coefficients), torch.from_numpy(in_order(sums))


def compile_kernels() -> None:
    """Compile, or load from numba's cache, what multiplies eigenvectors, on one value."""
    one = torch.ones(1, dtype=torch.float64)
    spectral_filter(one.unsqueeze(0), one, one.unsqueeze(0))
