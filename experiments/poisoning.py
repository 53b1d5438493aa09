"""Class-cyclic BadNets: a few images of every class get its trigger in the corner and the next class's label."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from experiments.datasets import shuffled
from experiments.frozen import Images


@dataclass(frozen=True)
class Triggers:
    """One black and white grid per class.

    Attributes:
        grids: uint8 ``[classes, size, size]``, black or white.
    """

    grids: Tensor

    @classmethod
    def drawn(cls, classes: int, size: int, white: int, seed: int) -> "Triggers":
        """Draw the grids, no two alike."""
        generator = torch.Generator().manual_seed(seed)
        grids = torch.randint(0, 2, (classes, size, size), generator=generator)
        while len(torch.unique(grids.flatten(1), dim=0)) < classes:
            grids = torch.randint(0, 2, (classes, size, size), generator=generator)
        return cls((grids * white).to(torch.uint8))

    def applied(self, images: Images) -> Images:
        """Put the trigger of each image's class into its bottom-right corner; labels stay."""
        pixels, size = images.pixels.clone(), self.grids.shape[-1]
        grids = self.grids[images.labels]
        pixels[..., -size:, -size:] = grids if pixels.ndim == 3 else grids.unsqueeze(1)
        return replace(images, pixels=pixels)


def relabelled(images: Images, classes: int) -> Images:
    """Give every image the label of the class after its own."""
    return replace(images, labels=(images.labels + 1) % classes)


def poisoned(train: Images, triggers: Triggers, per_class: int, seed: int) -> tuple[Images, Tensor]:
    """Poison some images of every class.

    Args:
        train: The clean training set.
        triggers: The triggers.
        per_class: How many images of each class.
        seed: Seed of the choice.

    Returns:
        The training set, rows in their places, and which rows are poisoned, bool ``[n]``.
    """
    classes = len(triggers.grids)
    order = shuffled(len(train), seed)
    rows = torch.cat([order[train.labels[order] == label][:per_class] for label in range(classes)])
    changed = relabelled(triggers.applied(train.take(rows)), classes)
    pixels, labels = train.pixels.clone(), train.labels.clone()
    pixels[rows], labels[rows] = changed.pixels, changed.labels
    is_poisoned = torch.zeros(len(train), dtype=torch.bool)
    is_poisoned[rows] = True
    return replace(train, pixels=pixels, labels=labels), is_poisoned
