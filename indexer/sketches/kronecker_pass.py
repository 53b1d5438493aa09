"""Receives what hooks see of a batch and adds it to a kronecker sketch; one object for one part of a batch.

An input is brought to its few numbers in the forward pass already, so that nothing of it need be kept.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from indexer.layers.gradients import at_least_float, vector_gradients
from indexer.layers.modules import HookedModule
from indexer.layers.norms import ScaleAndShift
from indexer.parameters import Parameter
from indexer.sketches.kronecker import KroneckerSketch, PlacedMatrix


class KroneckerPass:
    """Sketches of some rows, growing as the backward pass goes through the layers."""

    def __init__(self, sketch: KroneckerSketch, out: Tensor) -> None:
        """Begin with rows of sketches.

        Args:
            sketch: The sketch.
            out: Rows to add to, float32 [b, d].
        """
        self._sketch = sketch
        self._out = out
        self._vectors = torch.zeros(out.shape[0], sketch.vector_size, device=out.device)

    def given(self, entry: HookedModule, given: Tensor) -> Any:  # noqa: D102
        if isinstance(entry.kind, ScaleAndShift):
            return given
        placed = self._placed(entry)
        if placed is None:  # no chosen weight, or one that has a single row or column and counts as a vector
            return None if entry.weight is None else given
        table = self._sketch.row_table if entry.kind.input_side == "row" else self._sketch.column_table
        return entry.kind.project_input(given, table(placed, given.device))

    def delta(self, entry: HookedModule, kept: Any, delta: Tensor) -> None:  # noqa: D102
        given = at_least_float(kept) if isinstance(entry.kind, ScaleAndShift) else None
        for place, gradient in vector_gradients(entry, given, at_least_float(delta)):
            self._add(place, gradient)
        if entry.weight is None or isinstance(entry.kind, ScaleAndShift):
            return
        placed = self._placed(entry)
        if placed is None:
            inputs = entry.kind.unfolded(at_least_float(kept) if kept.is_floating_point() else kept)
            gradient = entry.kind.gradient(inputs, at_least_float(delta), 0, entry.weight.shape[0])
            self._add(entry.weight, gradient.flatten(1))
            return
        from_row = entry.kind.input_side == "row"
        table = self._sketch.column_table if from_row else self._sketch.row_table
        projected = entry.kind.project_delta(delta, table(placed, delta.device))
        rows, columns = (kept, projected) if from_row else (projected, kept)
        self._sketch.add_products(placed, rows, columns, self._out)

    def done(self) -> None:  # noqa: D102
        if self._sketch.vector_size:
            self._sketch.add_vectors(self._vectors, 0, self._out)

    def _add(self, place: Parameter, gradient: Tensor) -> None:
        gradient = gradient.float() * place.ntk_scale
        if place.name in self._sketch.vectors:
            _, start = self._sketch.vectors[place.name]
            self._vectors[:, start : start + place.size] += gradient
        else:  # a normalisation over several dimensions has a scale of that shape
            self._sketch.add(gradient, place.offset, self._out)

    def _placed(self, entry: HookedModule) -> PlacedMatrix | None:
        return None if entry.weight is None else self._sketch.matrices.get(entry.weight.name)
