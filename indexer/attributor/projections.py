"""Products of residuals with the directions of a view's heads, each read once for all residuals of a round."""

from collections.abc import Sequence
from functools import partial

import numpy as np

from attribution.cores import on_all_cores
from attribution.exact_sums import Array
from indexer.attributor.compiled import compiled_in_lanes

#: Directions multiplied with every residual of a round while they are in the cache of a core; a multiple of four.
_BLOCK_DIRECTIONS = 16


@compiled_in_lanes
def _project(basis, vectors, left, right, out):  # type: ignore[no-untyped-def]
    """Directions ``left`` to ``right`` with every vector, four directions at a time.

    At the end the last stands in for those missing; all four sums are formed alike.
    """
    for top in range(left, right, _BLOCK_DIRECTIONS):
        below = min(top + _BLOCK_DIRECTIONS, right)
        for j in range(vectors.shape[0]):
            for k in range(top, below, 4):
                k1, k2, k3 = min(k + 1, below - 1), min(k + 2, below - 1), min(k + 3, below - 1)
                total, total1, total2, total3 = 0.0, 0.0, 0.0, 0.0
                for i in range(vectors.shape[1]):
                    value = vectors[j, i]
                    total += basis[k, i] * value
                    total1 += basis[k1, i] * value
                    total2 += basis[k2, i] * value
                    total3 += basis[k3, i] * value
                out[j, k], out[j, k1], out[j, k2], out[j, k3] = total, total1, total2, total3


def project_together(basis: Array, vectors: Sequence[Array]) -> Array:
    """Multiply directions with vectors; what one vector gives does not depend on the others.

    Args:
        basis: B, float64 [k, d].
        vectors: Each float64 [d].

    Returns:
        B · vector of each, float64 [m, k].
    """
    stacked = np.stack(vectors)
    out = np.empty((stacked.shape[0], basis.shape[0]))
    blocks = range(0, basis.shape[0], _BLOCK_DIRECTIONS)
    # One vector alone is multiplied before another thread would have woken.
    if len(vectors) == 1:
        _project(basis, stacked, 0, basis.shape[0], out)
    else:
        on_all_cores(
            [
                partial(_project, basis, stacked, top, min(top + _BLOCK_DIRECTIONS, basis.shape[0]), out)
                for top in blocks
            ]
        )
    return out
