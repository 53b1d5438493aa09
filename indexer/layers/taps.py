"""Runs the one forward and the one backward pass in which hooks see every layer's input and the gradient at its output.

No parameter asks for a gradient meanwhile, so autograd computes those of activations only: about two thirds of a
training step's work, without its optimiser.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from indexer.layers.flattened import FlattenedCall, row_weights
from indexer.layers.kinds import UnfitInputError
from indexer.layers.modules import HookedModule
from indexer.layers.uses import ParameterUses
from indexer.out_of_memory import is_out_of_memory


class CaptureError(RuntimeError):
    """A module that cannot be differentiated from its hooks.

    Attributes:
        module: Name of the module.
        reason: What is wrong with it.
    """

    def __init__(self, module: str, reason: str) -> None:
        super().__init__(f"module {module!r} {reason}")
        self.module = module
        self.reason = reason


class UnforeseenCallError(CaptureError):
    """The same, found in the forward pass, before anything was handed on but inputs."""


class Receiver(Protocol):
    """Takes what the hooks see; a module that is called several times comes several times."""

    def given(self, entry: HookedModule, given: Tensor) -> Any:
        """A module's input in the forward pass, [b, …].

        Returns:
            What to keep of it until the backward pass comes by.
        """
        ...

    def delta(self, entry: HookedModule, kept: Any, delta: Tensor) -> None:
        """The gradient at the output of that call, with what was kept of its input."""
        ...

    def done(self) -> None:
        """Both passes are over."""
        ...


def run_passes(
    model: nn.Module,
    modules: Sequence[HookedModule],
    forward: Callable[[], Tensor],
    rows: int,
    receiver: Receiver,
    unproven: Collection[str] = (),
    flattened: set[str] | None = None,
) -> dict[str, str]:
    """Run a forward and a backward pass.

    Args:
        model: The model.
        modules: The modules to watch.
        forward: Gives each example's measurement, shape [rows].
        rows: Number of examples.
        receiver: Takes inputs and gradients at outputs.
        unproven: Names of modules that must not be called.
        flattened: Names of modules that were fed positions of several examples one after the other; those that are now
            are added. What they are fed may have as many entries as there are examples by chance, and be others'.

    Returns:
        Name of each parameter whose gradient does not follow from what the receiver got, to the reason: it is used
        otherwise than by calls of its module, or one was fed positions of which it cannot be told whose they are.

    Raises:
        UnforeseenCallError: If a module is called that must not be, or its input does not tell the examples apart, or
            the forward pass fails where a module was given one row.
        RuntimeError: If the forward pass fails otherwise.
    """
    sources: list[Tensor] = []
    flat: list[FlattenedCall] = []
    flattened = set() if flattened is None else flattened
    widened: list[str] = []
    weighing, period = [False], 1
    uses = ParameterUses(held for entry in modules for held in entry.module._parameters.values() if held is not None)

    def watch(entry: HookedModule) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], Tensor]:
        def hook(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> Tensor:
            own = uses.expect(module._parameters.values())
            if not torch.is_grad_enabled():  # the model itself says that nothing is to be differentiated here
                untouched: Tensor = output
                return untouched
            if not own:  # functional_call
                raise UnforeseenCallError(entry.name, "is called with other parameters than its own")
            if entry.name in unproven:
                raise UnforeseenCallError(entry.name, "is called for some examples only")
            given = inputs[0] if inputs else next(iter(named.values()))
            if not isinstance(given, Tensor) or not isinstance(output, Tensor):
                raise UnforeseenCallError(entry.name, "does not take and give a tensor")
            # Positions, for one, may be looked up once for all rows: every row then gets an output of its own.
            shared = rows > 1 and given.shape[:1] == (1,) and output.shape[:1] == (1,)
            if shared:
                widened.append(entry.name)
                given, output = (tensor.expand(rows, *tensor.shape[1:]) for tensor in (given, output))
            if shared or not output.requires_grad:
                source = torch.zeros((), dtype=output.dtype, device=output.device, requires_grad=True)
                sources.append(source)
                output = output + source
            try:
                kept = receiver.given(entry, entry.kind.split(given.detach(), rows))
            except UnfitInputError as error:
                raise UnforeseenCallError(entry.name, str(error)) from None
            mixed = None
            if rows > 1 and (given.shape[0] != rows or entry.name in flattened):
                mixed = FlattenedCall(entry, kept, output.dtype)
                flat.append(mixed)
                flattened.add(entry.name)

            def take(delta: Tensor) -> None:
                if mixed is not None:
                    mixed.take(delta.detach(), weighing[0])
                elif not weighing[0]:
                    receiver.delta(entry, kept, entry.kind.split_delta(delta.detach(), rows))

            output.register_hook(take)
            watched: Tensor = output
            return watched

        return hook

    with _only_activations(model), torch.enable_grad():
        handles = [entry.module.register_forward_hook(watch(entry), with_kwargs=True) for entry in modules]
        try:
            with uses:
                values = forward()
        except RuntimeError as error:
            if not widened or isinstance(error, CaptureError) or is_out_of_memory(error):
                raise
            # What looked like one for all rows was one row's, and the model does not know what to do with more.
            raise UnforeseenCallError(widened[0], "is called with a single row of several") from error
        finally:
            for handle in handles:
                handle.remove()
        if values.requires_grad:
            if flat:
                weighing[0] = True
                period = min(each.period for each in flat)
                total = (values * row_weights(rows, period, values)).sum()
                torch.autograd.grad(total, sources, allow_unused=True, retain_graph=True)
                weighing[0] = False
            torch.autograd.grad(values.sum(), sources, allow_unused=True)
    wrong = {
        place.name: "takes part in the measurement otherwise than by calls of its module"
        for entry in modules
        for leaf, place in (("weight", entry.weight), ("bias", entry.bias))
        if place is not None and uses.is_unexpected(entry.module._parameters[leaf])
    }
    for each in flat:
        if not each.is_in_order(rows, period):
            wrong |= {place.name: "is fed positions of which a row may have any number" for place in each.entry.places}
    for each in flat:
        if each.delta is not None and not any(place.name in wrong for place in each.entry.places):
            receiver.delta(each.entry, each.kept, each.entry.kind.split_delta(each.delta, rows))
    receiver.done()
    return wrong


@contextmanager
def _only_activations(model: nn.Module) -> Iterator[None]:
    held = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # torch's fused attention layers bypass their modules, hooks included, where no parameter asks for a gradient.
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    for parameter in held:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in held:
            parameter.requires_grad_(True)
        torch.backends.mha.set_fastpath_enabled(fused)
