r"""Tangent features of linear layers from one backward pass for a whole batch.

For z = W a + b with one row of a and z per example, :math:`\partial f/\partial W = \delta a^\top` and
:math:`\partial f/\partial b = \delta` with :math:`\delta = \partial f/\partial z`. The two factors of all examples
take b·(in + out) numbers; the gradients, b·in·out, are formed a slab of output rows at a time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from indexer.parameters import Parameter, ParameterList


@dataclass(frozen=True)
class LinearLayer:
    """A linear layer with chosen parameters.

    Attributes:
        name: Dotted name of the module.
        module: The layer.
        weight: Its weight's place in the parameter list, None if not chosen.
        bias: Its bias's place, None if not chosen.
    """

    name: str
    module: nn.Linear
    weight: Parameter | None
    bias: Parameter | None


@dataclass(frozen=True)
class Factors:
    """The factors of one layer's gradients for a batch.

    Attributes:
        inputs: a, shape [b, in].
        deltas: δ, shape [b, out].
    """

    inputs: Tensor
    deltas: Tensor


class CaptureError(RuntimeError):
    """A linear layer that was not used once, on one row per example.

    Attributes:
        layer: Name of the module.
    """

    def __init__(self, layer: str, reason: str) -> None:
        super().__init__(f"{layer} {reason}")
        self.layer = layer
        self.reason = reason


def linear_layers(model: nn.Module, parameters: ParameterList) -> list[LinearLayer]:
    """Layers whose chosen parameters may come as outer products, as far as the model's structure tells.

    Frozen weights, weights held by two modules, subclasses of nn.Linear and parametrised ones are left to the general
    route; how a layer is used shows only when it runs (`capture`).

    Args:
        model: The model.
        parameters: The chosen parameters.

    Returns:
        The layers in the order of the model's modules.
    """
    chosen = {parameter.name: parameter for parameter in parameters}
    holders = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    layers = []
    for name, module in model.named_modules():
        if type(module) is not nn.Linear:
            continue
        prefix = f"{name}." if name else ""
        weight, bias = chosen.get(f"{prefix}weight"), chosen.get(f"{prefix}bias")
        own = [parameter for _, parameter in module.named_parameters(recurse=False)]
        if (weight or bias) and all(parameter.requires_grad and holders[id(parameter)] == 1 for parameter in own):
            layers.append(LinearLayer(name, module, weight, bias))
    return layers


def capture(layers: Sequence[LinearLayer], forward: Callable[[], Tensor], rows: int) -> dict[str, Factors]:
    """Run a forward and a backward pass and keep both factors of each layer.

    Args:
        layers: The layers to watch.
        forward: Gives each example's measurement, shape [rows].
        rows: Number of examples.

    Returns:
        Name of each layer to its factors.

    Raises:
        CaptureError: If a layer was not called exactly once, on an input [rows, in] that stayed as it was.
    """
    calls: dict[str, list[tuple[Tensor, int, Tensor]]] = {layer.name: [] for layer in layers}

    def watch(name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], Tensor]:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Tensor:
            # δ is the gradient at an added zero: it exists even where nothing below needs a gradient.
            zero = torch.zeros_like(output, requires_grad=True)
            given = inputs[0] if inputs else torch.empty(0)
            calls[name].append((given.detach(), given._version, zero))
            moved: Tensor = output + zero
            return moved

        return hook

    handles = [layer.module.register_forward_hook(watch(layer.name)) for layer in layers]
    try:
        with torch.enable_grad():
            total = forward().sum()
    finally:
        for handle in handles:
            handle.remove()
    for name, seen in calls.items():
        if len(seen) != 1:
            raise CaptureError(name, f"is used {len(seen)} times in a forward pass")
        given, version, _ = seen[0]
        if given.ndim != 2 or given.shape[0] != rows:
            raise CaptureError(name, f"has inputs of shape {list(given.shape)} for {rows} examples, not one row each")
        if given._version != version:
            raise CaptureError(name, "has an input that is changed in place after use")
    zeros = [seen[0][2] for seen in calls.values()]
    deltas = torch.autograd.grad(total, zeros, materialize_grads=True) if zeros else ()
    return {
        name: Factors(seen[0][0].float(), delta.detach().float())
        for (name, seen), delta in zip(calls.items(), deltas, strict=True)
    }


def outer_slabs(layer: LinearLayer, factors: Factors, slab_bytes: int) -> Iterator[tuple[int, Tensor]]:
    """Gradients of one layer, NTK-scaled, a slab of consecutive parameters at a time.

    Args:
        layer: The layer.
        factors: Its factors for b examples.
        slab_bytes: Size that a slab [b, p] keeps to; at least one parameter.

    Yields:
        Coordinate of the slab's first parameter and the slab, float32 [b, p].
    """
    rows, width = factors.inputs.shape
    per_slab = max(1, slab_bytes // (4 * max(1, rows)))
    if layer.weight is not None:
        deltas = factors.deltas * layer.weight.ntk_scale
        offset = layer.weight.offset
        if per_slab >= width:
            for start, stop in _even_parts(deltas.shape[1], per_slab // width):
                slab = deltas[:, start:stop, None] * factors.inputs[:, None, :]
                yield offset + start * width, slab.reshape(rows, -1)
        else:
            for output in range(deltas.shape[1]):
                for start, stop in _even_parts(width, per_slab):
                    yield (
                        offset + output * width + start,
                        deltas[:, output, None] * factors.inputs[:, start:stop],
                    )
    if layer.bias is not None:
        deltas = factors.deltas * layer.bias.ntk_scale
        for start, stop in _even_parts(deltas.shape[1], per_slab):
            yield layer.bias.offset + start, deltas[:, start:stop]


def _even_parts(size: int, largest: int) -> Iterator[tuple[int, int]]:
    count = -(-size // largest)
    for part in range(count):
        yield size * part // count, size * (part + 1) // count
