"""Where a model holds its representation: the module whose input it is, so that no pass of its own is needed for it.

Most recipes give as representation what the last linear layer reads, which every forward pass computes anyway. Which
module that is, if any, is seen on a few rows; there its input must be the representation up to rounding, row for row.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

RELATIVE_ROUNDING = 1e-5
"""Two float32 passes over the same rows differ by less, in units of the largest number of the representation."""

OTHER_BATCH_ROUNDING = 1e-4
"""The same for a row in a batch and the row alone, which may be padded otherwise and takes other products."""


def module_that_reads(model: nn.Module, representation: Tensor, forward: Callable[[], object]) -> nn.Module | None:
    """Find a module whose input is the representation.

    Args:
        model: The model.
        representation: What the recipe gives for a few rows, unlike each other, shape [b, h].
        forward: Runs the model on the same rows.

    Returns:
        The last module called with it, once in a forward pass; None where there is none.
    """
    calls: dict[nn.Module, list[Tensor]] = {}

    def note(module: nn.Module, given: tuple[object, ...]) -> None:
        if given and isinstance(given[0], Tensor):
            calls.setdefault(module, []).append(given[0].detach())

    handles = [module.register_forward_pre_hook(note) for module in model.modules() if module is not model]
    try:
        with torch.no_grad():
            forward()
    finally:
        for handle in handles:
            handle.remove()
    found = [module for module, given in calls.items() if len(given) == 1 and is_same(given[0], representation)]
    return found[-1] if found else None


def is_same(given: Tensor, representation: Tensor, rounding: float = RELATIVE_ROUNDING) -> bool:
    """Tell whether what a module was given is the representation, up to rounding.

    Args:
        given: What it was given.
        representation: The representation, shape [b, h].
        rounding: Largest difference, in units of the largest number of the representation.

    Returns:
        Whether it is; zeros say nothing, and are not.
    """
    if given.shape != representation.shape or not given.is_floating_point():
        return False
    largest = representation.abs().max() if representation.numel() else torch.zeros(())
    return bool(((given - representation).abs() <= rounding * largest).all()) and bool(largest > 0)
