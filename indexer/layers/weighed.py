"""Finds out whose entries are whose where places in what a module is given may not tell the examples apart."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from indexer.layers.modules import HookedModule


class WeighedCall:
    """A call whose input may have entries of other examples than their place says.

    Positions of all examples may stand one after the other, as many of each; rows may have been taken out, cut up or
    put in another order before; one entry may be meant for all rows, or be one row's. A backward pass goes ahead in
    which every example has a weight of its own: what comes back at an entry must have its example's weight.

    Args:
        entry: The module.
        output: What it gave.

    Attributes:
        place: Its output's place in autograd's graph.
        period: So many rows have weights unlike each other, as far as the type's numbers go.
    """

    def __init__(self, entry: HookedModule, output: Tensor) -> None:
        self.entry = entry
        # Of the output as it is now: a ReLU may change it in place
        self.place = get_gradient_edge(output)
        self.period = 5 if output.dtype == torch.float16 else 31
        self._weighted: Tensor | None = None

    def weigh(self, delta: Tensor | None) -> None:
        """Receive the gradient at the output in the backward pass in which examples have weights.

        Args:
            delta: The gradient; None where there is none.
        """
        self._weighted = None if delta is None else delta.flatten(1).float().norm(dim=1)

    def is_in_order(self, delta: Tensor, rows: int, period: int) -> bool:
        """Say whether every entry has the weight of the example that its number says.

        Args:
            delta: The gradient at the output without weights.
            rows: Number of examples.
            period: That of the weights.

        Returns:
            Whether it has.
        """
        if self._weighted is None:
            return False
        plain = delta.flatten(1).float().norm(dim=1)
        # Powers of two change no digit of a row's numbers; another row's weight is at least a factor of two away.
        unweighted = self._weighted / row_weights(rows, period, plain).repeat_interleave(len(plain) // rows)
        return bool(((unweighted - plain).abs() <= 0.1 * plain + 1e-6 * plain.max()).all())


def row_weights(rows: int, period: int, like: Tensor) -> Tensor:
    """Give every example a power of two.

    Args:
        rows: Number of examples.
        period: So many rows in a row have weights unlike each other; in which order is drawn for each so many, or all
            pairs of rows that far apart would have the same.
        like: Says device and type.

    Returns:
        Shape [rows].
    """
    drawn = torch.Generator("cpu").manual_seed(0)
    exponents = [torch.randperm(period, generator=drawn, device="cpu") for _ in range(-(-rows // period))]
    return torch.exp2((torch.cat(exponents)[:rows] - period // 2).to(like.device, like.dtype))
