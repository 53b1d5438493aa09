"""dattri: gradients by vmap of the loss, and its random projections.

``TRAKAttributor.cache`` goes on to solve a system that has no solution for fewer rows than d, so its two steps before
that are called here as it calls them.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil

import torch
from dattri.algorithm.trak import DEFAULT_PROJECTOR_KWARGS
from dattri.func.projection import random_project
from dattri.task import AttributionTask
from torch import Tensor, nn

from benchmarks.peer_passes.peer_pass import PeerPass, Settings, Task

BLOCK_COLUMNS = 100
MEASURED_BLOCKS = 2
"""Two, because a single block is drawn once and kept, which no d above 100 has."""


def dense(task: Task) -> PeerPass:
    """Rademacher signs."""
    return _made_once(task, "rademacher")


def gaussian(task: Task) -> PeerPass:
    """Gaussian entries, which torch draws several times as fast as signs."""
    return _made_once(task, "normal")


def _made_once(task: Task, projection: str) -> PeerPass:
    """The projector is made with the pass; ``TRAKAttributor`` makes another for every batch."""
    gradients = _gradients(task)
    columns = MEASURED_BLOCKS * BLOCK_COLUMNS
    like_a_row = torch.zeros(1, sum(parameter.numel() for parameter in task.model.parameters()))
    project = random_project(like_a_row, 1, columns, task.batch_rows, proj_type=projection, device="cpu")

    def sketch(inputs: Tensor, labels: Tensor) -> Tensor:
        return project(gradients(inputs, labels))

    blocks = ceil(task.dim / BLOCK_COLUMNS)
    return PeerPass(f"random_project, {projection}, made once", task.dim, sketch, gradients, blocks, MEASURED_BLOCKS)


def defaults(task: Task) -> PeerPass:
    """``TRAKAttributor``'s own projection, d = 512 and Gaussian, made anew for every batch as it does."""
    gradients = _gradients(task)
    keywords = dict(DEFAULT_PROJECTOR_KWARGS)

    def sketch(inputs: Tensor, labels: Tensor) -> Tensor:
        found = gradients(inputs, labels)
        return random_project(found, len(found), **keywords)(found)

    return PeerPass("TRAKAttributor's projection, defaults (Gaussian)", int(keywords["proj_dim"]), sketch)


def sparse(task: Task) -> PeerPass:
    """Its SJLT."""
    gradients = _gradients(task)

    def sketch(inputs: Tensor, labels: Tensor) -> Tensor:
        found = gradients(inputs, labels)
        return random_project(found, len(found), task.dim, len(found), proj_type="sjlt", device="cpu")(found)

    return PeerPass("random_project, sjlt", task.dim, sketch)


def _gradients(task: Task) -> Callable[[Tensor, Tensor], Tensor]:
    model = task.own_model()

    def loss(parameters: dict[str, Tensor], row: tuple[Tensor, Tensor]) -> Tensor:
        image, label = row
        logits = torch.func.functional_call(model, parameters, image[None])
        return nn.functional.cross_entropy(logits, label[None])

    attribution = AttributionTask(loss, model, model.state_dict())
    function = attribution.get_grad_loss_func(in_dims=(None, 0))
    parameters, _ = attribution.get_param(ckpt_idx=0)

    def gradients(inputs: Tensor, labels: Tensor) -> Tensor:
        found: Tensor = function(parameters, (inputs, labels)).detach()
        return found

    return gradients


SETTINGS: Settings = {"gaussian": gaussian, "dense": dense, "defaults": defaults, "sjlt": sparse}
