"""The image sets of the experiments, read by the project's own recipes."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from experiments.frozen import Images
from indexer.recipes.cifar10 import Cifar10
from indexer.recipes.digits import Digits
from indexer.recipes.fashion_mnist import FashionMnist
from indexer.recipes.image_recipe import ImageRecipe

LABELS = {
    "digits": Digits.label_names,
    "fashion-mnist": FashionMnist.label_names,
    "cifar10": Cifar10.label_names,
}
_STATISTICS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "digits": ((0.5,), (0.5,)),
    "fashion-mnist": ((0.2860,), (0.3530,)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
}


def read_images(name: str, data_dir: Path | None, *, train_fraction: float = 1.0) -> tuple[Images, Images]:
    """Read the training and test images of a data set.

    Args:
        name: ``digits`` (needs no files), ``fashion-mnist`` or ``cifar10``.
        data_dir: The folder with the data sets.
        train_fraction: Share of Fashion-MNIST's training images, chosen as its recipe chooses.

    Returns:
        Training images and test images.
    """
    recipe: ImageRecipe
    if name == "fashion-mnist":
        recipe = FashionMnist(data_dir=data_dir, options={"train_fraction": train_fraction})
    else:
        recipe = Digits() if name == "digits" else Cifar10(data_dir=data_dir)
    mean, deviation = _STATISTICS[name]

    def images(split: str) -> Images:
        read = recipe.read(split)
        labels = torch.from_numpy(read.labels.astype("int64"))
        return Images(torch.from_numpy(read.pixels), labels, recipe.max_value, mean, deviation)

    return images("train"), images("query")


def of_classes(images: Images, classes: Sequence[int]) -> Images:
    """Keep the images of some classes, in their order, and number the classes anew from 0."""
    numbers = {label: number for number, label in enumerate(classes)}
    rows = torch.tensor([row for row, label in enumerate(images.labels.tolist()) if label in numbers])
    kept = images.take(rows)
    return replace(kept, labels=torch.tensor([numbers[int(label)] for label in kept.labels]))


def shuffled(count: int, seed: int) -> torch.Tensor:
    """Return the numbers below ``count`` in an order that depends on the seed only, int64."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))
