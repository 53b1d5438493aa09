"""Squared norms of stored sketches and their means: the unit of relative noise."""

import math

import numpy as np
import numpy.typing as npt

from sketchstore.arrays import Array, widened
from sketchstore.manifest import NO_LABEL

CHUNK_BYTES = 8 << 20


def squared_norms(stored: Array, scale: float) -> npt.NDArray[np.float64]:
    """Squared norm of every row in true units, ``scale² Σ_j stored_j²`` in float64.

    Args:
        stored: Stored values, shape [n, d].
        scale: The view's scale, a power of two.

    Returns:
        Squared norms, shape [n].
    """
    rows = max(1, CHUNK_BYTES // (8 * max(1, stored.shape[1])))
    norms = np.empty(stored.shape[0])
    for start in range(0, stored.shape[0], rows):
        block = widened(stored[start : start + rows]).numpy()
        norms[start : start + rows] = np.square(block).sum(axis=1)
    return norms * (scale * scale)


def mean_squared_norms(norms: Array, labels: Array) -> tuple[float, dict[str, float]]:
    """Mean squared norm over all rows and over the rows of each label.

    The sums are correctly rounded (math.fsum), so that no order of summation is part of the format.

    Args:
        norms: Squared norms, float64 [n].
        labels: Labels, int64 [n]; −1 is none.

    Returns:
        The mean over all rows, and by label in ascending order.
    """
    values = norms.tolist()
    by_label = {}
    for label in np.unique(labels[labels != NO_LABEL]).tolist():
        chosen = norms[labels == label].tolist()
        by_label[str(label)] = math.fsum(chosen) / len(chosen)
    return math.fsum(values) / len(values), by_label
