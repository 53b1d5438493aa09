"""Per-example gradients of parameters that hooks cannot serve: vmap(grad), or one backward pass per example."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from indexer.batches import Batch, map_tensors, num_rows, take_rows
from indexer.layers.gradients import Piece, merged
from indexer.layers.watched import Watched
from indexer.measurement import Measurement
from indexer.parameters import Parameter
from indexer.plain_gradients import plain_gradients

ROWS_WORTH_A_TILE = 128
"""A sketch of fewer rows spends noticeable time on its random numbers, so parameters are grouped to allow so many."""


_UNLIKE = 0.05
"""Relative difference of two ways to a gradient, above what rounding makes and below a use that is missed."""


class Called(nn.Module):
    """The recipe's way of calling the model as a module, so that functional_call can swap parameters inside."""

    def __init__(
        self, model: nn.Module, call: Callable[[nn.Module, Any], Any], outputs: Callable[[Any], Tensor]
    ) -> None:
        super().__init__()
        self.model = model
        self.call = call
        self.outputs = outputs
        self.train(model.training)

    def forward(self, inputs: Any) -> Tensor:  # noqa: D102
        if "torch._dynamo" not in sys.modules:  # nothing is compiled, and to ask for it would take seconds
            return self.outputs(self.call(self.model, inputs))
        with torch.compiler.set_stance("force_eager"):  # neither hooks nor vmap see into compiled code
            return self.outputs(self.call(self.model, inputs))


class GeneralRoute:
    """Gradients of any parameters, in groups that keep to a memory budget.

    Attributes:
        called: The model as the recipe calls it.
        measurement: The scalar.
        memory_budget_bytes: What gradients and kept activations may take.
        row_bytes: What the activations of one row take.
        vectorised: Whether vmap accepts the model.
    """

    def __init__(self, called: Called, measurement: Measurement, memory_budget_bytes: int) -> None:
        self.called = called
        self.measurement = measurement
        self.memory_budget_bytes = memory_budget_bytes
        self.row_bytes = 0
        self.vectorised = True

    def try_vmap(self, parameters: Sequence[Parameter], few: Batch, targets: Tensor) -> str | None:
        """Find out whether vmap accepts the model.

        Args:
            parameters: The parameters of this route.
            few: One or two rows.
            targets: Their targets.

        Returns:
            None, or the first line of what it says against it.

        Raises:
            torch.OutOfMemoryError: If the device has no memory for two rows.
        """
        smallest = min(parameters, key=lambda parameter: parameter.size)
        try:
            self._vmap_gradients([smallest], few, targets)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:
            self.vectorised = False
            return str(error).strip().partition("\n")[0]
        return None

    def unlike_autograd(self, parameters: Sequence[Parameter], inputs: Batch, targets: Tensor) -> str | None:
        """Compare vmap's gradients with plain ones; where they differ, each example takes its own backward after.

        What vmap differentiates is put in the place of the model's parameters; a use of one that the model does not
        look up there, in a closure say, gets no part of it. Such uses are looked for as well as differences: they may
        be zero in these rows.

        Args:
            parameters: The parameters of this route.
            inputs: A batch of b examples.
            targets: Their targets.

        Returns:
            Name of the first parameter whose gradients differ or may differ, None where none does.
        """
        if (name := self._used_besides(parameters, inputs)) is not None:
            self.vectorised = False
            return name
        for row in range(len(targets)):
            one, target = take_rows(inputs, row, row + 1), targets[row : row + 1]
            plain = self.single_gradients(parameters, one, target[0])
            longest = max((float(gradient.norm()) for gradient in plain.values()), default=0.0)
            for group in self._groups(parameters):
                for place, found in zip(group, self._vmap_gradients(group, one, target), strict=True):
                    expected = plain[place.name].reshape(-1).float() if place.name in plain else torch.zeros(())
                    off = float((found[0] - expected.to(found.device)).norm())
                    if not off <= _UNLIKE * max(float(expected.norm()), _UNLIKE * longest):
                        self.vectorised = False
                        return place.name
        return None

    def _used_besides(self, parameters: Sequence[Parameter], inputs: Batch) -> str | None:
        # The first parameter that is used though another tensor stands in its place.
        held = dict(self.called.model.named_parameters())
        watched = Watched(held[place.name] for place in parameters)
        stand_ins = {place.name: held[place.name].detach().clone() for place in parameters}
        with torch.no_grad(), watched:
            torch.func.functional_call(self.called, _inside(stand_ins), (inputs,))
        return next((place.name for place in parameters if watched.is_unexpected(held[place.name])), None)

    def slabs(
        self, parameters: Sequence[Parameter], inputs: Batch, targets: Tensor, *, all_rows: bool
    ) -> Iterator[Piece]:
        """Gradients of some parameters for a batch.

        Args:
            parameters: In the order of their coordinates.
            inputs: A batch of b examples.
            targets: Their targets, shape [b].
            all_rows: Whether every slab must hold all rows.

        Yields:
            First row, coordinate and NTK-scaled gradients, float32 [rows of the slab, p].
        """
        for group in self._groups(parameters):
            yield from self._all_rows(group, inputs, targets) if all_rows else self._in_chunks(group, inputs, targets)

    def _groups(self, parameters: Sequence[Parameter]) -> list[list[Parameter]]:
        largest = self.memory_budget_bytes // (4 * ROWS_WORTH_A_TILE)
        groups: list[list[Parameter]] = []
        size = 0
        for parameter in parameters:
            if not groups or size + parameter.size > largest:
                groups.append([])
                size = 0
            groups[-1].append(parameter)
            size += parameter.size
        return groups

    def _in_chunks(self, group: list[Parameter], inputs: Batch, targets: Tensor) -> Iterator[Piece]:
        rows = num_rows(inputs)
        chunk = self._rows_at_once(group, rows)
        for start in range(0, rows, chunk):
            stop = min(start + chunk, rows)
            gradients = self._gradients(group, take_rows(inputs, start, stop), targets[start:stop])
            for offset, block in merged(group, gradients):
                yield start, offset, block

    def _all_rows(self, group: list[Parameter], inputs: Batch, targets: Tensor) -> Iterator[Piece]:
        rows = num_rows(inputs)
        chunk = self._rows_at_once(group, rows)
        for parameter in group:
            width = max(1, min(parameter.size, self.memory_budget_bytes // (4 * rows)))
            for first in range(0, parameter.size, width):
                last = min(first + width, parameter.size)
                parts = [
                    self._gradients(
                        [parameter], take_rows(inputs, start, start + chunk), targets[start : start + chunk]
                    )[0][:, first:last].clone()
                    for start in range(0, rows, chunk)
                ]
                yield 0, parameter.offset + first, torch.cat(parts)

    def _rows_at_once(self, group: list[Parameter], rows: int) -> int:
        row_bytes = 4 * sum(parameter.size for parameter in group) + self.row_bytes
        return max(1, min(rows, self.memory_budget_bytes // max(1, row_bytes)))

    def _gradients(self, group: Sequence[Parameter], inputs: Batch, targets: Tensor) -> list[Tensor]:
        # NTK-scaled gradients, one tensor [b, size] per parameter of the group
        if self.vectorised:
            gradients = self._vmap_gradients(group, inputs, targets)
        else:
            gradients = [torch.empty(len(targets), place.size, device=targets.device) for place in group]
            for row in range(len(targets)):
                alone = self.single_gradients(group, take_rows(inputs, row, row + 1), targets[row])
                for place, block in zip(group, gradients, strict=True):
                    block[row] = alone[place.name].reshape(-1) if place.name in alone else 0.0
        # vmap gives a parameter that takes no part a zero that stands for all of its gradient: no memory to write to.
        return [block.contiguous().mul_(place.ntk_scale) for place, block in zip(group, gradients, strict=True)]

    def _vmap_gradients(self, group: Sequence[Parameter], inputs: Batch, targets: Tensor) -> list[Tensor]:
        held = dict(self.called.model.named_parameters())
        weights = {place.name: held[place.name].detach() for place in group}

        def measure(weights: dict[str, Tensor], example: Batch, target: Tensor) -> Tensor:
            one = map_tensors(lambda tensor: tensor.unsqueeze(0), example)
            logits = torch.func.functional_call(self.called, _inside(weights), (one,))
            return self.measurement.value(logits[0], target)

        # no_grad keeps the parameters that are not differentiated from building a graph of their own
        with torch.no_grad():
            gradients = torch.func.vmap(torch.func.grad(measure), in_dims=(None, 0, 0))(weights, inputs, targets)
        return [gradients[place.name].reshape(len(targets), -1).float() for place in group]

    def single_gradients(self, group: Sequence[Parameter], example: Batch, target: Tensor) -> dict[str, Tensor]:
        """Unscaled gradients of one example by plain autograd.

        Args:
            group: The parameters.
            example: A batch of one row.
            target: Its target, shape [].

        Returns:
            Name of each parameter that takes part to its gradient, of its shape and at least float32.
        """
        return plain_gradients(
            self.called.model, group, lambda: self.measurement.value(self.called(example)[0], target)
        )


def _inside(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"model.{name}": weight for name, weight in weights.items()}
