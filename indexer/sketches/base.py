"""What every sketch family does: take slabs of tangent features and add what R makes of them.

A gradient never has to exist whole: a row's sketch is the sum over slabs of parameters, R g = Σ R[:, slab] g[slab].
"""

from __future__ import annotations

from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from indexer.layers.factors import LEAST_SIDE, Factors
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


def check_factored(sketch: Sketch, factors: Factors, offset: int, out: Tensor) -> None:
    """Refuse factors that do not fit their sketch.

    Args:
        sketch: The sketch to add to.
        factors: What the gradients of a weight are made of.
        offset: Index of the weight's first parameter.
        out: The accumulator, float32 [b, d].

    Raises:
        SketchSpecError: If shapes, types or the range of parameters do not fit.
    """
    if {factors.left.dtype, factors.right.dtype, out.dtype} != {torch.float32}:
        raise SketchSpecError(
            f"a sketch takes float32 factors and rows, got {factors.left.dtype}, {factors.right.dtype}, {out.dtype}."
        )
    rows = factors.left.shape[0]
    if factors.right.shape[0] != rows or out.shape != (rows, sketch.spec.dim):
        raise SketchSpecError(
            f"factors of {rows} and {factors.right.shape[0]} examples go to rows [{rows}, {sketch.spec.dim}], "
            f"got {list(out.shape)}."
        )
    if min(factors.num_rows, len(factors.columns)) < LEAST_SIDE:
        raise SketchSpecError(
            f"a weight of {factors.num_rows} × {len(factors.columns)} is too small for factors; form its gradients."
        )
    last_left = (factors.num_rows - 1) * factors.row_step + (len(factors.positions) - 1) * factors.position_step
    last_right = int(factors.columns.max() + factors.positions.max())
    if last_left >= factors.left.shape[1] or last_right >= factors.right.shape[1]:
        raise SketchSpecError(
            f"factors of {factors.left.shape[1]} and {factors.right.shape[1]} numbers are read at {last_left} and "
            f"{last_right}."
        )
    last = offset + factors.num_parameters
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
