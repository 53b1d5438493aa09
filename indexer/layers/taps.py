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
) -> None:
    """Run a forward and a backward pass.

    Args:
        model: The model.
        modules: The modules to watch.
        forward: Gives each example's measurement, shape [rows].
        rows: Number of examples.
        receiver: Takes inputs and gradients at outputs.
        unproven: Names of modules that must not be called.

    Raises:
        UnforeseenCallError: If one of them is called, or a module's input does not tell the examples apart.
    """
    sources: list[Tensor] = []

    def watch(entry: HookedModule) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], Tensor]:
        def hook(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> Tensor:
            if not torch.is_grad_enabled():  # the model itself says that nothing is to be differentiated here
                untouched: Tensor = output
                return untouched
            if entry.name in unproven:
                raise UnforeseenCallError(entry.name, "is called for some examples only")
            given = inputs[0] if inputs else next(iter(named.values()))
            if not isinstance(given, Tensor) or not isinstance(output, Tensor):
                raise UnforeseenCallError(entry.name, "does not take and give a tensor")
            # Positions, for one, may be looked up once for all rows: every row then gets an output of its own.
            shared = rows > 1 and given.shape[:1] == (1,) and output.shape[:1] == (1,)
            if shared:
                given, output = (tensor.expand(rows, *tensor.shape[1:]) for tensor in (given, output))
            if shared or not output.requires_grad:
                source = torch.zeros((), dtype=output.dtype, device=output.device, requires_grad=True)
                sources.append(source)
                output = output + source
            try:
                kept = receiver.given(entry, entry.kind.split(given.detach(), rows))
            except UnfitInputError as error:
                raise UnforeseenCallError(entry.name, str(error)) from None
            output.register_hook(
                lambda delta: receiver.delta(entry, kept, entry.kind.split_delta(delta.detach(), rows))
            )
            watched: Tensor = output
            return watched

        return hook

    with _only_activations(model), torch.enable_grad():
        handles = [entry.module.register_forward_hook(watch(entry), with_kwargs=True) for entry in modules]
        try:
            total = forward().sum()
        finally:
            for handle in handles:
                handle.remove()
        if total.requires_grad:
            torch.autograd.grad(total, sources, allow_unused=True)
    receiver.done()


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
