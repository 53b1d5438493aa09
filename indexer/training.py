"""Trains the models of the built-in recipes, the same bits for the same settings, and caches their weights.

The start of the line: where "a trained model" comes from when the user does not bring one.
"""

from __future__ import annotations

import json
import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from blake3 import blake3
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from indexer.recipe import RecipeError
from indexer.terminal import and_time_left

log = logging.getLogger("indexer.training")

TRAINING_VERSION = 1  # part of every cache key: raise it when a change here changes the weights that come out


class DamagedCacheWarning(UserWarning):
    """Cached weights were not what their digest says; they are thrown away and the model is trained again."""


@dataclass(frozen=True)
class TrainingSettings:
    """Everything about a training run but the model, the data and the seed.

    Attributes:
        epochs: Passes over the training set.
        batch_size: Rows a step; the last, smaller batch of an epoch is used too.
        peak_rate: Largest learning rate.
        momentum: SGD momentum.
        weight_decay: L2 coefficient added to the gradient.
        peak_epoch: Epoch at which a triangular schedule reaches ``peak_rate``, from 0 and back to 0 at the end; None
            keeps the rate constant.
        augment: ``"none"``, or ``"crop-flip"``: pad by 4, crop at random, mirror at random.
        threads: CPU threads. Small models train up to 15 times faster with one than with two on a busy machine.
        device: ``"cpu"`` or ``"cuda"``.
    """

    epochs: int
    batch_size: int
    peak_rate: float
    momentum: float = 0.9
    weight_decay: float = 0.0
    peak_epoch: float | None = None
    augment: str = "none"
    threads: int = 1
    device: str = "cpu"

    def rate(self, epoch: float) -> float:
        """Return the learning rate at a fractional epoch."""
        if self.peak_epoch is None:
            return self.peak_rate
        if epoch < self.peak_epoch:
            return self.peak_rate * epoch / self.peak_epoch
        return self.peak_rate * (self.epochs - epoch) / (self.epochs - self.peak_epoch)


@contextmanager
def cpu_threads(threads: int) -> Iterator[None]:
    """Run a block with torch on this many CPU threads, and restore the setting after it.

    Args:
        threads: Number of threads, at least 1.

    Yields:
        Nothing.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Run a block (an initialisation) with torch's CPU generator at a seed, and restore the generator after it.

    Args:
        seed: Seed of the generator.

    Yields:
        Nothing.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def train_classifier(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    settings: TrainingSettings,
    *,
    seed: int,
    name: str = "model",
    removed: Tensor | None = None,
) -> nn.Module:
    """Minimise the cross-entropy of a classifier by SGD with momentum.

    Order of rows and augmentation come from generators of their own seeded by ``seed``, so that the result depends on
    the arguments, the torch build and the device only.

    Args:
        model: Initialised model; trained in place.
        inputs: Training inputs, float32 ``[n, …]``.
        labels: Training labels, int64 ``[n]``.
        settings: How to train.
        seed: Seed of the row order and of the augmentation.
        name: What to call the model in the log.
        removed: Rows left out, int64; None for none. They leave their batches, whose means are over the rows left,
            after the augmentation is drawn: all others are seen in the same order, shifted and mirrored as before.

    Returns:
        The same model, on the CPU and in eval mode.
    """
    device = torch.device(settings.device)
    model.to(device).train()
    inputs, labels = inputs.to(device), labels.to(device)
    optimiser = torch.optim.SGD(
        model.parameters(), lr=settings.peak_rate, momentum=settings.momentum, weight_decay=settings.weight_decay
    )
    generator = torch.Generator().manual_seed(seed)
    num_batches = -(-len(labels) // settings.batch_size)
    kept = None
    if removed is not None:
        kept = torch.ones(len(labels), dtype=torch.bool, device=device)
        kept[removed.to(device)] = False
    started = reported = time.monotonic()
    with torch.enable_grad(), cpu_threads(settings.threads), _deterministic_convolutions():
        for epoch in range(settings.epochs):
            order = torch.randperm(len(labels), generator=generator).to(device)
            for batch in range(num_batches):
                for group in optimiser.param_groups:
                    group["lr"] = settings.rate(epoch + batch / num_batches)
                rows = order[batch * settings.batch_size : (batch + 1) * settings.batch_size]
                images = inputs[rows]
                if settings.augment == "crop-flip":
                    images = crop_and_flip(images, generator)
                if kept is not None:
                    images, rows = images[kept[rows]], rows[kept[rows]]
                    if not len(rows):
                        continue
                loss = nn.functional.cross_entropy(model(images), labels[rows])
                optimiser.zero_grad(set_to_none=True)
                torch.autograd.backward(loss)
                optimiser.step()
            if time.monotonic() - reported > 5 or epoch + 1 == settings.epochs:
                reported = time.monotonic()
                log.info(
                    "training %s: epoch %d of %d, loss %.4f, %.1f s%s",
                    name, epoch + 1, settings.epochs, loss.item(), reported - started,
                    and_time_left(epoch + 1, settings.epochs, reported - started),
                )  # fmt: skip
    return model.to("cpu").eval()


def crop_and_flip(images: Tensor, generator: torch.Generator, *, padding: int = 4) -> Tensor:
    """Shift each image by up to ``padding`` pixels (zeros come in) and mirror every second one, at random.

    Args:
        images: Images ``[b, c, h, w]``.
        generator: CPU generator that the shifts and mirrors come from.
        padding: Largest shift, in pixels.

    Returns:
        The augmented images, same shape.
    """
    b, _, h, w = images.shape
    padded = nn.functional.pad(images, (padding,) * 4)
    top = torch.randint(0, 2 * padding + 1, (b, 1), generator=generator)
    left = torch.randint(0, 2 * padding + 1, (b, 1), generator=generator)
    mirrored = torch.rand(b, 1, generator=generator) < 0.5
    column = torch.arange(w).expand(b, w)
    columns = left + torch.where(mirrored, w - 1 - column, column)  # [b, w]
    rows = top + torch.arange(h)  # [b, h]
    picked = (torch.arange(b)[:, None, None], rows[:, :, None], columns[:, None, :])
    on_device = [index.to(images.device) for index in picked]
    return padded.permute(0, 2, 3, 1)[on_device[0], on_device[1], on_device[2]].permute(0, 3, 1, 2).contiguous()


def cached_weights(
    recipe_name: str, determined_by: Mapping[str, Any], train: Callable[[], nn.Module], architecture: nn.Module
) -> nn.Module:
    """Load trained weights from the cache, or train once and keep them.

    Args:
        recipe_name: Name of the recipe; part of the file's name.
        determined_by: Everything that the weights depend on (settings, seed, digest of the data, torch version), as
            JSON values; its digest is the key.
        train: Trains and returns the model; called when the cache has no sound entry.
        architecture: Model of the same modules, into which cached weights are loaded.

    Returns:
        The trained model in eval mode.
    """
    described = json.dumps({"training_version": TRAINING_VERSION, **determined_by}, sort_keys=True)
    key = blake3(described.encode()).hexdigest()[:24]
    folder = cache_folder() / "weights"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{recipe_name}-{key}.safetensors"
    with FileLock(f"{path}.lock"):
        if path.is_file():
            state = _load_sound(path)
            if state is not None:
                architecture.load_state_dict(state)
                return architecture.eval()
            warnings.warn(f"{path} is damaged; training {recipe_name} again", DamagedCacheWarning, stacklevel=2)
        model = train().eval()
        # clones, because a file has no tensors that share memory, and a tied embedding does
        state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        save_file(state, temporary, metadata={"determined_by": described, "digest": state_digest(state)})
        os.replace(temporary, path)
    return model


def cache_folder() -> Path:
    """Return the folder of cached weights: ``NATTRIBUTE_CACHE``, by default ``~/.cache/nattribute``."""
    return Path(os.environ.get("NATTRIBUTE_CACHE") or Path.home() / ".cache" / "nattribute")


def state_digest(state: Mapping[str, Tensor]) -> str:
    """Digest named tensors by blake3: names, dtypes, shapes and values, in the order of the names.

    Args:
        state: The tensors, as ``state_dict()`` gives them.

    Returns:
        The digest, in hexadecimal digits.

    Raises:
        RecipeError: If one of them is no tensor.
    """
    hasher = blake3()
    for name in sorted(state):
        if not isinstance(state[name], Tensor):
            raise RecipeError(
                f"the model's state has {name!r}, a {type(state[name]).__name__}: weights are stored as tensors alone. "
                "Leave get_extra_state() out, or have it give a tensor"
            )
        tensor = state[name].detach().cpu().contiguous()
        hasher.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        hasher.update(tensor.view(-1).view(torch.uint8).numpy().tobytes())
    return hasher.hexdigest()


def settings_for_key(settings: TrainingSettings) -> dict[str, Any]:
    """Return the settings with the torch version and thread count that also decide the bits."""
    return {**asdict(settings), "torch": torch.__version__}


def _load_sound(path: Path) -> dict[str, Tensor] | None:
    try:
        state: dict[str, Tensor] = load_file(path)
        with safe_open(path, framework="pt") as file:
            stored = (file.metadata() or {}).get("digest")
    except SafetensorError:
        return None
    return state if stored == state_digest(state) else None


@contextmanager
def _deterministic_convolutions() -> Iterator[None]:
    """Ask cuDNN for deterministic, full float32 kernels within the block."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = (cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32)
    cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32 = True, False, False, False
    try:
        yield
    finally:
        cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32 = before
