"""Per-example gradients of the measurement, slab by slab: the tangent features that a sketch consumes.

Three routes give the same numbers. Layers that hooks can watch come from one forward and one backward pass for the
batch (`layers/`); every other parameter by vmap(grad) of torch.func; and where vmap refuses the model, by one backward
pass per example (`general_route.py`). Which parameters take which route is found out on the first batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from indexer.batches import Batch, map_tensors, num_rows, take_rows
from indexer.general_route import Called, GeneralRoute
from indexer.layers.factors import Factors
from indexer.layers.route import HookRoute
from indexer.layers.taps import CaptureError, Receiver
from indexer.measurement import Measurement, MeasurementError, check_targets
from indexer.parameters import Parameter, ParameterList
from indexer.plain_gradients import plain_gradients

PROBE_ROWS = 4
"""Rows on which the routes of the gradients are decided, in two orders."""
SLAB_BYTES = 32 * 1024**2
"""Size of a slab [b, p] of gradients that come from hooks, where nothing speaks for a larger one."""
MEMORY_BUDGET_BYTES = 512 * 1024**2
"""What gradients of the general route, and activations kept for a backward pass, may take."""


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


@dataclass(frozen=True)
class FactoredSlab:
    """Tangent features of some rows of a batch in the coordinates of one weight, not formed.

    Attributes:
        first_row: First row within the batch.
        offset: Coordinate of the weight's first entry.
        factors: What its NTK-scaled gradients are made of.
    """

    first_row: int
    offset: int
    factors: Factors


class TangentFeatures:
    """Gradients of one measurement of one model with respect to a list of parameters.

    Attributes:
        parameters: The coordinates.
        measurement: The scalar.
        notes: What the first batch showed about the routes, in sentences for `indexer check` and `plan`.
        last_outputs: The model's outputs for the batch that went through last, [b, C] or [b]; None where no forward
            pass of plain rows was needed for it.
        last_given: What the module of `watch` was given in those passes, [b, …]; None where there were none.
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
        many_rows: bool = True,
    ) -> None:
        """Tie a model to its parameters.

        Args:
            model: The trained model, in eval mode, on the device to compute on.
            parameters: The coordinates, names from this model.
            measurement: The scalar to differentiate.
            call: The recipe's ``call(model, inputs)``.
            outputs: The recipe's ``outputs(model_output)``: logits [b, C], or a scalar per example [b].
            memory_budget_bytes: What gradients and kept activations may take.
            slab_bytes: Size of a slab of gradients that come from hooks.
            many_rows: Whether a slab should hold many rows, because they share the sketch's random numbers.
        """
        parameters.check_model(model)
        self.parameters = parameters
        self.measurement = measurement
        self.notes: list[str] = []
        self.last_outputs: Tensor | None = None
        self.last_given: Tensor | None = None
        self._passing: list[Tensor] | None = None
        self._given: list[Tensor] = []
        self._called = Called(model, call, outputs)
        self._general = GeneralRoute(self._called, measurement, memory_budget_bytes)
        self._hooks = HookRoute(model, parameters, self.values, memory_budget_bytes, slab_bytes, many_rows=many_rows)
        self._measured_together = True
        self._num_outputs: int | None = None
        self._probed = set[str]()  # views
        self._said = set[str]()  # parameters whose reason for the general route is among the notes
        self._asked_vmap = 0  # how many parameters took the general route when vmap was asked

    @property
    def num_parameters(self) -> int:
        """P, the length of the tangent features."""
        return self.parameters.num_parameters

    @property
    def hooked_parameters(self) -> list[str]:
        """Names of the parameters whose gradients come from hooks; final after the first batch."""
        return [place.name for place in self._hooks.served]

    @property
    def vectorised(self) -> bool:
        """Whether vmap accepted what was asked of it; if not, that part is done one example at a time."""
        return self._general.vectorised

    def outputs(self, inputs: Batch) -> Tensor:
        """The model's outputs, without gradients.

        Args:
            inputs: A batch of b examples.

        Returns:
            Logits [b, C], or a scalar per example [b].
        """
        with torch.no_grad(), _unchanged(inputs):
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
        with _unchanged(inputs):
            logits: Tensor = self._called(inputs)
        if self._passing is not None:
            self._passing.append(logits.detach())
        if self._measured_together:
            measured: Tensor = torch.vmap(self.measurement.value)(logits, targets)
            return measured
        return torch.stack([self.measurement.value(row, target) for row, target in zip(logits, targets, strict=True)])

    def watch(self, module: nn.Module) -> None:
        """Keep what a module of the model is given while a batch goes through; see ``last_given``."""

        def note(_: nn.Module, given: tuple[Any, ...]) -> None:
            if self._passing is not None:
                self._given.append(given[0].detach())

        module.register_forward_pre_hook(note)

    def slabs(
        self, inputs: Batch, labels: Tensor, view: str, *, all_rows: bool = False, most_rows: int | None = None
    ) -> Iterator[Slab]:
        """Tangent features of a batch; together the slabs cover every row and coordinate exactly once.

        Args:
            inputs: A batch of b examples, on the model's device.
            labels: Their labels, shape [b].
            view: One of the measurement's views.
            all_rows: Whether every slab must hold all rows, as products between rows need; costs extra passes where
                a layer's gradients for all rows exceed the memory budget.
            most_rows: Most rows that a pass may see together then; None leaves it to the memory budget.

        Yields:
            Slabs; their order is fixed for a given model and batch size.

        Raises:
            JacobianError: If the numbers of rows disagree.
            MeasurementError: If the model's outputs are not logits, or a label is not one of them.
        """
        for slab in self._slabs(inputs, labels, view, all_rows=all_rows, factored=False, most_rows=most_rows):
            assert isinstance(slab, Slab)
            yield slab

    def factored_slabs(self, inputs: Batch, labels: Tensor, view: str) -> Iterator[Slab | FactoredSlab]:
        """The same for a sketch that takes factors where forming a gradient costs more than computing it.

        Args:
            inputs: A batch of b examples, on the model's device.
            labels: Their labels, shape [b].
            view: One of the measurement's views.

        Yields:
            Slabs and factored slabs; together they cover every row and coordinate exactly once.

        Raises:
            JacobianError: If the numbers of rows disagree.
            MeasurementError: If the model's outputs are not logits, or a label is not one of them.
        """
        yield from self._slabs(inputs, labels, view, all_rows=False, factored=True)

    def _slabs(
        self,
        inputs: Batch,
        labels: Tensor,
        view: str,
        *,
        all_rows: bool,
        factored: bool,
        most_rows: int | None = None,
    ) -> Iterator[Slab | FactoredSlab]:
        targets = self._checked(inputs, labels, view)
        if len(targets) == 0:
            return
        with self._watched_passes(len(targets)):
            for row, offset, found in self._hooks.slabs(
                inputs, targets, all_rows=all_rows, factored=factored, most_rows=most_rows
            ):
                yield FactoredSlab(row, offset, found) if isinstance(found, Factors) else Slab(row, offset, found)
        yield from self._general_slabs(inputs, targets, all_rows)

    def settle(self, inputs: Batch, labels: Tensor, view: str) -> None:
        """Find out, if that has not been done, which routes the gradients of this model take.

        Args:
            inputs: A batch of b examples, on the model's device.
            labels: Their labels, shape [b].
            view: One of the measurement's views.
        """
        self._checked(inputs, labels, view)

    def plain_gradients(self, inputs: Batch, labels: Tensor, view: str) -> dict[str, Tensor]:
        """Gradients of one example by plain autograd.

        Args:
            inputs: A batch of one example, on the model's device.
            labels: Its label, shape [1].
            view: One of the measurement's views.

        Returns:
            Name of each parameter that takes part to its gradient, not NTK-scaled.
        """
        targets = self._checked(inputs, labels, view)
        with self._watched_passes(1):
            return plain_gradients(self._called.model, self.parameters, lambda: self.values(inputs, targets)[0])

    def pass_layers(
        self, inputs: Batch, labels: Tensor, view: str, receiver: Callable[[int, int], Receiver]
    ) -> Iterator[Slab]:
        """Show a sketch the inputs and output gradients of the layers, so that no gradient of theirs need be formed.

        Args:
            inputs: A batch of b examples, on the model's device.
            labels: Their labels, shape [b].
            view: One of the measurement's views.
            receiver: Gives what takes a part of the rows, from its first row and the row after its last.

        Yields:
            Slabs of the parameters that hooks do not serve.

        Raises:
            JacobianError: If the numbers of rows disagree.
            MeasurementError: If the model's outputs are not logits, or a label is not one of them.
        """
        targets = self._checked(inputs, labels, view)
        if len(targets) == 0:
            return
        with self._watched_passes(len(targets)):
            self._hooks.run(inputs, targets, receiver)
        yield from self._general_slabs(inputs, targets, all_rows=False)

    @contextmanager
    def _watched_passes(self, rows: int) -> Iterator[None]:
        self._passing, self._given = [], []
        self.last_outputs = self.last_given = None
        try:
            yield
        except CaptureError as error:
            raise JacobianError(_irregular(error)) from error
        finally:
            outputs, given = self._passing, self._given
            self._passing, self._given = None, []
        self.last_outputs, self.last_given = _of_rows(outputs, rows), _of_rows(given, rows)

    def _checked(self, inputs: Batch, labels: Tensor, view: str) -> Tensor:
        rows = num_rows(inputs)
        if labels.shape != (rows,):
            raise JacobianError(f"a batch of {rows} examples came with labels of shape {list(labels.shape)}.")
        targets = self.measurement.targets(view, labels)
        if rows:
            if self._num_outputs is None:
                self._num_outputs = self._count_outputs(inputs)
            check_targets(self.measurement, targets, self._num_outputs)
            self._probe(inputs, targets, view)
        return targets

    def _general_slabs(self, inputs: Batch, targets: Tensor, all_rows: bool) -> Iterator[Slab]:
        rest = self._general_parameters()
        self._say_refused()
        if len(rest) > self._asked_vmap:  # more than there were: hooks met what is new, in any of these rows
            self._probe_vmap(inputs, targets)
        for row, offset, gradients in self._general.slabs(rest, inputs, targets, all_rows=all_rows):
            yield Slab(row, offset, gradients)

    def _count_outputs(self, inputs: Batch) -> int:
        logits = self.outputs(take_rows(inputs, 0, 1))
        if logits.ndim == 2 or self.measurement.name == "custom":
            return logits.shape[-1]
        raise MeasurementError(
            f"{self.measurement.name} needs logits of shape [b, C]; the recipe's outputs give {list(logits.shape)} for "
            "one example. Define measurement(outputs, label) in the recipe to say which scalar is explained."
        )

    def _probe(self, inputs: Batch, targets: Tensor, view: str) -> None:
        """Find out, on few rows, what hooks and vmap allow; each doubt moves a parameter to a more general route.

        Another view may lead to other parameters (a head for each class), so every view is looked at.
        """
        if view in self._probed:
            return
        few, targets = take_rows(inputs, 0, PROBE_ROWS), targets[:PROBE_ROWS]
        if not self._probed:
            self._try_measurement(few, targets)
            row_bytes = self.activation_bytes(take_rows(few, 0, 1), targets[:1])
            self._hooks.row_bytes = self._general.row_bytes = row_bytes
        # On a GPU, convolutions round to ten bits by default: too coarse to tell a right gradient from a wrong one.
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            self._hooks.probe(
                few,
                targets,
                lambda places, row: self._general.single_gradients(places, take_rows(few, row, row + 1), targets[row]),
            )
        self._say_refused()
        self._probe_vmap(few, targets)
        self._probed.add(view)

    def _probe_vmap(self, inputs: Batch, targets: Tensor, *, prove: bool = True) -> None:
        rest = self._general_parameters()
        self._asked_vmap = len(rest)
        if not rest or not self._general.vectorised:
            return
        if (reason := self._general.try_vmap(rest, take_rows(inputs, 0, 2), targets[:2])) is not None:
            self.notes.append(f"torch.func.vmap refuses this model, so each example takes its own backward: {reason}")
            return
        if not prove:  # a short type rounds too much to tell
            return
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            name = self._general.unlike_autograd(rest, inputs, targets)
        if name is not None:
            self.notes.append(
                f"torch.func.vmap does not see all that the model does with {name!r} (a weight that is held in a "
                "closure or list, say), so each example takes its own backward"
            )

    def probe_type(self, inputs: Batch, labels: Tensor, view: str) -> None:
        """Ask vmap again, in the type that is set now: it may refuse in a short one what it accepts in float32.

        Args:
            inputs: A batch of few examples, on the model's device.
            labels: Their labels, shape [b].
            view: One of the measurement's views.
        """
        if self._general.vectorised:
            self._probe_vmap(inputs, self._checked(inputs, labels, view), prove=False)

    def _try_measurement(self, few: Batch, targets: Tensor) -> None:
        logits = self.outputs(few)
        try:
            torch.vmap(self.measurement.value)(logits, targets)
        except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:
            if isinstance(error, torch.OutOfMemoryError | MeasurementError):
                raise
            self._measured_together = self._general.vectorised = False
            reason = str(error).strip().partition("\n")[0]
            self.notes.append(f"torch.func.vmap refuses the measurement, so each example is measured alone: {reason}")

    def activation_bytes(self, inputs: Batch, targets: Tensor) -> int:
        """What autograd keeps of a batch between its forward and its backward pass, beside weights and inputs.

        Args:
            inputs: A batch of b examples, on the model's device; they may be views of many more.
            targets: The target of each, shape [b].

        Returns:
            Bytes.
        """
        there = {parameter.untyped_storage().data_ptr() for parameter in self._called.parameters()}
        kept: dict[int, int] = {}

        def skip(tensor: Tensor) -> Tensor:
            there.add(tensor.untyped_storage().data_ptr())
            return tensor

        def note(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in there:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        # A view's storage is that of all rows it was taken from: counted, it would leave few rows to a pass.
        map_tensors(skip, inputs)
        # The pack hook keeps what it is given alive, so that no two storages share an address.
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            self.values(inputs, targets)
        return sum(kept.values())

    def _say_refused(self) -> None:
        # One sentence per reason, not one per parameter
        by_reason: dict[str, list[str]] = {}
        for name, reason in self._hooks.refused.items():
            if name not in self._said:
                by_reason.setdefault(reason, []).append(name)
        self._said.update(self._hooks.refused)
        for reason, names in by_reason.items():
            shown = ", ".join(repr(name) for name in names[:3])
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            self.notes.append(f"parameter {shown}{more} {reason}: gradients take the general route")

    def _general_parameters(self) -> list[Parameter]:
        served = {place.name for place in self._hooks.served}
        return [place for place in self.parameters if place.name not in served]


@contextmanager
def _unchanged(inputs: Batch) -> Iterator[None]:
    # The same tensors go through the model several times.
    before: list[tuple[Tensor, int]] = []

    def note(tensor: Tensor) -> Tensor:
        if not tensor.is_inference():
            before.append((tensor, tensor._version))
        return tensor

    map_tensors(note, inputs)
    yield
    if any(tensor._version != version for tensor, version in before):
        raise JacobianError(
            "the model changes its inputs in place, so that whoever computes with them next has others: let it begin "
            "with a copy (x = x.clone())"
        )


def _of_rows(parts: list[Tensor], rows: int) -> Tensor | None:
    # Parts of a batch go through in the order of its rows; where passes are repeated, there are more.
    return torch.cat(parts) if sum(len(part) for part in parts) == rows else None


def _irregular(error: CaptureError) -> str:
    return f"{error}, unlike in the first batch; exclude it or make the model regular."
