"""Some rows of a recipe's training set as a recipe of their own: what is built to join a published index."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from indexer.recipe import Example, MapDataset, OptionValue, Recipe


class _Rows:
    """Consecutive rows of a data set.

    Args:
        dataset: The data set.
        first: The first row.
        count: How many.
    """

    def __init__(self, dataset: MapDataset, first: int, count: int) -> None:
        self._dataset = dataset
        self._first = first
        self._count = count

    def __len__(self) -> int:
        """Return the number of rows."""
        return self._count

    def __getitem__(self, row: int, /) -> Example:
        """Return the example of a row.

        Args:
            row: The row, from 0.

        Returns:
            The example.

        Raises:
            IndexError: If there is no such row.
        """
        if not 0 <= row < self._count:
            raise IndexError(row)
        return self._dataset[self._first + row]


@dataclass(frozen=True)
class ChosenRows:
    """Which rows of a training set, and as what.

    Attributes:
        first_row: The first row.
        rows: How many.
        id_prefix: What every id begins with.
        ntk_gain: Gain of the NTK scaling they are sketched with, None where it is off.
    """

    first_row: int
    rows: int
    id_prefix: str
    ntk_gain: float | None = None


class RowsOfRecipe(Recipe):
    """Rows ``first_row`` to ``first_row + rows − 1`` of a recipe, with a model that is given and no query set.

    Ids are those that the recipe gives the rows of its data set, behind a prefix.

    Args:
        recipe: The recipe.
        dataset: Its training set.
        model: The model to sketch with; None where only the data are read, or the model comes from elsewhere.
        chosen: The rows.

    Attributes:
        chosen: The rows.
    """

    def __init__(self, recipe: Recipe, dataset: MapDataset, model: nn.Module | None, chosen: ChosenRows) -> None:
        self.name, self.builtin, self.options = recipe.name, recipe.builtin, recipe.options
        self.file_digest, self.label_names = recipe.file_digest, recipe.label_names
        self.ntk_gain, self.measurement = chosen.ntk_gain, recipe.measurement
        self.chosen = chosen
        self._recipe = recipe
        self._rows = _Rows(dataset, chosen.first_row, chosen.rows)
        self._model = model

    @property
    def measuring_options(self) -> Mapping[str, OptionValue]:  # noqa: D102
        return self._recipe.measuring_options

    def model(self) -> nn.Module:  # noqa: D102 — the contract is documented once, in Recipe
        assert self._model is not None, "made to read data only"
        return self._model

    def architecture(self) -> nn.Module:  # noqa: D102
        return self._recipe.architecture()

    @property
    def defines_architecture(self) -> bool:
        """Whether there is one to compare with: the model here is made of it already."""
        return False

    def train_set(self) -> MapDataset:  # noqa: D102
        return self._rows

    def id(self, example: Example, row: int, split: str) -> str:  # noqa: D102
        return self.chosen.id_prefix + self._recipe.id(example, self.chosen.first_row + row, split)

    def collate(self, examples: Sequence[Example]) -> tuple[Any, Tensor]:  # noqa: D102
        return self._recipe.collate(examples)

    def call(self, model: nn.Module, inputs: Any) -> Any:  # noqa: D102
        return self._recipe.call(model, inputs)

    def outputs(self, model_output: Any) -> Tensor:  # noqa: D102
        return self._recipe.outputs(model_output)

    def length(self, example: Example) -> int | None:  # noqa: D102
        return self._recipe.length(example)

    def label(self, example: Example) -> int:  # noqa: D102
        return self._recipe.label(example)

    def metadata(self, example: Example) -> Mapping[str, Any]:  # noqa: D102
        return self._recipe.metadata(example)

    def loss(self, outputs: Tensor, label: Tensor) -> Tensor:  # noqa: D102
        return self._recipe.loss(outputs, label)

    def representation(self, model: nn.Module, inputs: Any) -> Tensor | None:  # noqa: D102
        return self._recipe.representation(model, inputs)

    def preview(self, example: Example) -> Any:  # noqa: D102
        return self._recipe.preview(example)

    def parse(self, content: Mapping[str, Any]) -> Example:  # noqa: D102
        return self._recipe.parse(content)
