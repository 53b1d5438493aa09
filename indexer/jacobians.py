"""Per-example gradients of the measurement, slab by slab: the tangent features that a sketch consumes.

Three routes give the same numbers. Linear layers fed with one row per example come as outer products from one backward
pass for the batch (`outer_products.py`); every other parameter by vmap(grad) of torch.func; and where vmap refuses the
model, by one backward pass per example. Which parameters take which route is found out on the first batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from indexer.batches import Batch, map_tensors, num_rows, take_rows
from indexer.measurement import Measurement, MeasurementError, check_targets
from indexer.outer_products import CaptureError, Factors, LinearLayer, capture, linear_layers, outer_slabs
from indexer.parameters import Parameter, ParameterList

SLAB_BYTES = 32 * 1024**2
"""Size of a slab [b, p] of outer products."""
MEMORY_BUDGET_BYTES = 512 * 1024**2
"""What gradients of the general route, and activations kept for a backward pass, may take."""
ROWS_WORTH_A_TILE = 128
"""A sketch of fewer rows spends noticeable time on its random numbers, so parameters are grouped to allow so many."""


class JacobianError(RuntimeError):
    """Tangent features that could not be computed, or are not finite."""


@dataclass(frozen=True)
class Slab:
    """Tangent features of some rows of a batch in some consecutive coordinates.

    Attributes:
        first_row: First row within the batch.
        offset: Coordinate of the first parameter.
        gradients: NTK-scaled gradients, float32 [rows, p].
    """

    first_row: int
    offset: int
    gradients: Tensor


class TangentFeatures:
    """Gradients of one measurement of one model with respect to a list of parameters.

    Attributes:
        parameters: The coordinates.
        measurement: The scalar.
        notes: What the first batch showed about the routes, in sentences for `indexer check` and `plan`.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: ParameterList,
        measurement: Measurement,
        call: Callable[[nn.Module, Any], Any],
        outputs: Callable[[Any], Tensor],
        *,
        memory_budget_bytes: int = MEMORY_BUDGET_BYTES,
        slab_bytes: int = SLAB_BYTES,
    ) -> None:
        """Tie a model to its parameters.

        Args:
            model: The trained model, in eval mode, on the device to compute on.
            parameters: The coordinates, names from this model.
            measurement: The scalar to differentiate.
            call: The recipe's ``call(model, inputs)``.
            outputs: The recipe's ``outputs(model_output)``: logits [b, C], or a scalar per example [b].
            memory_budget_bytes: What gradients and kept activations may take.
            slab_bytes: Size of a slab of outer products.
        """
        parameters.check_model(model)
        self.parameters = parameters
        self.measurement = measurement
        self.notes: list[str] = []
        self._called = _Called(model, call, outputs)
        self._memory_budget_bytes = memory_budget_bytes
        self._slab_bytes = slab_bytes
        self._layers = linear_layers(model, parameters)
        self._vectorised = True
        self._row_bytes = 0
        self._num_outputs: int | None = None
        self._probed = False

    @property
    def num_parameters(self) -> int:
        """P, the length of the tangent features."""
        return self.parameters.num_parameters

    @property
    def outer_product_layers(self) -> list[str]:
        """Names of the layers whose gradients come as outer products; final after the first batch."""
        return [layer.name for layer in self._layers]

    @property
    def vectorised(self) -> bool:
        """Whether vmap accepted the model; if not, the general route takes one backward pass per example."""
        return self._vectorised

    def outputs(self, inputs: Batch) -> Tensor:
        """The model's outputs, without gradients.

        Args:
            inputs: A batch of b examples.

        Returns:
            Logits [b, C], or a scalar per example [b].
        """
        with torch.no_grad():
            logits: Tensor = self._called(inputs)
        return logits

    def values(self, inputs: Batch, targets: Tensor) -> Tensor:
        """The measurement of each example, with its graph.

        Args:
            inputs: A batch of b examples.
            targets: The target of each, shape [b].

        Returns:
            Shape [b].
        """
        logits: Tensor = self._called(inputs)
        if self._vectorised:
            measured: Tensor = torch.vmap(self.measurement.value)(logits, targets)
            return measured
        return torch.stack([self.measurement.value(row, target) for row, target in zip(logits, targets, strict=True)])

    def slabs(self, inputs: Batch, labels: Tensor, view: str, *, all_rows: bool = False) -> Iterator[Slab]:
        """Tangent features of a batch; together the slabs cover every row and coordinate exactly once.

        Args:
            inputs: A batch of b examples, on the model's device.
            labels: Their labels, shape [b].
            view: One of the measurement's views.
            all_rows: Whether every slab must hold all rows, as products between rows need; costs extra passes where
                a layer's gradients for all rows exceed the memory budget.

        Yields:
            Slabs; their order is fixed for a given model and batch size.

        Raises:
            JacobianError: If the numbers of rows disagree.
            MeasurementError: If the model's outputs are not logits, or a label is not one of them.
        """
        rows = num_rows(inputs)
        if labels.shape != (rows,):
            raise JacobianError(f"a batch of {rows} examples came with labels of shape {list(labels.shape)}.")
        if rows == 0:
            return
        targets = self.measurement.targets(view, labels)
        if self._num_outputs is None:
            self._num_outputs = self._count_outputs(inputs)
        check_targets(self.measurement, targets, self._num_outputs)
        self._probe(inputs, targets)
        if self._layers:
            factors = self._factors(inputs, targets)
            for layer in self._layers:
                for offset, gradients in outer_slabs(layer, factors[layer.name], self._slab_bytes):
                    yield Slab(0, offset, gradients)
            del factors
        for group in self._general_groups():
            yield from self._all_rows(group, inputs, targets) if all_rows else self._in_chunks(group, inputs, targets)

    def _count_outputs(self, inputs: Batch) -> int:
        logits = self.outputs(take_rows(inputs, 0, 1))
        if logits.ndim == 2 or self.measurement.name == "custom":
            return logits.shape[-1]
        raise MeasurementError(
            f"{self.measurement.name} needs logits of shape [b, C]; the recipe's outputs give {list(logits.shape)} for "
            "one example. Define measurement(outputs, label) in the recipe to say which scalar is explained."
        )

    def _probe(self, inputs: Batch, targets: Tensor) -> None:
        """Find out, on two rows, what vmap and the layers allow; each doubt moves a layer to a more general route."""
        if self._probed:
            return
        few = take_rows(inputs, 0, 2)
        self._try_vmap(few, targets[:2])
        self._measure_activations(take_rows(few, 0, 1), targets[:1])
        self._check_layers(few, targets[:2])
        self._probed = True

    def _try_vmap(self, few: Batch, targets: Tensor) -> None:
        smallest = min(self.parameters, key=lambda parameter: parameter.size)
        try:
            self._vmap_gradients([smallest], few, targets)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:
            self._vectorised = False
            reason = str(error).strip().partition("\n")[0]
            self.notes.append(f"torch.func.vmap refuses this model, so each example takes its own backward: {reason}")

    def _measure_activations(self, one: Batch, targets: Tensor) -> None:
        storages: dict[int, int] = {}
        held = {parameter.data_ptr() for parameter in self._called.parameters()}

        def note(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if tensor.data_ptr() not in held:
                storages[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            self.values(one, targets)
        self._row_bytes = sum(storages.values())

    def _check_layers(self, few: Batch, targets: Tensor) -> None:
        """Compare every outer product with a plain gradient of one example alone."""
        rows = num_rows(few)
        while self._layers:
            try:
                factors = capture(self._layers, partial(self.values, few, targets), rows)
                break
            except CaptureError as error:
                self._leave(error.layer, error.reason)
        if not self._layers:
            return
        chosen = [place for layer in self._layers for place in (layer.weight, layer.bias) if place is not None]
        for row in range(rows):
            alone = self._single_gradients(chosen, take_rows(few, row, row + 1), targets[row])
            for layer in list(self._layers):
                one_row = Factors(factors[layer.name].inputs[row : row + 1], factors[layer.name].deltas[row : row + 1])
                if not _agrees(layer, one_row, alone):
                    self._leave(layer.name, "has gradients that are not outer products of its input and output")

    def _leave(self, name: str, reason: str) -> None:
        self._layers = [layer for layer in self._layers if layer.name != name]
        self.notes.append(f"layer {name!r} {reason}: its gradients take the general route")

    def _factors(self, inputs: Batch, targets: Tensor) -> dict[str, Factors]:
        rows = num_rows(inputs)
        chunk = max(1, min(rows, self._memory_budget_bytes // max(1, self._row_bytes)))
        parts = []
        for start in range(0, rows, chunk):
            stop = min(start + chunk, rows)
            part, part_targets = take_rows(inputs, start, stop), targets[start:stop]
            try:
                parts.append(capture(self._layers, partial(self.values, part, part_targets), stop - start))
            except CaptureError as error:
                raise JacobianError(f"{error}, unlike in the first batch; exclude it or make the model regular.") from (
                    error
                )
        return {
            layer.name: Factors(
                torch.cat([part[layer.name].inputs for part in parts]),
                torch.cat([part[layer.name].deltas for part in parts]),
            )
            for layer in self._layers
        }

    def _general_groups(self) -> list[list[Parameter]]:
        outer = {place.name for layer in self._layers for place in (layer.weight, layer.bias) if place is not None}
        largest = self._memory_budget_bytes // (4 * ROWS_WORTH_A_TILE)
        groups: list[list[Parameter]] = []
        size = 0
        for parameter in self.parameters:
            if parameter.name in outer:
                continue
            if not groups or size + parameter.size > largest:
                groups.append([])
                size = 0
            groups[-1].append(parameter)
            size += parameter.size
        return groups

    def _in_chunks(self, group: list[Parameter], inputs: Batch, targets: Tensor) -> Iterator[Slab]:
        rows = num_rows(inputs)
        chunk = self._rows_at_once(group, rows)
        for start in range(0, rows, chunk):
            stop = min(start + chunk, rows)
            gradients = self._gradients(group, take_rows(inputs, start, stop), targets[start:stop])
            for offset, block in _joined(group, gradients):
                yield Slab(start, offset, block)

    def _all_rows(self, group: list[Parameter], inputs: Batch, targets: Tensor) -> Iterator[Slab]:
        rows = num_rows(inputs)
        chunk = self._rows_at_once(group, rows)
        for parameter in group:
            width = max(1, min(parameter.size, self._memory_budget_bytes // (4 * rows)))
            for first in range(0, parameter.size, width):
                last = min(first + width, parameter.size)
                parts = [
                    self._gradients(
                        [parameter], take_rows(inputs, start, start + chunk), targets[start : start + chunk]
                    )[0][:, first:last].clone()
                    for start in range(0, rows, chunk)
                ]
                yield Slab(0, parameter.offset + first, torch.cat(parts))

    def _rows_at_once(self, group: list[Parameter], rows: int) -> int:
        row_bytes = 4 * sum(parameter.size for parameter in group) + self._row_bytes
        return max(1, min(rows, self._memory_budget_bytes // max(1, row_bytes)))

    def _gradients(self, group: Sequence[Parameter], inputs: Batch, targets: Tensor) -> list[Tensor]:
        # NTK-scaled gradients, one tensor [b, size] per parameter of the group
        if self._vectorised:
            gradients = self._vmap_gradients(group, inputs, targets)
        else:
            gradients = [torch.empty(len(targets), place.size, device=targets.device) for place in group]
            for row in range(len(targets)):
                alone = self._single_gradients(group, take_rows(inputs, row, row + 1), targets[row])
                for place, block in zip(group, gradients, strict=True):
                    block[row] = alone[place.name].reshape(-1)
        return [block.mul_(place.ntk_scale) for place, block in zip(group, gradients, strict=True)]

    def _vmap_gradients(self, group: Sequence[Parameter], inputs: Batch, targets: Tensor) -> list[Tensor]:
        held = dict(self._called.model.named_parameters())
        weights = {place.name: held[place.name].detach() for place in group}

        def measure(weights: dict[str, Tensor], example: Batch, target: Tensor) -> Tensor:
            one = map_tensors(lambda tensor: tensor.unsqueeze(0), example)
            logits = torch.func.functional_call(self._called, _inside(weights), (one,))
            return self.measurement.value(logits[0], target)

        # no_grad keeps the parameters that are not differentiated from building a graph of their own
        with torch.no_grad():
            gradients = torch.func.vmap(torch.func.grad(measure), in_dims=(None, 0, 0))(weights, inputs, targets)
        return [gradients[place.name].reshape(len(targets), -1).float() for place in group]

    def _single_gradients(self, group: Sequence[Parameter], example: Batch, target: Tensor) -> dict[str, Tensor]:
        # Unscaled gradients of one example by plain autograd
        held = dict(self._called.model.named_parameters())
        weights = {place.name: held[place.name].detach().clone().requires_grad_() for place in group}
        with torch.enable_grad():
            logits = torch.func.functional_call(self._called, _inside(weights), (example,))
            value = self.measurement.value(logits[0], target)
        gradients = torch.autograd.grad(value, list(weights.values()), allow_unused=True, materialize_grads=True)
        return {name: gradient.float() for name, gradient in zip(weights, gradients, strict=True)}


class _Called(nn.Module):
    """The recipe's way of calling the model as a module, so that functional_call can swap parameters inside."""

    def __init__(
        self, model: nn.Module, call: Callable[[nn.Module, Any], Any], outputs: Callable[[Any], Tensor]
    ) -> None:
        super().__init__()
        self.model = model
        self.call = call
        self.outputs = outputs
        self.train(model.training)

    def forward(self, inputs: Any) -> Tensor:
        return self.outputs(self.call(self.model, inputs))


def _inside(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"model.{name}": weight for name, weight in weights.items()}


def _agrees(layer: LinearLayer, factors: Factors, alone: dict[str, Tensor]) -> bool:
    for place in (layer.weight, layer.bias):
        if place is None:
            continue
        expected = alone[place.name]
        outer = factors.deltas.T @ factors.inputs if place is layer.weight else factors.deltas[0]
        # Rounding of two ways to the same sum; a layer that is used otherwise misses by the gradient's own size.
        unit = torch.finfo(layer.module.weight.dtype).eps
        if not (outer - expected).abs().max() <= min(1e3 * unit, 0.05) * expected.abs().max() + 1e-30:
            return False
    return True


def _joined(group: Sequence[Parameter], gradients: Sequence[Tensor]) -> Iterator[tuple[int, Tensor]]:
    # Small neighbours (biases, normalisation) are merged: a sketch is not called for a few numbers at a time.
    waiting: list[Tensor] = []
    first = end = 0
    for place, block in zip(group, gradients, strict=True):
        small = block.shape[1] <= 4096
        if waiting and (place.offset != end or not small):
            yield first, torch.cat(waiting, dim=1)
            waiting = []
        if not small:
            yield place.offset, block
            continue
        if not waiting:
            first = place.offset
        waiting.append(block)
        end = place.offset + block.shape[1]
    if waiting:
        yield first, torch.cat(waiting, dim=1)
