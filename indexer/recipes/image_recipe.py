"""The part that the three built-in image recipes have in common: data in memory, a model trained once and cached."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any, ClassVar

import torch
from blake3 import blake3
from torch import Tensor, nn

from indexer.recipe import UNLABELLED, BuiltinRecipe, RecipeOptionError
from indexer.recipes.images import ImageDataset, ImageExample, pixels_from_content, preview_image, unlabelled
from indexer.training import TrainingSettings, cached_weights, seeded, settings_for_key, train_classifier


class ImageRecipe(BuiltinRecipe):
    """A classifier of small images.

    Attributes:
        height: Height of an image in pixels.
        width: Width of an image in pixels.
        channels: 1 (grey) or 3 (RGB).
        max_value: Pixel value of white.
    """

    height: ClassVar[int]
    width: ClassVar[int]
    channels: ClassVar[int] = 1
    max_value: ClassVar[int] = 255

    @abstractmethod
    def read(self, split: str) -> ImageDataset:
        """Read the ``"train"`` or ``"query"`` split."""

    @abstractmethod
    def normalise(self, pixels: Tensor) -> Tensor:
        """Turn uint8 pixels ``[b, …]`` into the model's float32 inputs."""

    @abstractmethod
    def network(self) -> nn.Module:
        """Return the network with random weights drawn from torch's generator."""

    @abstractmethod
    def training(self) -> TrainingSettings:
        """Return how the network is trained."""

    @cached_property
    def _train(self) -> ImageDataset:
        return self.read("train")

    @cached_property
    def _query(self) -> ImageDataset:
        return self.read("query")

    def train_set(self) -> ImageDataset:  # noqa: D102
        return self._train

    def query_set(self) -> ImageDataset:  # noqa: D102
        return self._query

    def architecture(self) -> nn.Module:  # noqa: D102
        with seeded(int(self.options["seed"])):
            return self.network().eval()

    def model(self) -> nn.Module:  # noqa: D102
        inputs, labels = self._train.tensors()
        settings, seed = self.training(), int(self.options["seed"])
        data = blake3(inputs.numpy().tobytes()).update(labels.numpy().tobytes()).hexdigest()

        self.model_source = "cache"

        def train() -> nn.Module:
            self.model_source = "training"
            return train_classifier(self.architecture(), inputs, labels, settings, seed=seed, name=self.name)

        determined_by = {"recipe": self.name, "seed": seed, "data": data, **settings_for_key(settings)}
        return cached_weights(self.name, determined_by, train, self.architecture())

    def check_options(self) -> None:  # noqa: D102
        epochs, seed = self.options["epochs"], self.options["seed"]
        if int(epochs) < 1:
            raise RecipeOptionError(f"option 'epochs': {epochs} must be at least 1")
        if not 0 <= int(seed) < 2**32:
            raise RecipeOptionError(f"option 'seed': {seed} must be from 0 to 2**32 − 1")

    def collate(self, examples: Sequence[ImageExample]) -> tuple[Tensor, Tensor]:  # noqa: D102
        inputs = torch.stack([example.inputs for example in examples])
        return inputs, torch.tensor([example.label for example in examples], dtype=torch.int64)

    def label(self, example: ImageExample) -> int:  # noqa: D102
        return example.label

    def metadata(self, example: ImageExample) -> Mapping[str, Any]:
        """Return the example's position in the data set as released, and its label's name."""
        named = None
        if example.label != UNLABELLED and self.label_names is not None:
            named = self.label_names[example.label]
        return {"release_row": example.release_row, "label_name": named}

    def preview(self, example: ImageExample) -> Any:  # noqa: D102
        return preview_image(example.pixels, max_value=self.max_value)

    def parse(self, content: Mapping[str, Any]) -> ImageExample:
        """Read ``{"image": base64 of an image file}`` or ``{"pixels": nested lists}``.

        Args:
            content: The JSON object.

        Returns:
            The image, with label −1.
        """
        pixels = pixels_from_content(
            content, height=self.height, width=self.width, channels=self.channels, max_value=self.max_value
        )
        return unlabelled(pixels, self.normalise)


def bias_free_mlp(widths: Sequence[int]) -> nn.Sequential:
    """Return a ReLU network on flat inputs without biases, Kaiming-normal weights (s = √2/√fan_in)."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(widths):
        linear = nn.Linear(fan_in, fan_out, bias=False)
        nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def penultimate(model: nn.Module, inputs: Tensor) -> Tensor:
    """Return what the last module of a sequential network reads, flat ``[b, h]``."""
    assert isinstance(model, nn.Sequential)
    features: Tensor = model[:-1](inputs)
    return features.flatten(1)
