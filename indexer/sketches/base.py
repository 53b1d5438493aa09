"""What every sketch family does: take slabs of tangent features and add what R makes of them.

A gradient never has to exist whole: a row's sketch is the sum over slabs of parameters, R g = Σ R[:, slab] g[slab].
"""

from __future__ import annotations

from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from indexer.sketches.spec import SketchSpec, SketchSpecError


class Sketch(Protocol):
    """A sketching matrix R [d, P], given by its spec and never stored.

    Attributes:
        spec: Family, dimension, seed and options.
        num_parameters: P.
    """

    spec: SketchSpec
    num_parameters: int

    def add(self, gradients: Tensor, offset: int, out: Tensor) -> None:
        """Add R[:, offset : offset + p] g for every row: out ← out + gradients Rᵀ.

        Args:
            gradients: Tangent features of consecutive parameters, float32 [b, p].
            offset: Index of the first of them in the parameter list's order.
            out: Sketches so far, float32 [b, d] on the same device, changed in place.

        Raises:
            SketchSpecError: If shapes, types or the range of parameters do not fit.
        """
        ...

    def columns(self, offset: int, num_parameters: int) -> Tensor:
        """The part of R that belongs to consecutive parameters, for tests and readers of the specification.

        Args:
            offset: Index of the first parameter.
            num_parameters: How many, p.

        Returns:
            R[:, offset : offset + p]ᵀ, float32 [p, d].
        """
        ...


def check_add(sketch: Sketch, gradients: Tensor, offset: int, out: Tensor) -> None:
    """Refuse a slab that does not fit its sketch.

    Args:
        sketch: The sketch to add to.
        gradients: The slab, float32 [b, p].
        offset: Index of its first parameter.
        out: The accumulator, float32 [b, d].

    Raises:
        SketchSpecError: If shapes, types or the range of parameters do not fit.
    """
    if gradients.dtype != torch.float32 or out.dtype != torch.float32:
        raise SketchSpecError(f"a sketch adds float32 slabs to float32 rows, got {gradients.dtype} and {out.dtype}.")
    if gradients.ndim != 2 or out.shape != (gradients.shape[0], sketch.spec.dim):
        raise SketchSpecError(
            f"a slab [b, p] goes to rows [b, {sketch.spec.dim}], got {list(gradients.shape)} and {list(out.shape)}."
        )
    last = offset + gradients.shape[1]
    if offset < 0 or last > sketch.num_parameters:
        raise SketchSpecError(
            f"parameters {offset} to {last} lie outside the {sketch.num_parameters} that this sketch was made for."
        )


def tiles(num_parameters: int, largest: int) -> list[tuple[int, int]]:
    """Equal parts of a slab, none longer than ``largest``.

    Args:
        num_parameters: Length of the slab.
        largest: Longest part allowed, at least 1.

    Returns:
        (start, stop) of each part.
    """
    count = -(-num_parameters // largest)
    edges = [num_parameters * i // count for i in range(count + 1)] if count else [0]
    return list(pairwise(edges))
