"""Vectors multiplied with a function of a Gram matrix through its eigenvectors, the same bits on any number of threads.

C v with C = Σ_k w_k u_k u_kᵀ: an inner product and an update per eigenvector, while it is in the cache.
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
    [Float[Tensor, "m m"], Float[Tensor, " m"], Float[Tensor, " m"]], tuple[Float[Tensor, " m"], Float[Tensor, " m"]]
]

#: Eigenvectors that stay in the cache between their inner products and their sum.
_BLOCK = 16


def spectral_filter(
    eigenvectors: Float[Tensor, "m m"], weights: Float[Tensor, " m"], vector: Float[Tensor, " m"]
) -> tuple[Float[Tensor, " m"], Float[Tensor, " m"]]:
    r"""Multiply a vector with a matrix given by its eigenvectors, in float64 sums of fixed order.

    .. math:: F = U^\top v, \qquad C v = \sum_k w_k F_k u_k

    Args:
        eigenvectors: One u_k per **row**, shape [m, m], float64, contiguous.
        weights: w, shape [m], float64; eigenvectors of weight 0 add nothing.
        vector: v, shape [m], float64.

    Returns:
        F and C v, each shape [m].
    """
    rows, scale = eigenvectors.numpy(), weights.numpy()
    values = np.ascontiguousarray(vector.numpy())
    size = rows.shape[0]
    starts = range(0, size, CHUNK)
    coefficients = np.empty(size)
    sums = np.zeros((len(starts), size))
    on_all_cores([partial(_add_chunk, rows, scale, values, start, coefficients, sums) for start in starts])
    total = sums[0]
    for part in sums[1:]:
        total = total + part
    return torch.from_numpy(coefficients), torch.from_numpy(total)


def _add_chunk(rows: Array, weights: Array, values: Array, start: int, coefficients: Array, sums: Array) -> None:
    end = min(start + CHUNK, rows.shape[0])
    total = sums[start // CHUNK]
    for left in range(start, end, _BLOCK):
        block = slice(left, min(left + _BLOCK, end))
        coefficients[block] = row_dots(rows[block], values)
        total += row_sum(rows[block], weights[block] * coefficients[block])
