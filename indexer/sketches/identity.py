"""The sketch that keeps everything: d = P, exact kernels, for small models and as the yardstick of the others."""

from __future__ import annotations

import torch
from torch import Tensor

from indexer.sketches.base import check_add
from indexer.sketches.spec import SketchSpec


class IdentitySketch:
    """R = I: the sketch is the tangent feature itself.

    Attributes:
        spec: Its spec, with dim = P.
        num_parameters: P.
    """

    def __init__(self, spec: SketchSpec, num_parameters: int) -> None:
        spec.check_fits(num_parameters)
        self.spec = spec
        self.num_parameters = num_parameters

    def add(self, gradients: Tensor, offset: int, out: Tensor) -> None:
        """Add the slab to its own columns; see `Sketch.add`.

        Args:
            gradients: Tangent features of consecutive parameters, float32 [b, p].
            offset: Index of the first of them.
            out: Sketches so far, float32 [b, P].
        """
        check_add(self, gradients, offset, out)
        out[:, offset : offset + gradients.shape[1]] += gradients

    def columns(self, offset: int, num_parameters: int) -> Tensor:
        """Rows of the identity; see `Sketch.columns`.

        Args:
            offset: Index of the first parameter.
            num_parameters: How many, p.

        Returns:
            float32 [p, P].
        """
        columns = torch.zeros(num_parameters, self.spec.dim)
        columns[torch.arange(num_parameters), torch.arange(offset, offset + num_parameters)] = 1.0
        return columns
