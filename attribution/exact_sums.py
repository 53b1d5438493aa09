"""Float64 inner products whose bits depend on the row alone: the sums that decide, after fast products nominated.

BLAS splits a product differently for another thread count or batch, so its last bits move. Here a row's sum is formed
the same way whatever stands beside it, so that equal rows tie exactly and an answer is the same alone, in a batch and
on any number of threads.
"""

from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from attribution.cores import on_all_cores

Array = npt.NDArray[np.float64]

#: Values summed at a time. numpy hands each row's sum to one ddot of its BLAS, which starts no threads below 10,000
#: values: up to here the order of summation inside a row is fixed.
_SLICE = 8_192
#: Values from which :func:`row_sum` is worth several cores, and columns it gives to one at a time. Which columns are
#: summed together follows from the shape alone.
_MANY_VALUES = 2**20
_SLICE_COLUMNS = 512


def unit_roundoff(dtype: torch.dtype) -> float:
    """Give u, the largest relative error of one rounding.

    Args:
        dtype: A floating-point type.

    Returns:
        u = eps/2, for instance 2⁻²⁴ for float32.
    """
    return float(torch.finfo(dtype).eps) / 2


def inner_product_error(dim: int, dtype: torch.dtype) -> float:
    r"""Bound the error of an inner product, relative to the product of the norms.

    .. math:: |fl(x \cdot y) - x \cdot y| \le \gamma_m \|x\| \|y\|, \quad \gamma_m = m u / (1 - m u)

    It holds for every order of summation (Higham, Accuracy and Stability, Eq. 3.5), hence for BLAS, FAISS and GPUs on
    any number of threads. m = d + 3: d for the sum, 1 for a float64 vector rounded to ``dtype``, 1 for sketches
    rounded to it, 1 to spare for the norms themselves.

    Args:
        dim: d, the number of products summed.
        dtype: Type in which products and sums are rounded.

    Returns:
        γ, dimensionless; infinity where the dimension is too large for the type.
    """
    rounding = (dim + 3) * unit_roundoff(dtype)
    return rounding / (1 - rounding) if rounding < 1 else float("inf")


def row_dots(rows: Array, vector: Array) -> Array:
    """Multiply each row with a vector (or with its own, broadcast), each by one sum of fixed order.

    The work of :func:`inner_products`, on arrays: a greedy step makes dozens of such sums, and torch's overhead is more
    than the sums.

    Args:
        rows: Rows, shape [..., d], contiguous along d.
        vector: The vector, shape [..., d], contiguous along d.

    Returns:
        Inner products, of the broadcast shape without d.
    """
    dim = vector.shape[-1]
    if dim <= _SLICE:
        dots: Array = np.vecdot(rows, vector)
        return dots
    total: Array = np.vecdot(rows[..., :_SLICE], vector[..., :_SLICE])
    for left in range(_SLICE, dim, _SLICE):
        total = total + np.vecdot(rows[..., left : left + _SLICE], vector[..., left : left + _SLICE])
    return total


def row_sum(rows: Array, weights: Array) -> Array:
    """Add weighted rows in an order that no thread count changes: the work of :func:`weighted_sum`, on arrays.

    numpy's own einsum loop (``optimize=False``: no BLAS) is one pass.

    Args:
        rows: Rows, shape [m, d].
        weights: One weight per row, shape [m].

    Returns:
        Σ_i weights_i rows_i, shape [d].
    """
    if rows.size < _MANY_VALUES:
        total: Array = np.einsum("md,m->d", rows, weights, optimize=False)
        return total
    # Columns are shared between the cores: each is summed over the rows in their order, whoever does it.
    total = np.empty(rows.shape[1])
    columns = [slice(left, left + _SLICE_COLUMNS) for left in range(0, rows.shape[1], _SLICE_COLUMNS)]
    on_all_cores([partial(_sum_columns, rows, weights, part, total) for part in columns])
    return total


def _sum_columns(rows: Array, weights: Array, columns: slice, out: Array) -> None:
    out[columns] = np.einsum("md,m->d", rows[:, columns], weights, optimize=False)


def inner_products(rows: Float[Tensor, "m d"], vector: Float[Tensor, " d"]) -> Float[Tensor, " m"]:
    """Multiply each row with a vector, the bits of a result depending on its row and the vector only.

    Args:
        rows: Rows, shape [m, d], float64, on the CPU.
        vector: The vector, shape [d], float64.

    Returns:
        The m inner products, float64.
    """
    # Other strides would be summed in another order.
    return torch.from_numpy(row_dots(np.ascontiguousarray(rows.numpy()), np.ascontiguousarray(vector.numpy())))


def inner_product(left: Float[Tensor, " d"], right: Float[Tensor, " d"]) -> float:
    """Multiply two vectors in the fixed order of :func:`inner_products`.

    Args:
        left: A vector, shape [d], float64.
        right: A vector, shape [d], float64.

    Returns:
        Their inner product.
    """
    return float(inner_products(left.unsqueeze(0), right))


def squared_norms(rows: Float[Tensor, "m d"]) -> Float[Tensor, " m"]:
    """Multiply each row with itself, in the fixed order of :func:`inner_products`.

    Args:
        rows: Rows, shape [m, d], float64.

    Returns:
        The m squared norms, float64.
    """
    values = np.ascontiguousarray(rows.numpy())
    return torch.from_numpy(row_dots(values, values))


def weighted_sum(rows: Float[Tensor, "m d"], weights: Float[Tensor, " m"]) -> Float[Tensor, " d"]:
    """Add weighted rows in an order that no thread count changes.

    Args:
        rows: Rows, shape [m, d], float64, on the CPU.
        weights: One weight per row, shape [m], float64.

    Returns:
        Σ_i weights_i rows_i, shape [d]; zeros when m is 0.
    """
    return torch.from_numpy(row_sum(rows.numpy(), weights.numpy()))
