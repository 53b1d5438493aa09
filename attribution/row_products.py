"""Products of a matrix with the vectors of a decision: float64 sums whose order nothing but the row's place changes.

A coreset selection multiplies its contenders with matrices of up to a thousand rows, so whoever has faster products
hands them in; this is the plain form.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from attribution.exact_sums import Array, row_dots

Rows = npt.NDArray[Any]  # float64 or float32

#: Multiplies the first k values of every row [m, ≥ k] with every vector [s, k]: float64 [s, m], each one sum of an
#: order that depends on the row's place and k only. :func:`row_products` is the plain one.
RowProducts = Callable[[Rows, Array], Array]


def row_products(rows: Rows, vectors: Array) -> Array:
    """Multiply the beginning of each row with each vector, each product one sum of fixed order.

    Args:
        rows: Rows, shape [m, w], contiguous along w, float64, or float32 which is widened.
        vectors: Vectors, shape [s, k] with k ≤ w, contiguous along k, float64.

    Returns:
        Inner products of the first k values, shape [s, m].
    """
    products = np.empty((vectors.shape[0], rows.shape[0]))
    for place, vector in enumerate(vectors):
        products[place] = row_dots(rows[:, : vector.shape[0]], vector)
    return products
