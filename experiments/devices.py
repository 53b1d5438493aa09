"""``--device``: where a network is trained and retrained, its index built and EK-FAC computed."""

from dataclasses import replace
from typing import Any

import torch

from experiments import backdoor
from experiments.networks import is_flat
from experiments.retrained_network import NetworkSettings

DEVICES = ("auto", "cpu", "cuda")


class DeviceError(ValueError):
    """The device is not there, or the experiment has no use for it."""


def on_device(settings: Any, wanted: str) -> Any:
    """Return an experiment's settings with the device that it computes on, in ``training.device`` of its network.

    Networks of images in ``backdoor`` and ``brittleness`` are trained by ``indexer.training``, which can use a GPU.
    Everything else computes on the CPU: its networks are small ones, most of them trained by ``mlp_training``.

    Args:
        settings: The settings of any experiment.
        wanted: ``auto``, which is ``cuda`` where torch has it and the experiment can use it; ``cpu`` or ``cuda``.

    Raises:
        DeviceError: If ``cuda`` is wanted and torch has none, or the experiment cannot use it.
    """
    has_cuda = torch.cuda.is_available()
    if wanted == "cuda" and not has_cuda:
        raise DeviceError("--device cuda: torch sees no CUDA device here; allowed are auto and cpu")
    how = settings if isinstance(settings, backdoor.Settings) else getattr(settings, "mlp", None)
    if not isinstance(how, backdoor.Settings | NetworkSettings) or is_flat(how.network):
        if wanted == "cuda":
            raise DeviceError(
                "--device cuda: this computes on the CPU; allowed are auto and cpu "
                "(a GPU is for the networks of images in backdoor and brittleness)"
            )
        return settings
    device = "cuda" if wanted != "cpu" and has_cuda else "cpu"
    moved = replace(how, training=replace(how.training, device=device))
    return moved if how is settings else replace(settings, mlp=moved)
