"""What a peer does to a batch of rows, and how the time of a whole pass follows where only a part of it was run."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn


@dataclass(frozen=True)
class PeerPass:
    """A pass of a peer under one setting.

    A projection by blocks draws one block of its matrix after the other, the same work for each, so a pass with k of
    its K blocks takes

        t(k) = t_gradients + k · t_block    and a whole pass    t(K) = t_gradients + (t(k) − t_gradients) · K / k.

    Attributes:
        setting: The setting in words.
        dim: Numbers a row gets in a whole pass; None where the peer makes none.
        sketch: Takes inputs [b, …] and labels [b] through the pass, with ``measured_blocks`` of its blocks.
        gradients: Does the peer's part before the projection alone; None where nothing is extrapolated.
        blocks: K.
        measured_blocks: k.
    """

    setting: str
    dim: int | None
    sketch: Callable[[Tensor, Tensor], object]
    gradients: Callable[[Tensor, Tensor], object] | None = None
    blocks: int = 1
    measured_blocks: int = 1

    @property
    def extrapolated(self) -> bool:
        """Whether the time of a whole pass is computed from that of a part."""
        return self.blocks != self.measured_blocks

    def whole_seconds(self, measured: float, gradients: float) -> float:
        """Return t(K).

        Args:
            measured: t(k) in seconds.
            gradients: t_gradients in seconds, 0 where nothing is extrapolated.

        Returns:
            Seconds.
        """
        return gradients + (measured - gradients) * self.blocks / self.measured_blocks


@dataclass(frozen=True)
class Task:
    """What a peer gets: the same model and rows as this project's pass.

    Attributes:
        model: The model in eval mode, never changed.
        dim: d.
        num_batches: Most batches that will come, for peers that set their store up in advance.
        batch_rows: Rows of a batch.
        folder: Where a peer may write.
    """

    model: nn.Module
    dim: int
    num_batches: int
    batch_rows: int
    folder: Path

    def own_model(self) -> nn.Module:
        """Return a copy that a peer may change."""
        return copy.deepcopy(self.model)


Settings = Mapping[str, Callable[[Task], PeerPass]]
"""How to make a peer's passes, by what they are compared in; made one at a time, for some hold gigabytes."""


def label_logits(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    """Return the sum over a batch of the logit of each row's label, the measurement of this project's pass."""
    logits: Tensor = model(inputs)
    return logits.gather(1, labels[:, None]).sum()
