"""Finds out whose positions are whose where a module is fed those of all examples one after the other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from indexer.layers.modules import HookedModule


class FlattenedCall:
    """A call whose input has the positions of all examples one after the other, in place of an example each.

    Whose they are is taken from their number: as many of every example. Where a model takes padding out before its
    layers, that may be false though the numbers fit. So a backward pass goes ahead in which every example has a weight
    of its own: what comes back at a position must have its example's weight.

    Args:
        entry: The module.
        kept: What the receiver kept of its input.
        dtype: Type of its output.

    Attributes:
        delta: The gradient at its output, once the unweighted backward pass has come by.
        period: So many rows have weights unlike each other, as far as the type's numbers go.
    """

    def __init__(self, entry: HookedModule, kept: Any, dtype: torch.dtype) -> None:
        self.entry, self.kept = entry, kept
        self.period = 5 if dtype == torch.float16 else 31
        self.delta: Tensor | None = None
        self._weighted: Tensor | None = None

    def take(self, delta: Tensor, weighing: bool) -> None:
        """Receive the gradient at the output.

        Args:
            delta: The gradient.
            weighing: Whether examples have weights in this backward pass.
        """
        if weighing:
            self._weighted = delta.flatten(1).float().norm(dim=1)
        else:
            self.delta = delta

    def is_in_order(self, rows: int, period: int) -> bool:
        """Say whether every position has the weight of the example that its number says.

        Args:
            rows: Number of examples.
            period: That of the weights.

        Returns:
            Whether it has.
        """
        if self.delta is None or self._weighted is None:
            return self.delta is None and self._weighted is None
        plain = self.delta.flatten(1).float().norm(dim=1)
        # Powers of two change no digit of a row's numbers; another row's weight is at least a factor of two away.
        unweighted = self._weighted / row_weights(rows, period, plain).repeat_interleave(len(plain) // rows)
        return bool(((unweighted - plain).abs() <= 0.1 * plain + 1e-6 * plain.max()).all())


def row_weights(rows: int, period: int, like: Tensor) -> Tensor:
    """Give every example a power of two.

    Args:
        rows: Number of examples.
        period: After so many the weights begin anew.
        like: Says device and type.

    Returns:
        Shape [rows].
    """
    return torch.exp2((torch.arange(rows, device=like.device) % period - period // 2).to(like.dtype))
