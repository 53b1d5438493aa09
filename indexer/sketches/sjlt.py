"""Sparse signed buckets: each parameter goes to s positions of the sketch, with signs, scaled by 1/√s.

Copy k of parameter q lies in the k-th of s equal parts of the sketch, at a place and with a sign from the Philox call
with counter (q low, q high, k div 2, 2). The variance of inner products is that of dense signs (docs/sketches.md), at
s additions per parameter instead of d: the family for queries by example on a large model.
"""

from __future__ import annotations

import math
import threading

import numpy as np
import torch
from torch import Tensor

from indexer.sketches import kernels
from indexer.sketches.base import check_add, tiles
from indexer.sketches.philox import Stream, key, parameter_words
from indexer.sketches.spec import SketchSpec
from indexer.sketches.threads import KernelThreads

TILE_PARAMETERS = 16_384
"""Parameters whose buckets are made together: a few hundred kB of positions and signs, re-read for every row."""


class SjltSketch:
    """Sparse Johnson–Lindenstrauss transform (Kane and Nelson's block construction).

    Attributes:
        spec: Family, dimension, seed and number of buckets.
        num_parameters: P.
        threads: The pool that splits the CPU kernels.
    """

    def __init__(self, spec: SketchSpec, num_parameters: int, num_threads: int | None = None) -> None:
        spec.check_fits(num_parameters)
        self.spec = spec
        self.num_parameters = num_parameters
        self.threads = KernelThreads(num_threads)
        self._local = threading.local()

    @property
    def buckets(self) -> int:
        """s, the positions per parameter."""
        return int(self.spec.options["buckets"])

    @property
    def scale(self) -> float:
        """1/√s, which makes E[RᵀR] = I."""
        return 1.0 / math.sqrt(self.buckets)

    def add(self, gradients: Tensor, offset: int, out: Tensor) -> None:
        """Add each gradient at its positions; see `Sketch.add`.

        On a GPU, additions to one position come in no fixed order: sketches there repeat to float32 rounding only.

        Args:
            gradients: Tangent features of consecutive parameters, float32 [b, p].
            offset: Index of the first of them.
            out: Sketches so far, float32 [b, d].
        """
        check_add(self, gradients, offset, out)
        for start, stop in tiles(gradients.shape[1], TILE_PARAMETERS):
            slab = gradients[:, start:stop] * self.scale
            if gradients.device.type != "cpu":
                positions, signs = self.entries(offset + start, stop - start, gradients.device)
                for copy in range(self.buckets):
                    out.index_add_(1, positions[:, copy], slab * signs[:, copy])
                continue
            self._scatter(slab.contiguous(), offset + start, out)

    def entries(self, offset: int, num_parameters: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Positions and signs by torch alone, on any device.

        Args:
            offset: Index of the first parameter.
            num_parameters: How many, p.
            device: Where to compute.

        Returns:
            Positions, int64 [p, s], and signs, float32 [p, s].
        """
        copies = self.buckets
        calls = (copies + 1) // 2
        words = parameter_words(self.spec.seed, Stream.SJLT, offset, num_parameters, calls, device)
        pairs = words.reshape(num_parameters, -1, 2)[:, :copies]
        width = self.spec.dim // copies
        first = torch.arange(copies, device=device) * width
        positions = first + ((pairs[..., 0] * width) >> 32)
        return positions, (1 - 2 * (pairs[..., 1] & 1)).to(torch.float32)

    def columns(self, offset: int, num_parameters: int) -> Tensor:
        """Part of R, scale included; see `Sketch.columns`.

        Args:
            offset: Index of the first parameter.
            num_parameters: How many, p.

        Returns:
            float32 [p, d].
        """
        columns = torch.zeros(num_parameters, self.spec.dim)
        self.add(torch.eye(num_parameters), offset, columns)
        return columns

    def _scatter(self, slab: Tensor, offset: int, out: Tensor) -> None:
        count = slab.shape[1]
        positions, signs = self._buffers()
        positions, signs = positions[:count], signs[:count]
        k0, k1 = (np.uint32(word) for word in key(self.spec.seed))
        width = self.spec.dim // self.buckets
        values, total = slab.numpy(), out.numpy()

        def fill(start: int, stop: int) -> None:
            first = np.uint64(offset + start)
            kernels.fill_buckets(positions[start:stop], signs[start:stop], first, Stream.SJLT.value, k0, k1, width)

        def scatter(start: int, stop: int) -> None:
            kernels.scatter(values[start:stop], positions, signs, total[start:stop])

        self.threads.split(fill, count)
        self.threads.split(scatter, slab.shape[0])

    def _buffers(self) -> tuple[kernels.Array, kernels.Array]:
        buffers: tuple[kernels.Array, kernels.Array] | None = getattr(self._local, "buffers", None)
        if buffers is None:
            shape = (TILE_PARAMETERS, self.buckets)
            buffers = (np.empty(shape, np.int32), np.empty(shape, np.float32))
            self._local.buffers = buffers
        return buffers
