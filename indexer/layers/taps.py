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

from indexer.layers.kinds import UnfitInputError
from indexer.layers.modules import HookedModule
from indexer.layers.watched import Watched
from indexer.layers.weighed import WeighedCall, row_weights
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
            are added. What they are fed may have as many entries as there are examples by chance, and be others': they
            are weighed, as is every call after the model moved rows.

    Returns:
        Name of each parameter whose gradient does not follow from what the receiver got, to the reason: it is used
        otherwise than by calls of its module, or one was fed entries that are not of the rows that their places say.

    Raises:
        UnforeseenCallError: If a module is called that must not be, or its input does not tell the examples apart, or
            the forward pass fails where a module was given one row.
        Exception: What the model raises, if the forward pass fails otherwise.
    """
    sources: list[Tensor] = []
    weighed: list[WeighedCall] = []
    flattened = set() if flattened is None else flattened
    widened: list[str] = []
    wrong: dict[str, str] = {}
    weighing, period = False, 1
    held = [held for entry in modules for held in entry.module._parameters.values() if held is not None]
    watched = Watched(held, rows, apart=(*model.parameters(), *model.buffers()))

    def watch(entry: HookedModule) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], Tensor]:
        def hook(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> Tensor:
            own = watched.expect(module._parameters.values())
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
            if shared or not output.requires_grad or not sources:
                source = torch.zeros((), dtype=output.dtype, device=output.device, requires_grad=True)
                sources.append(source)
                output = output + source
            try:
                with watched.looking_away():
                    kept = receiver.given(entry, entry.kind.split(given.detach(), rows))
            except UnfitInputError as error:
                raise UnforeseenCallError(entry.name, str(error)) from None
            if rows > 1 and given.shape[0] != rows:
                flattened.add(entry.name)
            doubtful = None
            if rows > 1 and (entry.name in flattened or watched.moved):
                doubtful = WeighedCall(entry, output)
                weighed.append(doubtful)

            def take(delta: Tensor) -> None:
                if weighing:
                    return
                if doubtful is not None and not doubtful.is_in_order(delta.detach(), rows, period):
                    reason = "is fed entries that may be of any row"
                    wrong.update((place.name, reason) for place in entry.places)
                    return
                receiver.delta(entry, kept, entry.kind.split_delta(delta.detach(), rows))

            output.register_hook(take)
            seen: Tensor = output
            return seen

        return hook

    with _only_activations(model), torch.enable_grad():
        handles = [entry.module.register_forward_hook(watch(entry), with_kwargs=True) for entry in modules]
        try:
            with watched:
                values = forward()
        except Exception as error:  # the model may check a shape, and raise what it likes
            if not widened or isinstance(error, CaptureError) or is_out_of_memory(error):
                raise
            # What looked like one for all rows was one row's, and the model does not know what to do with more.
            raise UnforeseenCallError(widened[0], "is called with a single row of several") from error
        finally:
            for handle in handles:
                handle.remove()
        if values.requires_grad and sources:
            if weighed:
                weighing = True
                period = min(each.period for each in weighed)
                total = (values * row_weights(rows, period, values)).sum()
                places = [each.place for each in weighed]
                deltas = torch.autograd.grad(total, places, allow_unused=True, retain_graph=True)
                for each, delta in zip(weighed, deltas, strict=True):
                    each.weigh(delta)
                weighing = False
            torch.autograd.grad(values.sum(), sources, allow_unused=True)
    for entry in modules:
        for leaf, place in (("weight", entry.weight), ("bias", entry.bias)):
            if place is not None and watched.is_unexpected(entry.module._parameters[leaf]):
                wrong[place.name] = "takes part in the measurement otherwise than by calls of its module"
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
