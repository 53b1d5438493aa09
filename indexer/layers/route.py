"""The route of hooks: which parameters it serves, found out on a few rows, and their gradients for a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from indexer.batches import Batch, map_tensors, num_rows, take_rows
from indexer.layers.gradients import (
    Call,
    Captured,
    FactoredPiece,
    SlabSizes,
    even_parts,
    joined,
    matrix_slabs,
    merged,
    uneven_names,
)
from indexer.layers.modules import HookedModule, hooked_modules, without
from indexer.layers.norms import ScaleAndShift
from indexer.layers.taps import CaptureError, Receiver, UnforeseenCallError, run_passes
from indexer.out_of_memory import is_out_of_memory
from indexer.parameters import Parameter, ParameterList

ReceiverKind = TypeVar("ReceiverKind", bound=Receiver)
Values = Callable[[Batch, Tensor], Tensor]
"""The measurement of each example of a batch, with its graph."""


class HookRoute:
    """Gradients of the parameters whose modules hooks can watch.

    Attributes:
        modules: The modules watched.
        refused: Name of each chosen parameter that hooks do not serve to the reason.
        row_bytes: What the activations of one row take in a forward pass.
        kept_bytes: What gradients are formed from, for one row.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        parameters: ParameterList,
        values: Values,
        memory_budget_bytes: int,
        slab_bytes: int,
        *,
        many_rows: bool = True,
    ) -> None:
        self.modules, self.refused = hooked_modules(model, parameters)
        self.row_bytes = self.kept_bytes = 0
        self._model = model
        self._parameters = parameters
        self._values = values
        self._memory_budget_bytes = memory_budget_bytes
        self._sizes = SlabSizes.chosen(slab_bytes, memory_budget_bytes, many_rows)
        # A slab of all rows spans few weights where it is small, and every slab unfolds its layer's inputs anew.
        self._sizes_of_all_rows = SlabSizes.chosen(slab_bytes, memory_budget_bytes, many_rows=True)
        self._flattened = set[str]()  # modules that were fed positions of several rows one after the other
        self._unproven: frozenset[str] = frozenset()  # modules that no row called when the routes were chosen
        self._drop({})

    @property
    def served(self) -> list[Parameter]:
        """The parameters served, in the order of their coordinates."""
        names = {place.name for entry in self.modules for place in entry.places}
        return [place for place in self._parameters if place.name in names]

    def probe(self, few: Batch, targets: Tensor, alone: Callable[[list[Parameter], int], dict[str, Tensor]]) -> None:
        """Compare every gradient with a plain one of one example alone; whatever differs is refused.

        The rows go through in their order and in the reverse one: a model that sorts its batch by length, and puts it
        back at the end, leaves one of them as it was, and its modules see row i in another place in the other.

        Args:
            few: Few rows, unlike each other.
            targets: Their targets.
            alone: Plain gradients of some parameters for a row of ``few``, by name, without those that take no part.

        Raises:
            RuntimeError: If memory runs out.
        """
        rows = num_rows(few)
        orders = [(few, targets)]
        if rows > 1:
            orders.append((map_tensors(lambda tensor: tensor.flip(0), few), targets.flip(0)))
        captured: list[Captured] = []
        while self.modules and not captured:
            try:
                captured = [self._capture(*order) for order in orders]
            except CaptureError as error:
                entry = next(entry for entry in self.modules if entry.name == error.module)
                self._drop({place.name: f"{error.reason} in {error.module!r}" for place in entry.places})
            except Exception as error:  # of the model, which may not stand what hooks do to an output
                if is_out_of_memory(error):
                    raise
                reason = str(error).strip().partition("\n")[0] or type(error).__name__  # an assertion may say nothing
                self._drop({place.name: f"cannot be seen by hooks ({reason})" for place in self.served})
        if not captured:
            return
        self.kept_bytes = _bytes(captured[0]) // rows
        self._unproven = frozenset(
            entry.name for entry in self.modules if not any(_is_seen(place, captured[0]) for place in entry.places)
        )
        for row in range(rows):
            if not self.served:
                return
            plain = alone(self.served, row)
            # A gradient that is zero but for rounding (a bias before a softmax) is as right as any other.
            noise = 30 * max((_rounding(gradient) for gradient in plain.values()), default=0.0)
            # Zero on few rows, without a call of its module, says nothing of others: one head of several, stacked.
            unseen = [place.name for place in self.served if place.name in plain and not _is_seen(place, captured[0])]
            self._drop(dict.fromkeys(unseen, "takes part in the measurement without a call of its module"))
            seen = list(zip(captured, (row, rows - 1 - row), strict=False))
            wrong = [
                place.name
                for place in self.served
                if not all(_agrees(place, found, where, plain.get(place.name), noise) for found, where in seen)
            ]
            self._drop(
                dict.fromkeys(wrong, "has gradients that do not follow from the inputs and outputs of its modules")
            )

    def slabs(
        self,
        inputs: Batch,
        targets: Tensor,
        *,
        all_rows: bool,
        factored: bool = False,
        most_rows: int | None = None,
    ) -> Iterator[FactoredPiece]:
        """Gradients of the served parameters for a batch.

        Args:
            inputs: A batch of b examples.
            targets: Their targets, shape [b].
            all_rows: Whether every slab must hold all rows; costs extra passes where what the layers keep for all
                rows exceeds the memory budget.
            factored: Whether factors may come in the place of gradients; not with ``all_rows``.
            most_rows: With ``all_rows``, most rows of a pass; None leaves it to the memory budget.

        Yields:
            First row, coordinate and NTK-scaled gradients, float32 [rows of the slab, p], or their factors.

        Raises:
            CaptureError: If a module was fed otherwise than in the first batch.
        """
        rows = num_rows(inputs)
        if not self.modules:
            return
        at_once = max(1, min(rows, self._memory_budget_bytes // max(1, self.kept_bytes)))
        if not all_rows:
            for start, stop in even_parts(rows, at_once):  # a few rows left over would cost as many random numbers
                captured = self._captured(self.modules, take_rows(inputs, start, stop), targets[start:stop])
                for row, offset, gradients in self._formed(
                    self.served, captured, stop - start, targets.device, factored=factored
                ):
                    yield start + row, offset, gradients
            return
        for modules in self._groups(-(-rows // at_once)):
            captured = self._captured(modules, inputs, targets, most_rows)
            names = {place.name for entry in modules for place in entry.places}
            places = [place for place in self.served if place.name in names]
            yield from self._formed(places, captured, rows, targets.device, all_rows=True)

    def run(self, inputs: Batch, targets: Tensor, receiver: Callable[[int, int], Receiver]) -> None:
        """One forward and one backward pass for the batch, or for parts of it that keep to the memory budget.

        Args:
            inputs: A batch of b examples.
            targets: Their targets, shape [b].
            receiver: Gives the receiver of a part, from its first row and the row after its last.

        Raises:
            CaptureError: If a module was fed otherwise than in the first batch.
        """
        rows = num_rows(inputs)
        at_once = max(1, min(rows, self._memory_budget_bytes // max(1, self.row_bytes)))
        for start, stop in even_parts(rows, at_once):
            part, part_targets = take_rows(inputs, start, stop), targets[start:stop]
            self._run_passes(self.modules, part, part_targets, lambda start=start, stop=stop: receiver(start, stop))  # type: ignore[misc]

    def _capture(self, inputs: Batch, targets: Tensor, modules: Sequence[HookedModule] | None = None) -> Captured:
        chosen = self.modules if modules is None else modules
        return self._run_passes(chosen, inputs, targets, Captured)

    def _run_passes(
        self, modules: Sequence[HookedModule], inputs: Batch, targets: Tensor, receiver: Callable[[], ReceiverKind]
    ) -> ReceiverKind:
        # A module that is called otherwise than before is left to the general route from here on. Where it was not
        # called at all its gradients are zero by either route, so that no number depends on when that happens.
        names = {entry.name for entry in modules}
        while True:
            received = receiver()
            kept = [entry for entry in self.modules if entry.name in names]
            try:
                wrong = run_passes(
                    self._model,
                    kept,
                    lambda: self._values(inputs, targets),
                    len(targets),
                    received,
                    self._unproven,
                    self._flattened,
                )
                self._drop(wrong)
                return received
            except UnforeseenCallError as error:
                other = next(entry for entry in kept if entry.name == error.module)
                self._drop({place.name: f"{error.reason} in {error.module!r}" for place in other.places})

    def _captured(
        self, modules: Sequence[HookedModule], inputs: Batch, targets: Tensor, most_rows: int | None = None
    ) -> Captured:
        rows = num_rows(inputs)
        chunk = max(1, min(rows, most_rows or rows, self._memory_budget_bytes // max(1, self.row_bytes)))
        parts = [
            self._capture(take_rows(inputs, start, start + chunk), targets[start : start + chunk], modules)
            for start in range(0, rows, chunk)
        ]
        self._drop(dict.fromkeys(uneven_names(parts), "belongs to a module that is not called for all rows"))
        return joined(parts)

    def _formed(
        self,
        places: list[Parameter],
        captured: Captured,
        rows: int,
        device: torch.device,
        *,
        all_rows: bool = False,
        factored: bool = False,
    ) -> Iterator[FactoredPiece]:
        matrices = {entry.weight.name for entry in self.modules if entry.weight and not _is_norm(entry)}
        sizes = self._sizes_of_all_rows if all_rows else self._sizes
        for place in places:
            if place.name in matrices:
                calls = captured.calls.pop(place.name, [])
                yield from matrix_slabs(place, calls, rows, sizes, device, all_rows=all_rows, factored=factored)
        vectors = [place for place in places if place.name not in matrices]
        blocks = []
        for place in vectors:
            gradient = captured.vectors.get(place.name)
            if gradient is None:
                gradient = torch.zeros(rows, place.size, device=device)
            blocks.append(gradient.float() * place.ntk_scale)
        for offset, block in merged(vectors, blocks):
            widest = max(1, sizes.slab_bytes // (4 * rows))
            for start, stop in even_parts(block.shape[1], widest):
                yield 0, offset + start, block[:, start:stop]

    def _groups(self, count: int) -> list[list[HookedModule]]:
        # Modules in about `count` runs of neighbours; those that share a parameter must stay together.
        holders: dict[str, int] = {}
        for entry in self.modules:
            for place in entry.places:
                holders[place.name] = holders.get(place.name, 0) + 1
        shared = [entry for entry in self.modules if any(holders[place.name] > 1 for place in entry.places)]
        single = [entry for entry in self.modules if entry not in shared]
        groups = [single[start:stop] for start, stop in even_parts(len(single), -(-len(single) // count) or 1)]
        return [group for group in (shared, *groups) if group]

    def _drop(self, refused: dict[str, str]) -> None:
        self.refused.update(refused)
        self.modules = without(self.modules, set(self.refused))


def _is_norm(entry: HookedModule) -> bool:
    return isinstance(entry.kind, ScaleAndShift)


def _bytes(captured: Captured) -> int:
    return sum(
        tensor.numel() * tensor.element_size()
        for calls in captured.calls.values()
        for call in calls
        for tensor in (call.given, call.delta)
    )


def _is_seen(place: Parameter, captured: Captured) -> bool:
    return place.name in captured.calls or place.name in captured.vectors


def _agrees(place: Parameter, captured: Captured, row: int, expected: Tensor | None, noise: float) -> bool:
    found = captured.vectors.get(place.name)
    if found is not None:
        found = found[row]
    elif place.name in captured.calls:
        calls = [Call(c.kind, c.given[row : row + 1], c.delta[row : row + 1]) for c in captured.calls[place.name]]
        found = torch.stack(
            [call.kind.gradient(call.kind.unfolded(call.given), call.delta, 0, place.shape[0]) for call in calls]
        ).sum(0)
    elif expected is not None:
        found = torch.zeros_like(expected)
    if expected is None:
        return found is None or bool(found.abs().max() <= noise)
    assert found is not None
    # Rounding of two ways to the same sum; a parameter that is used otherwise misses by the gradient's own size.
    unit = torch.finfo(expected.dtype).eps
    difference = (found.reshape(-1) - expected.reshape(-1)).abs().max()
    return bool(difference <= min(1e3 * unit, 0.05) * expected.abs().max() + noise)


def _rounding(gradient: Tensor) -> float:
    return float(torch.finfo(gradient.dtype).eps * gradient.abs().max())
