"""Normalisation layers: the gradients of their scale and shift, vectors that are formed at once.

For y = w · x̂ + b, with x̂ the normalised input, ∂f/∂w = Σ_p δ_p x̂_p and ∂f/∂b = Σ_p δ_p over the positions p.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from indexer.layers.kinds import UnfitInputError, split_positions


class ScaleAndShift:
    """A normalisation with a scale and perhaps a shift.

    Attributes:
        normalised: From the module's input to x̂, of the same shape.
        tail: Shape of a position where the parameters stand on the last dimensions; None where they stand on the
            second one, the channels.
    """

    def __init__(self, normalised: Callable[[Tensor], Tensor], tail: tuple[int, ...] | None) -> None:
        self.normalised = normalised
        self.tail = tail

    def split(self, given: Tensor, rows: int) -> Tensor:
        """The input with the example as first dimension.

        Args:
            given: What the module was called with.
            rows: b.

        Returns:
            [b, p, *tail], or [b, channels, …].

        Raises:
            UnfitInputError: If its rows cannot be told apart.
        """
        if self.tail is not None:
            return split_positions(given, rows, self.tail)
        if given.ndim < 2 or given.shape[0] != rows:
            raise UnfitInputError(f"has inputs of shape {list(given.shape)} for {rows} examples")
        return given

    def split_delta(self, delta: Tensor, rows: int) -> Tensor:
        """The gradient at the output in the same manner.

        Args:
            delta: Of the input's shape.
            rows: b.

        Returns:
            Of the shape that `split` gives.
        """
        return self.split(delta, rows)

    def gradients(self, given: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of scale and shift.

        Args:
            given: The input, as `split` gave it.
            delta: The gradient at the output, as `split_delta` gave it.

        Returns:
            Two tensors [b, size].
        """
        normalised = self.normalised(given)
        if self.tail is not None:
            return (delta * normalised).sum(1).flatten(1), delta.sum(1).flatten(1)
        if given.ndim == 2:
            return delta * normalised, delta
        delta = delta.flatten(2)
        return torch.linalg.vecdot(delta, normalised.flatten(2)), delta.sum(2)


def norm_kind(module: nn.Module) -> ScaleAndShift | None:
    """How a normalisation is differentiated.

    Args:
        module: Any module.

    Returns:
        Its kind; None for anything else, for batch norm with statistics of the batch, and for unknown subclasses.
    """
    if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
        if type(module).__name__ not in ("BatchNorm1d", "BatchNorm2d", "BatchNorm3d"):
            return None
        return None if module.training or module.running_mean is None else ScaleAndShift(_batch_norm(module), None)
    if type(module) is nn.LayerNorm:
        shape = tuple(module.normalized_shape)
        return ScaleAndShift(lambda given: functional.layer_norm(given, shape, None, None, module.eps), shape)
    if type(module) is nn.GroupNorm:
        groups, eps = module.num_groups, module.eps
        return ScaleAndShift(lambda given: functional.group_norm(given, groups, None, None, eps), None)
    named = dict(module.named_parameters(recurse=False))
    if type(module).__name__.endswith(("RMSNorm", "T5LayerNorm")) and list(named) == ["weight"]:
        return ScaleAndShift(_affine_in_weight(module), tuple(named["weight"].shape))
    return None


def _batch_norm(module: nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d) -> Callable[[Tensor], Tensor]:
    mean, variance, eps = module.running_mean, module.running_var, module.eps
    assert mean is not None
    assert variance is not None
    return lambda given: functional.batch_norm(given, mean, variance, None, None, False, 0.0, eps)


def _affine_in_weight(module: nn.Module) -> Callable[[Tensor], Tensor]:
    # Models bring RMSNorms of their own, some with w and some with 1 + w: x̂ is what a unit of w adds.
    def normalised(given: Tensor) -> Tensor:
        weight = module.weight
        assert isinstance(weight, Tensor)
        ones = torch.func.functional_call(module, {"weight": torch.ones_like(weight)}, (given,))
        zeros = torch.func.functional_call(module, {"weight": torch.zeros_like(weight)}, (given,))
        moved: Tensor = ones - zeros
        return moved

    return normalised
