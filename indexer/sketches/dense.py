"""Dense random sketches, a tile of R at a time: generate the tile, one float32 product, forget it.

At a thousand rows the product outweighs the generator by fifty to one; a few rows are the generator's time alone.
"""

from __future__ import annotations

import math
import threading
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from indexer.sketches.base import check_add, tiles
from indexer.sketches.spec import SketchSpec
from indexer.sketches.threads import KernelThreads

TILE_BYTES = 32 * 1024**2
"""Size of a tile of R on the CPU: large enough that the product runs at full speed, small enough for its cache.

Smaller tiles are filled faster, but the threads meet twice a tile: on a busy machine a quarter of the size took up to
twice the time.
"""
CUDA_TILE_BYTES = 256 * 1024**2


class DenseSketch(ABC):
    """Common part of rademacher and gaussian: R = entries / √d, entries of unit variance from a counter.

    Attributes:
        spec: Family, dimension and seed.
        num_parameters: P.
        threads: The pool that splits the CPU kernels; its thread count was fixed when the sketch was made.
    """

    def __init__(self, spec: SketchSpec, num_parameters: int, num_threads: int | None = None) -> None:
        spec.check_fits(num_parameters)
        self.spec = spec
        self.num_parameters = num_parameters
        self.threads = KernelThreads(num_threads)
        self._local = threading.local()

    @abstractmethod
    def fill(self, offset: int, out: Tensor) -> None:
        """Write the unscaled entries of parameters offset, offset + 1, … with the compiled kernel.

        Args:
            offset: Index of the first parameter.
            out: float32 [p, d] on the CPU, contiguous; overwritten.
        """

    @abstractmethod
    def entries(self, offset: int, num_parameters: int, device: torch.device) -> Tensor:
        """The same entries by torch alone, on any device.

        Args:
            offset: Index of the first parameter.
            num_parameters: How many, p.
            device: Where to compute.

        Returns:
            float32 [p, d].
        """

    @property
    def scale(self) -> float:
        """1/√d, which makes E[RᵀR] = I."""
        return 1.0 / math.sqrt(self.spec.dim)

    def add(self, gradients: Tensor, offset: int, out: Tensor) -> None:
        """Add what R makes of a slab, tile by tile; see `Sketch.add`.

        Args:
            gradients: Tangent features of consecutive parameters, float32 [b, p].
            offset: Index of the first of them.
            out: Sketches so far, float32 [b, d].
        """
        check_add(self, gradients, offset, out)
        on_cpu = gradients.device.type == "cpu"
        row_bytes = 4 * self.spec.dim
        largest = max(1, (TILE_BYTES if on_cpu else CUDA_TILE_BYTES) // row_bytes)
        for start, stop in tiles(gradients.shape[1], largest):
            if on_cpu:
                tile = self._tile(stop - start)
                self.fill(offset + start, tile)
            else:
                tile = self.entries(offset + start, stop - start, gradients.device)
            out.addmm_(gradients[:, start:stop], tile, alpha=self.scale)

    def columns(self, offset: int, num_parameters: int) -> Tensor:
        """Part of R, scale included; see `Sketch.columns`.

        Args:
            offset: Index of the first parameter.
            num_parameters: How many, p.

        Returns:
            float32 [p, d].
        """
        tile = torch.empty(num_parameters, self.spec.dim)
        self.fill(offset, tile)
        return tile * self.scale

    def _tile(self, num_parameters: int) -> Tensor:
        # Fresh pages cost more than the signs written to them, so each thread keeps its tile.
        tile: Tensor | None = getattr(self._local, "tile", None)
        if tile is None or tile.shape[0] < num_parameters:
            tile = torch.empty(num_parameters, self.spec.dim)
            self._local.tile = tile
        return tile[:num_parameters]
