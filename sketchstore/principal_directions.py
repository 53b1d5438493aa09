"""The leading principal directions of sketches, by randomised subspace iteration (Halko, Martinsson and Tropp 2011)."""

import torch
from torch import Tensor

ITERATIONS = 3
_SEED = 0


def leading_directions(sample: Tensor, count: int) -> Tensor:
    """About the leading right singular directions of a sample, and in any case orthonormal ones.

    The iteration is in float32, twice as fast, because only how much of the sample the directions hold depends on it;
    that they are orthonormal is the last line's, in float64. Householder's Q is orthonormal whatever the rank: where
    the sample has fewer directions than were asked for, some are arbitrary.

    Args:
        sample: float32 [m, d], of magnitudes that float32 can square.
        count: k, at most d.

    Returns:
        Orthonormal rows, float64 [k, d].
    """
    generator = torch.Generator().manual_seed(_SEED)
    directions = torch.randn(sample.shape[1], count, generator=generator)
    for _ in range(ITERATIONS):
        directions = torch.linalg.qr(sample.T @ (sample @ directions)).Q
    orthonormal: Tensor = torch.linalg.qr(directions.double()).Q
    return orthonormal.T.contiguous()
