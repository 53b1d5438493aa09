"""bergson: per-module projections from hooks, which take sequences [b, s, features] alone."""

from __future__ import annotations

from math import sqrt

import torch
from bergson.collector.gradient_collectors import GradientCollector
from bergson.config import IndexConfig
from bergson.gradients import GradientProcessor
from datasets import Dataset
from torch import Tensor, nn

from benchmarks.peer_passes.peer_pass import PeerPass, Settings, Task, label_logits


class SequencesOfOne(nn.Module):
    """A model of vectors as one of sequences of one vector, with the attribute ``device`` that bergson asks for."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.device = torch.device("cpu")

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the logits [b, C] of vectors [b, features]; anything else goes to the model as it is."""
        if inputs.ndim != 2:
            return self.model(inputs)
        logits: Tensor = self.model(inputs[:, None])[:, 0]
        return logits


def kronecker(task: Task) -> PeerPass:
    """Rademacher projections from both sides of every layer, the gradients left in memory."""
    model = SequencesOfOne(task.own_model())
    layers = sum(isinstance(module, (nn.Linear, nn.Conv2d)) for module in model.modules())
    side = round(sqrt(task.dim / layers))
    collector = GradientCollector(
        model=model,
        data=Dataset.from_dict({"length": [1] * task.batch_rows}),
        cfg=IndexConfig(run_path=str(task.folder / "bergson")),
        processor=GradientProcessor(projection_dim=side),
        skip_index=True,
    )

    def sketch(inputs: Tensor, labels: Tensor) -> Tensor:
        with collector:
            label_logits(model, inputs, labels).backward()
        model.zero_grad(set_to_none=True)
        found = torch.cat([layer.flatten(1) for layer in collector.mod_grads.values()], dim=1)
        if found.shape != (len(labels), layers * side**2):
            raise ValueError(
                f"bergson's gradients have shape {tuple(found.shape)}, not {(len(labels), layers * side**2)}"
            )
        return found

    return PeerPass(f"GradientCollector, projection_dim {side}", layers * side**2, sketch)


SETTINGS: Settings = {"kronecker": kronecker}
