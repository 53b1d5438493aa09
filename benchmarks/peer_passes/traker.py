"""traker: TRAK's features, gradients by vmap and a dense projection that is drawn 100 columns at a time on a CPU."""

from __future__ import annotations

import logging
from math import ceil

import torch
from torch import Tensor
from trak import TRAKer
from trak.projectors import BasicProjector, ProjectionType

from benchmarks.peer_passes.peer_pass import PeerPass, Settings, Task

BLOCK_COLUMNS = 100
MEASURED_BLOCKS = 2
"""Two, because a single block is drawn once and kept, which no d above 100 has."""
DEFAULT_DIM = 2048


def dense(task: Task) -> PeerPass:
    """Rademacher signs in float32."""
    return _float32(task, ProjectionType.rademacher)


def gaussian(task: Task) -> PeerPass:
    """Gaussian entries in float32, which torch draws several times as fast as signs."""
    return _float32(task, ProjectionType.normal)


def _float32(task: Task, projection: ProjectionType) -> PeerPass:
    model = task.own_model()
    projector = BasicProjector(
        grad_dim=sum(parameter.numel() for parameter in model.parameters()),
        proj_dim=MEASURED_BLOCKS * BLOCK_COLUMNS,
        seed=0,
        proj_type=projection,
        device="cpu",
        block_size=BLOCK_COLUMNS,
        dtype=torch.float32,
    )
    tracer = TRAKer(
        model,
        task="image_classification",
        train_set_size=task.num_batches * task.batch_rows,
        save_dir=str(task.folder / f"traker-{projection.value}"),
        device="cpu",
        projector=projector,
        use_half_precision=False,
        logging_level=logging.WARNING,
    )
    return _pass(tracer, f"TRAKer with BasicProjector, {projection.value}, float32", task.dim)


def defaults(task: Task) -> PeerPass:
    """TRAKer as it is on a CPU where nothing but the device is said: d = 2048, Gaussian, float16."""
    tracer = TRAKer(
        task.own_model(),
        task="image_classification",
        train_set_size=task.num_batches * task.batch_rows,
        save_dir=str(task.folder / "traker-defaults"),
        device="cpu",
        proj_dim=MEASURED_BLOCKS * BLOCK_COLUMNS,
        logging_level=logging.WARNING,
    )
    return _pass(tracer, "TRAKer, defaults (Gaussian, float16)", DEFAULT_DIM)


def _pass(tracer: TRAKer, setting: str, dim: int) -> PeerPass:
    tracer.load_checkpoint(tracer.model.state_dict(), model_id=0)

    def sketch(inputs: Tensor, labels: Tensor) -> None:
        tracer.featurize((inputs, labels), num_samples=len(labels))

    def gradients(inputs: Tensor, labels: Tensor) -> object:
        return tracer.gradient_computer.compute_per_sample_grad((inputs, labels))

    return PeerPass(setting, dim, sketch, gradients, ceil(dim / BLOCK_COLUMNS), MEASURED_BLOCKS)


SETTINGS: Settings = {"gaussian": gaussian, "dense": dense, "defaults": defaults}
