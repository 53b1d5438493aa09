"""A user's recipe over one file of ``experiments.frozen``: a trained network, its training examples and its queries.

``indexer build experiments/recipes/frozen.py --option file=PATH`` builds by hand what an experiment builds.
"""

import functools
import math
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from experiments.frozen import Examples, Frozen, Images, load_frozen
from experiments.networks import is_flat
from indexer.recipes.images import preview_image

ntk_gain = math.sqrt(2.0)


class _Example(NamedTuple):
    inputs: Tensor
    label: int
    pixels: Tensor | None
    white: int
    metadata: dict[str, int]


class _Rows:
    """Examples as a map-style data set."""

    def __init__(self, examples: Examples, flat: bool, metadata: dict[str, Tensor]) -> None:
        self._examples, self._inputs, self._metadata = examples, examples.inputs(flat), metadata

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, row: int) -> _Example:
        columns = {name: int(column[row]) for name, column in self._metadata.items()}
        examples = self._examples
        pixels, white = (examples.pixels[row], examples.white) if isinstance(examples, Images) else (None, 0)
        return _Example(self._inputs[row], int(examples.labels[row]), pixels, white, columns)


@functools.lru_cache(maxsize=1)
def _frozen(path: Path, modified: int) -> Frozen:
    return load_frozen(path)


def _read(file: str) -> Frozen:
    path = Path(file)
    return _frozen(path, path.stat().st_mtime_ns)


def model(file: str) -> nn.Module:
    """Return the trained network."""
    return _read(file).model()


def train_set(file: str) -> _Rows:
    """Return the training examples."""
    frozen = _read(file)
    return _Rows(frozen.train, is_flat(frozen.network), dict(frozen.metadata))


def query_set(file: str) -> _Rows:
    """Return the examples to ask about."""
    frozen = _read(file)
    return _Rows(frozen.queries, is_flat(frozen.network), {})


def metadata(example: _Example) -> dict[str, int]:
    """Return the columns an experiment gave its rows."""
    return example.metadata


def representation(model: nn.Module, inputs: Tensor) -> Tensor:
    """Return what the last layer reads: penultimate features ``[b, h]``."""
    if isinstance(model, nn.Sequential):
        return model[:-1](inputs).flatten(1)
    features: Any = model.features
    read: Tensor = features(inputs)
    return read


def preview(example: _Example) -> Any:
    """Draw the image; a vector has none."""
    if example.pixels is None:
        return None
    return preview_image(example.pixels.numpy(), max_value=example.white)
