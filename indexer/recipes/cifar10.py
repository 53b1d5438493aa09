"""cifar10: the ResNet-9 of the paper on 50,000 photographs of 32 × 32 pixels."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from indexer.recipe import OptionValue, RecipeDataError, RecipeOptionError
from indexer.recipes.image_recipe import ImageRecipe
from indexer.recipes.images import ImageDataset
from indexer.training import TrainingSettings

_MEAN = torch.tensor([0.4914, 0.4822, 0.4465]).view(3, 1, 1)
_DEVIATION = torch.tensor([0.2470, 0.2435, 0.2616]).view(3, 1, 1)


class Cifar10(ImageRecipe):
    """ResNet-9 with 6.6 million parameters, trained as in method.md section 8.

    Reads the release's binary version (``data_batch_1.bin`` … ``data_batch_5.bin``, ``test_batch.bin``) or the parts
    ``train-1.npz`` … ``train-5.npz`` and ``test.npz``, which hold the same images in the same order. ``device=auto``
    trains on a GPU where there is one: hours on two CPU cores, a minute or two on a GPU. ``num_train`` keeps only the
    first rows, for trials.
    """

    name = "cifar10"
    height = width = 32
    channels = 3
    label_names = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    ntk_gain = 1.0
    option_defaults: ClassVar[Mapping[str, OptionValue]] = {
        "seed": 0,
        "epochs": 24,
        "num_train": 50_000,
        "augment": True,
        "device": "auto",
    }

    def check_options(self) -> None:  # noqa: D102
        super().check_options()
        if not 1 <= int(self.options["num_train"]) <= 50_000:
            raise RecipeOptionError(f"option 'num_train': {self.options['num_train']} must be from 1 to 50000")
        if self.options["device"] not in ("auto", "cpu", "cuda"):
            raise RecipeOptionError(f"option 'device': {self.options['device']!r} must be auto, cpu or cuda")

    def read(self, split: str) -> ImageDataset:  # noqa: D102
        folder = self.data_folder("cifar10")
        if split == "train":
            limit = int(self.options["num_train"])
            batches = [f"data_batch_{k}.bin" for k in range(1, 6)], [f"train-{k}.npz" for k in range(1, 6)]
        else:
            limit = 10_000
            batches = ["test_batch.bin"], ["test.npz"]
        names = next((kind for kind in batches if (folder / kind[0]).is_file()), None)
        if names is None:
            raise RecipeDataError(
                f"{folder}: neither {batches[0][0]} (the binary release) nor {batches[1][0]} is there"
            )
        parts: list[tuple[NDArray[np.uint8], NDArray[np.uint8]]] = []
        for name in names:
            if sum(len(labels) for _, labels in parts) >= limit:
                break
            parts.append(read_binary_batch(folder / name) if name.endswith(".bin") else read_npz_part(folder / name))
        pixels = np.concatenate([images for images, _ in parts])[:limit]
        labels = np.concatenate([labels for _, labels in parts])[:limit]
        return ImageDataset(pixels, labels, np.arange(len(labels)), self.normalise)

    def normalise(self, pixels: Tensor) -> Tensor:
        """Return pixels shifted and scaled by the training set's mean and deviation of each channel."""
        return (pixels.float() / 255 - _MEAN) / _DEVIATION

    def network(self) -> nn.Module:  # noqa: D102
        return ResNet9()

    def training(self) -> TrainingSettings:  # noqa: D102
        device = str(self.options["device"])
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        epochs = int(self.options["epochs"])
        return TrainingSettings(
            epochs=epochs,
            batch_size=512,
            peak_rate=0.5,
            weight_decay=5e-4,
            peak_epoch=epochs * 5 / 24,
            augment="crop-flip" if self.options["augment"] else "none",
            threads=max(1, torch.get_num_threads()),
            device=device,
        )

    def representation(self, model: nn.Module, inputs: Tensor) -> Tensor:  # noqa: D102
        assert isinstance(model, ResNet9)
        features: Tensor = model.features(inputs)
        return features


class ResNet9(nn.Module):
    """Eight convolutions in two residual stages and one linear layer, 6.6 million parameters.

    The layout is the nine-layer one that CIFAR-10 speed records made usual (64-128-256-512 channels, residual blocks
    after the second and the fourth stage, logits times 0.125), which the paper's parameter count fits; convolutions and
    the linear layer have no biases.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = _convolution(3, 64)
        self.stage1 = _convolution(64, 128, pool=True)
        self.residual1 = nn.Sequential(_convolution(128, 128), _convolution(128, 128))
        self.stage2 = _convolution(128, 256, pool=True)
        self.stage3 = _convolution(256, 512, pool=True)
        self.residual2 = nn.Sequential(_convolution(512, 512), _convolution(512, 512))
        self.pool = nn.MaxPool2d(4)
        self.linear = nn.Linear(512, 10, bias=False)

    def features(self, images: Tensor) -> Tensor:
        """Return the penultimate features ``[b, 512]`` of images ``[b, 3, 32, 32]``."""
        hidden = self.stage1(self.stem(images))
        hidden = hidden + self.residual1(hidden)
        hidden = self.stage3(self.stage2(hidden))
        hidden = hidden + self.residual2(hidden)
        pooled: Tensor = self.pool(hidden)
        return pooled.flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits ``[b, 10]`` of images ``[b, 3, 32, 32]``."""
        logits: Tensor = self.linear(self.features(images))
        return logits * 0.125


def _convolution(channels_in: int, channels_out: int, *, pool: bool = False) -> nn.Sequential:
    modules: list[nn.Module] = [
        nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(),
    ]
    return nn.Sequential(*modules, nn.MaxPool2d(2)) if pool else nn.Sequential(*modules)


def read_binary_batch(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Read a batch of the binary release: per image one label byte, then 1,024 bytes each of red, green and blue.

    Args:
        path: The file.

    Returns:
        Images uint8 ``[n, 3, 32, 32]`` and labels uint8 ``[n]``.

    Raises:
        RecipeDataError: If the file is missing or is not a whole number of such records.
    """
    if not path.is_file():
        raise RecipeDataError(f"{path}: no such file")
    data = np.fromfile(path, dtype=np.uint8)
    if len(data) == 0 or len(data) % 3073:
        raise RecipeDataError(f"{path}: {len(data)} bytes are not a whole number of 3073-byte records")
    records = data.reshape(-1, 3073)
    return _checked(path, records[:, 1:].reshape(-1, 3, 32, 32).copy(), records[:, 0].copy())


def read_npz_part(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Read a part whose pixels are stored as differences modulo 256 (a third smaller, nothing lost).

    ``d`` [n, 3, 32, 32] holds differences down the rows and along the columns, red and blue as differences from green;
    ``y`` [n] holds the labels.

    Args:
        path: The file.

    Returns:
        Images uint8 ``[n, 3, 32, 32]`` and labels uint8 ``[n]``.

    Raises:
        RecipeDataError: If the file is missing or does not hold these arrays.
    """
    if not path.is_file():
        raise RecipeDataError(f"{path}: no such file")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            differences, labels = arrays["d"], arrays["y"]
    except (KeyError, ValueError, OSError, zipfile.BadZipFile) as error:
        raise RecipeDataError(f"{path}: not an .npz with arrays d and y ({error})") from None
    if differences.dtype != np.uint8 or differences.shape[1:] != (3, 32, 32):
        raise RecipeDataError(f"{path}: d is {differences.dtype} {differences.shape}, not uint8 (n, 3, 32, 32)")
    images = np.cumsum(np.cumsum(differences, axis=2, dtype=np.uint8), axis=3, dtype=np.uint8)
    images[:, 0] += images[:, 1]
    images[:, 2] += images[:, 1]
    return _checked(path, images, labels)


def _checked(
    path: Path, images: NDArray[np.uint8], labels: NDArray[np.uint8]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    if labels.shape != images.shape[:1] or (labels > 9).any():
        raise RecipeDataError(f"{path}: {labels.shape} labels up to {labels.max(initial=0)} for {len(images)} images")
    return images, labels


RECIPE = Cifar10
