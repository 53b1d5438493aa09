"""Dense random signs, R = ±1/√d: the paper's sketch, and the default.

Sign j of parameter q is bit j mod 32 of word (j mod 128) div 32 of the Philox call with counter
(q low, q high, j div 128, 0) and the seed as key; a set bit is −1. docs/sketches.md has an example to check against.
"""

from __future__ import annotations

import importlib.util

import numpy as np
import torch
from torch import Tensor

from indexer.sketches import kernels
from indexer.sketches.base import check_add
from indexer.sketches.dense import DenseSketch
from indexer.sketches.philox import Stream, key, parameter_words
from indexer.sketches.spec import SketchSpec

FEW_ROWS = 8
"""Up to so many rows the signs are used as they are made; beyond, a product over a tile of them is faster."""


def triton_is_installed() -> bool:
    """Whether the GPU kernel can be used.

    Returns:
        True if Triton can be imported.
    """
    return importlib.util.find_spec("triton") is not None


class RademacherSketch(DenseSketch):
    """Signs from a counter, the same bits on every device and thread count.

    On a GPU a Triton kernel draws them in registers where Triton is installed (`triton_signs.py`); without it, torch
    writes a tile of them and multiplies.

    Attributes:
        compute_dtype: Type that the Triton kernel multiplies in; its sums are float32.
    """

    def __init__(
        self,
        spec: SketchSpec,
        num_parameters: int,
        num_threads: int | None = None,
        compute_dtype: str = "float32",
    ) -> None:
        super().__init__(spec, num_parameters, num_threads)
        self.compute_dtype = compute_dtype

    def add(self, gradients: Tensor, offset: int, out: Tensor) -> None:
        """Add what R makes of a slab; see `Sketch.add`.

        Args:
            gradients: Tangent features of consecutive parameters, float32 [b, p].
            offset: Index of the first of them.
            out: Sketches so far, float32 [b, d].
        """
        check_add(self, gradients, offset, out)
        if gradients.device.type == "cuda" and triton_is_installed():
            from indexer.sketches.triton_signs import add_signed  # needs Triton, which only a GPU's machine has

            add_signed(gradients, offset, out, self.spec.seed, self.scale, self.compute_dtype)
            return
        if gradients.shape[0] > FEW_ROWS or gradients.device.type != "cpu":
            super().add(gradients, offset, out)
            return
        scaled = np.ascontiguousarray((gradients * self.scale).numpy())
        total = out.numpy()
        k0, k1 = (np.uint32(word) for word in key(self.spec.seed))

        # Threads share positions, not parameters: each position is summed by one thread in the parameters' order.
        def part(start: int, stop: int) -> None:
            kernels.add_signed(
                scaled, np.uint64(offset), total[:, start:stop], start // 128, Stream.RADEMACHER.value, k0, k1
            )

        self.threads.split(part, self.spec.dim, multiple=128)

    def fill(self, offset: int, out: Tensor) -> None:
        """Write signs with the compiled kernel; see `DenseSketch.fill`.

        Args:
            offset: Index of the first parameter.
            out: float32 [p, d] on the CPU, contiguous; overwritten.
        """
        bits = out.numpy().view(np.uint32)
        k0, k1 = (np.uint32(word) for word in key(self.spec.seed))

        def part(start: int, stop: int) -> None:
            kernels.fill_signs(bits[start:stop], np.uint64(offset + start), Stream.RADEMACHER.value, k0, k1)

        self.threads.split(part, out.shape[0])

    def entries(self, offset: int, num_parameters: int, device: torch.device) -> Tensor:
        """Signs by torch alone; see `DenseSketch.entries`.

        Args:
            offset: Index of the first parameter.
            num_parameters: How many, p.
            device: Where to compute.

        Returns:
            float32 [p, d] of ±1.
        """
        dim = self.spec.dim
        calls = -(-dim // 128)
        words = parameter_words(self.spec.seed, Stream.RADEMACHER, offset, num_parameters, calls, device)
        shifts = torch.arange(32, device=device, dtype=torch.int32)
        # The low 32 bits of a word as a signed int32: shifts then need half the memory of int64.
        signed = torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)
        bits = (signed.unsqueeze(-1) >> shifts) & 1
        return (1 - 2 * bits.reshape(num_parameters, -1)[:, :dim]).to(torch.float32)
