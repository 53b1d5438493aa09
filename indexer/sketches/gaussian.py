"""Dense normal entries, R = z/√d: for those who want the textbook's sketch.

Entry j of parameter q is looked up, by 16 bits of the Philox call with counter (q low, q high, j div 8, 1), in a table
of 65,536 normal quantiles of unit mean square. A table, unlike Box–Muller, needs no logarithm or cosine that devices
round differently, and is as fast as a copy; what it gives up are the tails beyond 4.3 standard deviations.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from indexer.sketches import kernels
from indexer.sketches.dense import DenseSketch
from indexer.sketches.philox import Stream, key, parameter_words

TABLE_SIZE = 2**16


@lru_cache(maxsize=1)
def quantile_table() -> Tensor:
    """Quantiles of the standard normal at (i + ½)/65,536, scaled to mean square 1.

    Returns:
        float32 [65,536], ascending and odd: entry 65,535 − i is minus entry i.
    """
    levels = (torch.arange(TABLE_SIZE // 2, dtype=torch.float64) + 0.5) / TABLE_SIZE
    lower = torch.special.ndtri(levels)
    lower = lower / lower.square().mean().sqrt()
    return torch.cat((lower, -lower.flip(0))).to(torch.float32)


class GaussianSketch(DenseSketch):
    """Normal entries from a counter, the same numbers on every device and thread count."""

    def fill(self, offset: int, out: Tensor) -> None:
        """Write entries with the compiled kernel; see `DenseSketch.fill`.

        Args:
            offset: Index of the first parameter.
            out: float32 [p, d] on the CPU, contiguous; overwritten.
        """
        values, table = out.numpy(), quantile_table().numpy()
        k0, k1 = (np.uint32(word) for word in key(self.spec.seed))

        def part(start: int, stop: int) -> None:
            first = np.uint64(offset + start)
            kernels.fill_from_table(values[start:stop], first, Stream.GAUSSIAN.value, k0, k1, table)

        self.threads.split(part, out.shape[0])

    def entries(self, offset: int, num_parameters: int, device: torch.device) -> Tensor:
        """Entries by torch alone; see `DenseSketch.entries`.

        Args:
            offset: Index of the first parameter.
            num_parameters: How many, p.
            device: Where to compute.

        Returns:
            float32 [p, d].
        """
        dim = self.spec.dim
        words = parameter_words(self.spec.seed, Stream.GAUSSIAN, offset, num_parameters, -(-dim // 8), device)
        halves = torch.stack((words & 0xFFFF, words >> 16), dim=-1).reshape(num_parameters, -1)[:, :dim]
        return quantile_table().to(device)[halves]
