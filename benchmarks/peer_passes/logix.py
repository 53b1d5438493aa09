"""logix-ai: LoGra, gradients of small bottlenecks that its adapters put beside every linear layer and convolution."""

from __future__ import annotations

import torch
from logix import LogIX
from torch import Tensor, nn

from benchmarks.peer_passes.peer_pass import PeerPass, Settings, Task, label_logits


def rank_of(model: nn.Module, dim: int) -> tuple[int, int]:
    """Return the rank at which LoGra's numbers are nearest to d, and how many they are.

    A layer of a inputs (channels) and b outputs gets min(rank, a, b)² numbers.

    Args:
        model: The model.
        dim: d.

    Returns:
        Rank and numbers a row.
    """
    sides = []
    for module in model.modules():
        if isinstance(module, nn.Linear):
            sides.append(min(module.in_features, module.out_features))
        elif isinstance(module, nn.Conv2d):
            sides.append(min(module.in_channels, module.out_channels))
    totals = [(sum(min(rank, side) ** 2 for side in sides), rank) for rank in range(1, max(sides) + 1)]
    total, rank = min(totals, key=lambda pair: abs(pair[0] - dim))
    return rank, total


def kronecker(task: Task) -> PeerPass:
    """LoGra with random projections, the gradients left in memory: its own store takes longer."""
    model = task.own_model()
    rank, total = rank_of(model, task.dim)
    config = task.folder / "logix.yaml"
    config.write_text(f"root_dir: {task.folder}/logix\nlora:\n  init: random\n  rank: {rank}\n", "utf-8")
    tracer = LogIX(project="peers", config=str(config))
    tracer.watch(model)
    tracer.add_lora()
    tracer.setup({"grad": ["log"]})
    tracer.eval()

    def sketch(inputs: Tensor, labels: Tensor) -> Tensor:
        with tracer(data_id=range(len(labels))):
            label_logits(model, inputs, labels).backward()
        _, log = tracer.get_log()
        found = torch.cat([layer["grad"].flatten(1) for layer in log.values()], dim=1)
        if found.shape != (len(labels), total):
            raise ValueError(f"logix-ai logged gradients of shape {tuple(found.shape)}, not {(len(labels), total)}")
        return found

    return PeerPass(f"LoGra, rank {rank}", total, sketch)


SETTINGS: Settings = {"kronecker": kronecker}
