"""digits: scikit-learn's bundled 8 × 8 images and a small MLP that trains in seconds; it needs no files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from torch import Tensor, nn

from indexer.recipe import OptionValue
from indexer.recipes.image_recipe import ImageRecipe, bias_free_mlp, penultimate
from indexer.recipes.images import ImageDataset
from indexer.training import TrainingSettings


class Digits(ImageRecipe):
    """1,797 handwritten digits, 80 % for training, and an MLP 64-64-10 without biases."""

    name = "digits"
    height = width = 8
    max_value = 16
    label_names = tuple("0123456789")
    ntk_gain = math.sqrt(2.0)
    option_defaults: ClassVar[Mapping[str, OptionValue]] = {"seed": 0, "epochs": 40}

    def read(self, split: str) -> ImageDataset:  # noqa: D102
        from sklearn.datasets import load_digits  # takes a second to import, and only this recipe needs it

        digits = load_digits()
        # RandomState's stream is frozen by numpy's promise, so that the split is the same for ever.
        order = np.random.RandomState(0).permutation(len(digits.target))
        num_train = int(0.8 * len(order))
        rows = np.sort(order[:num_train] if split == "train" else order[num_train:])
        return ImageDataset(digits.images[rows].astype(np.uint8), digits.target[rows], rows, self.normalise)

    def normalise(self, pixels: Tensor) -> Tensor:
        """Return pixels from 0 to 16 as flat values from −1 to 1."""
        return (pixels.float() / 8 - 1).flatten(1)

    def network(self) -> nn.Module:  # noqa: D102
        return bias_free_mlp([64, 64, 10])

    def training(self) -> TrainingSettings:  # noqa: D102
        return TrainingSettings(epochs=int(self.options["epochs"]), batch_size=32, peak_rate=0.03, weight_decay=1e-3)

    def representation(self, model: nn.Module, inputs: Tensor) -> Tensor:  # noqa: D102
        return penultimate(model, inputs)


RECIPE = Digits
