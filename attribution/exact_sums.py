"""Float64 inner products whose bits depend on the row alone: the sums that decide, after fast products nominated.

BLAS splits a product differently for another thread count or batch, so its last bits move. Here a row's sum is formed
the same way whatever stands beside it, so that equal rows tie exactly and an answer is the same alone, in a batch and
on any number of threads.
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

#: Columns summed at a time. Torch splits one row's sum over threads only from 32,768 elements on, so below that the
#: order of summation inside a row is fixed.
_SLICE_COLUMNS = 16_384
#: Elements of a product held at a time: they stay in the cache between multiplication and sum, and below 32,768 torch
#: starts no threads, whose start costs more than the work.
_BLOCK_ELEMENTS = 28_672


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


def inner_products(rows: Float[Tensor, "m d"], vector: Float[Tensor, " d"]) -> Float[Tensor, " m"]:
    """Multiply each row with a vector, the bits of a result depending on its row and the vector only.

    Args:
        rows: Rows, shape [m, d], float64.
        vector: The vector, shape [d], float64.

    Returns:
        The m inner products, float64.
    """
    num_rows, dim = rows.shape
    rows = rows.contiguous()  # other strides sum in another order
    if num_rows * dim <= _BLOCK_ELEMENTS and dim <= _SLICE_COLUMNS:
        return (rows * vector).sum(dim=1)
    result = torch.zeros(num_rows, dtype=torch.float64, device=rows.device)
    for left in range(0, dim, _SLICE_COLUMNS):
        right = min(left + _SLICE_COLUMNS, dim)
        block = max(1, _BLOCK_ELEMENTS // (right - left))
        for top in range(0, num_rows, block):
            part = rows[top : top + block, left:right] * vector[left:right]
            result[top : top + block] += part.sum(dim=1)
    return result


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
    rows = rows.contiguous()
    if rows.numel() <= _BLOCK_ELEMENTS and rows.shape[1] <= _SLICE_COLUMNS:
        return (rows * rows).sum(dim=1)
    return torch.cat([inner_products(row.unsqueeze(0), row) for row in rows])


def weighted_sum(rows: Float[Tensor, "m d"], weights: Float[Tensor, " m"]) -> Float[Tensor, " d"]:
    """Add weighted rows in an order that no thread count changes.

    numpy's own einsum loop (``optimize=False``: no BLAS) is one thread and one pass; torch has no such sum but BLAS.

    Args:
        rows: Rows, shape [m, d], float64, on the CPU.
        weights: One weight per row, shape [m], float64.

    Returns:
        Σ_i weights_i rows_i, shape [d]; zeros when m is 0.
    """
    return torch.from_numpy(np.einsum("md,m->d", rows.numpy(), weights.numpy(), optimize=False))
