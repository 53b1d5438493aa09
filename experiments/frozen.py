"""A trained network with its training and query images in one file: where the line starts in every experiment.

An experiment changes the training set (it poisons it, halves it, keeps two classes), trains, and freezes the result;
``recipes/frozen.py`` lets the project's own index builder read the file like any user's model.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from experiments.journal import DamagedFileError
from experiments.networks import initial_network, is_flat


class Examples(Protocol):
    """What a network learns from and is asked about: images or vectors, with their labels, int64 ``[n]``."""

    @property
    def labels(self) -> Tensor:
        """Labels, int64 ``[n]``."""

    def __len__(self) -> int:
        """Return n."""

    def inputs(self, flat: bool) -> Tensor:
        """Return what the network reads, float32 ``[n, …]``."""

    def take(self, rows: Tensor) -> Self:
        """Return some of the examples, in this order."""


@dataclass(frozen=True)
class Images:
    """Images as integers with their labels; ``inputs`` is what a network reads.

    Attributes:
        pixels: uint8 ``[n, h, w]`` or ``[n, 3, h, w]``.
        labels: int64 ``[n]``.
        white: Pixel value of white.
        mean: Mean of each channel, 1 being white.
        deviation: Standard deviation of each channel.
    """

    pixels: Tensor
    labels: Tensor
    white: int
    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def inputs(self, flat: bool) -> Tensor:
        """Return the normalised images, float32 ``[n, c, h, w]`` or ``[n, c·h·w]``."""
        pixels = self.pixels if self.pixels.ndim == 4 else self.pixels.unsqueeze(1)
        shape = (1, -1, 1, 1)
        scaled = (pixels.float() / self.white - torch.tensor(self.mean).view(shape)) / torch.tensor(
            self.deviation
        ).view(shape)
        return scaled.flatten(1) if flat else scaled

    def take(self, rows: Tensor) -> "Images":
        """Return some of the images, in this order."""
        return Images(self.pixels[rows], self.labels[rows], self.white, self.mean, self.deviation)


@dataclass(frozen=True)
class Vectors:
    """Vectors with their labels, such as what a frozen encoder made of texts.

    Attributes:
        vectors: float32 ``[n, k]``, as a network reads them.
        labels: int64 ``[n]``.
    """

    vectors: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def inputs(self, flat: bool) -> Tensor:
        """Return the vectors; a network that wants images is refused."""
        if not flat:
            raise ValueError("vectors are no images: the network must be an 'mlp WIDTH…'")
        return self.vectors

    def take(self, rows: Tensor) -> "Vectors":
        """Return some of the vectors, in this order."""
        return Vectors(self.vectors[rows], self.labels[rows])


@dataclass(frozen=True)
class Frozen:
    """What a recipe needs.

    Attributes:
        network: Description of the network (``networks.initial_network``).
        weights: Its trained weights.
        train: The training set, in the order of the index's rows.
        queries: The examples to ask about, of the same kind.
        metadata: Integer columns of the training rows, int64 ``[n]`` each, such as whether a row was poisoned.
        test_accuracy: Share of the test set that the network gets right, where it was counted.
    """

    network: str
    weights: Mapping[str, Tensor]
    train: Examples
    queries: Examples
    metadata: Mapping[str, Tensor] = field(default_factory=dict)
    test_accuracy: float | None = None

    def model(self) -> nn.Module:
        """Return the trained network in eval mode."""
        model = initial_network(self.network, seed=0)
        model.load_state_dict(dict(self.weights))
        return model.eval()

    @torch.no_grad()
    def logits(self, images: Examples) -> Tensor:
        """Return the network's outputs ``[n, C]``."""
        model, flat = self.model(), is_flat(self.network)
        starts = range(0, len(images), 1000)
        return torch.cat([model(images.take(torch.arange(s, min(s + 1000, len(images)))).inputs(flat)) for s in starts])


def save_frozen(frozen: Frozen, path: Path) -> None:
    """Write everything to one safetensors file."""
    tensors = {f"weights.{name}": tensor.detach().contiguous().clone() for name, tensor in frozen.weights.items()}
    described: dict[str, Any] = {"network": frozen.network, "test_accuracy": frozen.test_accuracy}
    for split, examples in (("train", frozen.train), ("queries", frozen.queries)):
        tensors[f"{split}.labels"] = examples.labels.contiguous()
        if isinstance(examples, Images):
            tensors[f"{split}.pixels"] = examples.pixels.contiguous()
            described |= {"white": examples.white, "mean": examples.mean, "deviation": examples.deviation}
        else:
            tensors[f"{split}.vectors"] = examples.inputs(flat=True).contiguous()
    tensors |= {f"metadata.{name}": column.contiguous() for name, column in frozen.metadata.items()}
    temporary = path.with_suffix(".tmp")
    save_file(tensors, temporary, metadata={"frozen": json.dumps(described)})
    temporary.rename(path)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise DamagedFileError(
            f"{path} is cut off or no frozen network ({error}); remove it, and the network is trained again"
        ) from error


def _described(file: Any) -> dict[str, Any]:
    described: dict[str, Any] = json.loads(file.metadata()["frozen"])
    return described


def frozen_network(path: Path) -> str:
    """Return the network's description without reading the rest.

    Args:
        path: The file.

    Raises:
        DamagedFileError: If it is cut off, or no frozen network.
    """
    with _opened(path) as file:
        return str(_described(file)["network"])


def load_frozen(path: Path) -> Frozen:
    """Read what :func:`save_frozen` wrote.

    Args:
        path: The file.

    Raises:
        DamagedFileError: If it is cut off, or no frozen network.
    """
    with _opened(path) as file:
        described = _described(file)
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 — the file is no mapping

    def named(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}

    def examples(split: str) -> Examples:
        parts = named(f"{split}.")
        if "vectors" in parts:
            return Vectors(parts["vectors"], parts["labels"])
        statistics = (int(described["white"]), tuple(described["mean"]), tuple(described["deviation"]))
        return Images(parts["pixels"], parts["labels"], *statistics)

    return Frozen(
        described["network"],
        named("weights."),
        examples("train"),
        examples("queries"),
        named("metadata."),
        described.get("test_accuracy"),
    )
