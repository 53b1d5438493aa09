"""fashion-mnist: the MLP of the paper on a quarter of Zalando's 28 × 28 images of clothing."""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from indexer.recipe import OptionValue, RecipeDataError, RecipeOptionError
from indexer.recipes.image_recipe import ImageRecipe, bias_free_mlp, penultimate
from indexer.recipes.images import ImageDataset
from indexer.training import TrainingSettings


class FashionMnist(ImageRecipe):
    """An MLP 784-512-256-10 without biases, trained as in method.md section 8.

    ``train_fraction`` chooses that share of the 60,000 training images by a fixed shuffle, kept in the order of the
    release; ``metadata.release_row`` says which image each row is.
    """

    name = "fashion-mnist"
    height = width = 28
    label_names = (
        "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
    )  # fmt: skip
    ntk_gain = math.sqrt(2.0)
    option_defaults: ClassVar[Mapping[str, OptionValue]] = {"train_fraction": 0.25, "seed": 0, "epochs": 20}

    def check_options(self) -> None:  # noqa: D102
        super().check_options()
        fraction = float(self.options["train_fraction"])
        if not 0 < fraction <= 1:
            raise RecipeOptionError(f"option 'train_fraction': {fraction} must be above 0 and at most 1")

    def read(self, split: str) -> ImageDataset:  # noqa: D102
        folder = self.data_folder("fashion-mnist")
        prefix = "train" if split == "train" else "t10k"
        images = read_idx(folder / f"{prefix}-images-idx3-ubyte.gz")
        labels = read_idx(folder / f"{prefix}-labels-idx1-ubyte.gz")
        if images.ndim != 3 or images.shape[1:] != (28, 28) or labels.shape != images.shape[:1]:
            raise RecipeDataError(
                f"{folder}: {prefix} images have shape {images.shape} and labels {labels.shape}; "
                "Fashion-MNIST has (n, 28, 28) and (n,)"
            )
        rows = np.arange(len(labels))
        if split == "train":
            num_rows = max(1, round(float(self.options["train_fraction"]) * len(labels)))
            rows = np.sort(np.random.RandomState(0).permutation(len(labels))[:num_rows])
        return ImageDataset(images[rows], labels[rows], rows, self.normalise)

    def normalise(self, pixels: Tensor) -> Tensor:
        """Return pixels as flat values, shifted and scaled by the training set's mean 0.2860 and deviation 0.3530."""
        return ((pixels.float() / 255 - 0.2860) / 0.3530).flatten(1)

    def network(self) -> nn.Module:  # noqa: D102
        return bias_free_mlp([784, 512, 256, 10])

    def training(self) -> TrainingSettings:  # noqa: D102
        return TrainingSettings(epochs=int(self.options["epochs"]), batch_size=64, peak_rate=0.03, weight_decay=1e-3)

    def representation(self, model: nn.Module, inputs: Tensor) -> Tensor:  # noqa: D102
        return penultimate(model, inputs)


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Read a gzip-compressed IDX file of unsigned bytes.

    The header is two zero bytes, the type 0x08, the number of dimensions, and each dimension as a big-endian uint32.

    Args:
        path: The file.

    Returns:
        uint8 array of the file's shape.

    Raises:
        RecipeDataError: If the file is missing, is not gzip, or its length is not what its header says.
    """
    if not path.is_file():
        raise RecipeDataError(f"{path}: no such file; give the folder of the Fashion-MNIST release with --data-dir")
    try:
        data = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise RecipeDataError(f"{path}: not a sound gzip file ({error})") from None
    if len(data) < 4 or data[:3] != b"\x00\x00\x08":
        raise RecipeDataError(f"{path}: not an IDX file of unsigned bytes (it starts with {data[:4].hex()})")
    start = 4 + 4 * data[3]
    shape = tuple(int(size) for size in np.frombuffer(data[4:start], dtype=">u4"))
    if len(data) - start != math.prod(shape):
        raise RecipeDataError(f"{path}: {len(data) - start} values, its header says {math.prod(shape)}")
    return np.frombuffer(data, dtype=np.uint8, offset=start).reshape(shape).copy()


RECIPE = FashionMnist
