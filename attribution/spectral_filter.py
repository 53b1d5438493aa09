"""Vectors multiplied with a function of a Gram matrix through its eigenvectors, the same bits on any number of threads.

C v with C = Σ_k w_k u_k u_kᵀ: an inner product and an update per eigenvector, while it is in the cache, for each of
the vectors. No number depends on what is multiplied beside it.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from attribution.cores import on_all_cores
from attribution.exact_sums import Array, row_dots, row_sum

#: Eigenvectors whose terms are added up by one thread; fixed, for the order of summation follows from it.
CHUNK = 512
#: Multiplies eigenvectors as :func:`spectral_filter` does, in sums whose order follows from their number. Whoever
#: has a faster one hands it to :class:`attribution.posterior.SetPosterior`: every removal needs it once.
SpectralFilter = Callable[
    [Float[Tensor, "m m"], Float[Tensor, " m"], Float[Tensor, "b m"]],
    tuple[Float[Tensor, "b m"], Float[Tensor, "b m"]],
]

#: Eigenvectors that stay in the cache between their inner products and their sum.
_BLOCK = 16


def spectral_filter(
    eigenvectors: Float[Tensor, "m m"], weights: Float[Tensor, " m"], vectors: Float[Tensor, "b m"]
) -> tuple[Float[Tensor, "b m"], Float[Tensor, "b m"]]:
    r"""Multiply vectors with a matrix given by its eigenvectors, in float64 sums of fixed order.

    .. math:: F = U^\top v, \qquad C v = \sum_k w_k F_k u_k

    Args:
        eigenvectors: One u_k per **row**, shape [m, m], float64, contiguous.
        weights: w, shape [m], float64; eigenvectors of weight 0 add nothing.
        vectors: One v per row, shape [b, m], float64.

    Returns:
        F and C v of each, shape [b, m].
    """
    rows, scale = eigenvectors.numpy(), weights.numpy()
    values = np.ascontiguousarray(vectors.numpy())
    count, size = values.shape
    starts = range(0, size, CHUNK)
    coefficients = np.empty((count, size))
    sums = np.zeros((len(starts), count, size))
    on_all_cores([partial(_add_chunk, rows, scale, values, start, coefficients, sums) for start in starts])
    return torch.from_numpy(coefficients), torch.from_numpy(in_order(sums))


def in_order(sums: Array) -> Array:
    """Add up the sums of all chunks, the first first.

    Args:
        sums: One array per chunk, shape [chunks, ...].

    Returns:
        Their sum.
    """
    total: Array = sums[0]
    for part in sums[1:]:
        total = total + part
    return total


def _add_chunk(rows: Array, weights: Array, values: Array, start: int, coefficients: Array, sums: Array) -> None:
    end = min(start + CHUNK, rows.shape[0])
    for left in range(start, end, _BLOCK):
        block = slice(left, min(left + _BLOCK, end))
        for vector, found, total in zip(values, coefficients, sums[start // CHUNK], strict=True):
            found[block] = row_dots(rows[block], vector)
            total += row_sum(rows[block], weights[block] * found[block])
