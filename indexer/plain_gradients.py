"""Gradients of one number by plain autograd, for every parameter at once: what all faster ways are held against."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from indexer.layers.gradients import at_least_float
from indexer.parameters import Parameter


def plain_gradients(model: nn.Module, places: Iterable[Parameter], measured: Callable[[], Tensor]) -> dict[str, Tensor]:
    """Differentiate a number by some of a model's parameters.

    Args:
        model: The model.
        places: The parameters.
        measured: Runs the model and gives the number, shape [].

    Returns:
        Name of each parameter that takes part to its gradient, of its shape and at least float32, not NTK-scaled.

    Raises:
        RuntimeError: If autograd cannot differentiate what the model does.
    """
    held = dict(model.named_parameters())
    chosen = {place.name: held[place.name] for place in places}
    with _asking(list(chosen.values())), torch.enable_grad():
        value = measured()
        if not value.requires_grad:  # none of them takes part, such as an expert that this example does not go to
            return {}
        found = torch.autograd.grad(value, list(chosen.values()), allow_unused=True)
    return {
        name: at_least_float(gradient.detach().to_dense())  # of an embedding with sparse=True, gradients are sparse
        for name, gradient in zip(chosen, found, strict=True)
        if gradient is not None
    }


@contextmanager
def _asking(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    before = [parameter.requires_grad for parameter in parameters]
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter, flag in zip(parameters, before, strict=True):
            parameter.requires_grad_(flag)
