"""The recipe: how a user's model, training set and examples are read.

It opens the line, and is the only place where user code runs; everything to its right (tangent features, sketches,
index directory) sees the data through it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from reprlib import repr as short_repr
from typing import Any, ClassVar, Literal, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from indexer.parameters import Layers

OptionValue: TypeAlias = str | int | float | bool
Example: TypeAlias = Any
UNLABELLED = -1


class RecipeError(ValueError):
    """A recipe cannot be used as it is written; the message says which part and what to write instead."""


class RecipeNotFoundError(RecipeError, FileNotFoundError):
    """No built-in recipe has this name and no file this path."""

    def __str__(self) -> str:  # FileNotFoundError would print the tuple of its arguments
        return str(self.args[0])


class RecipeOptionError(RecipeError):
    """An option that the recipe does not have, or a value that it cannot take."""


class RecipeCodeError(RecipeError):
    """The recipe's own code raised; the message says where in its file, and what."""


class RecipeDataError(RecipeError):
    """Data files that a recipe reads are missing or are not what they should be."""


class RecipeInputError(RecipeError):
    """Content sent by a client is not an example of this recipe.

    Attributes:
        pointer: JSON pointer from the content's root to the offending value, "" for the content itself.
        allowed: What would have been accepted, in words.
    """

    def __init__(self, message: str, *, pointer: str = "", allowed: str | None = None) -> None:
        super().__init__(message)
        self.pointer = pointer
        self.allowed = allowed


@runtime_checkable
class MapDataset(Protocol):
    """A map-style data set: a length, and an example for each row number."""

    def __len__(self) -> int:
        """Return the number of rows."""
        ...

    def __getitem__(self, row: int, /) -> Example:
        """Return the example of a row."""
        ...


class Recipe(ABC):
    """A model with its training set, and how to read both.

    Only :meth:`model` and :meth:`train_set` have no default. An *example* is whatever ``train_set()[row]`` returns; the
    defaults expect a pair ``(inputs, label)`` of a classification data set and a model that maps a batch of inputs to
    logits ``[b, C]``.

    Attributes:
        name: The built-in name, or the name of the user's file without its ending.
        builtin: Whether the recipe comes with this package; only such a recipe is ever loaded by name.
        options: Every option with the value in force, defaults included; written into the manifest.
        file_digest: blake3 digest of the user's file, None for a built-in recipe.
        label_names: Names of the labels 0, 1, …, or None.
        ntk_gain: Gain of the initialisation for NTK scaling (s = gain/√fan_in); None leaves scaling off by default.
        default_layers: Which layers have Jacobians where the user does not say: ``all`` or ``linear``.
        default_measurement: Built-in measurement where the user does not say and ``measurement`` is None.
        measurement: The user's own scalar ``measurement(outputs, label)``, or None to use a built-in one.
        model_source: Where :meth:`model` last had its weights from: the cache, a training run that filled the cache, or
            the user's own function; for information only.
    """

    name: str
    builtin: bool = False
    options: Mapping[str, OptionValue]
    file_digest: str | None = None
    label_names: Sequence[str] | None = None
    ntk_gain: float | None = None
    default_layers: Layers = "all"
    default_measurement: str = "label_logit"
    measurement: Callable[..., Tensor] | None = None
    model_source: Literal["cache", "training", "recipe"] = "recipe"

    @property
    def measuring_options(self) -> Mapping[str, OptionValue]:
        """Options that have a part in what is measured, with the values in force: rows compare where they are the same.

        Other options, such as one that names a part of the data, may differ between rows of one index.
        """
        return {}

    @abstractmethod
    def model(self) -> nn.Module:
        """Return the trained model in eval mode."""

    @abstractmethod
    def train_set(self) -> MapDataset:
        """Return the training set, in a fixed order and without augmentation."""

    def architecture(self) -> nn.Module:
        """Return a model of the same modules whose weights do not matter: an index's weights are loaded into it."""
        return self.model()

    @property
    def defines_architecture(self) -> bool:
        """Whether :meth:`architecture` is more than :meth:`model`."""
        return type(self).architecture is not Recipe.architecture

    def query_set(self) -> MapDataset | None:
        """Return the examples to browse and to ask about by row, or None."""
        return None

    def collate(self, examples: Sequence[Example]) -> tuple[Any, Tensor]:
        """Stack examples into one batch.

        Args:
            examples: Examples of :meth:`train_set`, :meth:`query_set` or :meth:`parse`.

        Returns:
            The model's inputs with a leading dimension b, and the labels as int64 ``[b]`` (−1: no label).
        """
        inputs = default_collate([example[0] for example in examples])
        return inputs, torch.tensor([self.label(example) for example in examples], dtype=torch.int64)

    def call(self, model: nn.Module, inputs: Any) -> Any:
        """Run the model on collated inputs; a mapping is passed as keyword arguments.

        Args:
            model: The model.
            inputs: What :meth:`collate` gave.

        Returns:
            Whatever the model returns; :meth:`outputs` reads it.
        """
        if isinstance(inputs, Mapping):
            return model(**inputs)
        return model(inputs)

    def outputs(self, model_output: Any) -> Tensor:
        """Find the tensor that is measured in what :meth:`call` returned.

        Args:
            model_output: A tensor, or an object with ``.logits``.

        Returns:
            Logits ``[b, C]`` for classifiers, or one scalar per example ``[b]``.

        Raises:
            RecipeError: If it is neither.
        """
        logits = getattr(model_output, "logits", model_output)
        if not isinstance(logits, Tensor):
            raise RecipeError(
                f"recipe {self.name!r}: the model returned {type(model_output).__name__}, neither a tensor nor an "
                "object with .logits; define outputs(model_output) in the recipe to say which tensor is measured"
            )
        return logits

    def label(self, example: Example) -> int:
        """Return the label of an example.

        Args:
            example: The example; by default a pair whose second part is the label.

        Returns:
            A whole number from 0, or −1 where it has none.

        Raises:
            RecipeError: If what stands in the label's place is no whole number.
        """
        try:
            label = int(example[1])
        except (TypeError, ValueError, RuntimeError) as error:
            raise RecipeError(
                f"recipe {self.name!r}: the label {short_repr(example[1])} is no whole number. Number the classes from "
                "0 and name them in label_names, or define label(example)"
            ) from error
        if label != example[1]:
            raise RecipeError(
                f"recipe {self.name!r}: the target {example[1]!r} is no class; labels are whole numbers. "
                "For regression define label(example) as -1 and measurement(outputs, label), the scalar to explain"
            )
        return label

    def id(self, example: Example, row: int, split: str) -> str:
        """Return the external id of an example; unique within its split (``"train"`` or ``"query"``)."""
        return f"{split}:{row}"

    def metadata(self, example: Example) -> Mapping[str, Any]:
        """Return columns to store with an example (JSON scalars); every example gives the same keys."""
        return {}

    def loss(self, outputs: Tensor, label: Tensor) -> Tensor:
        """Return the training loss of one example from its outputs ``[C]``: cross-entropy unless overridden."""
        return nn.functional.cross_entropy(outputs, label)

    def representation(self, model: nn.Module, inputs: Any) -> Tensor | None:
        """Return penultimate features ``[b, h]`` of collated inputs, or None."""
        return None

    def length(self, example: Example) -> int | None:
        """Return the length of an example's sequence, or None where examples have the same shape.

        Rows of one block are then put together by length, so that :meth:`collate` pads them little.
        """
        return None

    def preview(self, example: Example) -> Any:
        """Return what to show for an example: a PIL image, text, a JSON value, or None."""
        return None

    def parse(self, content: Mapping[str, Any]) -> Example:
        """Make an example from the JSON content of a request: one that :meth:`collate` accepts; its label may be −1.

        Args:
            content: The JSON object.

        Raises:
            RecipeInputError: If the content is not an example; names the offending field.
        """
        raise RecipeInputError(
            f"recipe {self.name!r} does not read examples from requests: it defines no parse(content)",
            allowed="a query by row, train_id or sketch",
        )


class BuiltinRecipe(Recipe):
    """A recipe of this package: options with typed defaults, and a model that it trains itself once.

    Attributes:
        option_defaults: Every option and its default; the default's type is the option's type.
        data_dir: Folder given with ``--data-dir``, or None.
    """

    option_defaults: ClassVar[Mapping[str, OptionValue]] = {}
    builtin = True

    def __init__(self, *, data_dir: str | Path | None = None, options: Mapping[str, OptionValue] | None = None) -> None:
        given = dict(options or {})
        unknown = sorted(set(given) - set(self.option_defaults))
        if unknown:
            raise RecipeOptionError(
                f"recipe {self.name!r} has no option {unknown[0]!r}; it has {', '.join(sorted(self.option_defaults))}"
            )
        self.options = {
            key: convert_option(key, given[key], type(default)) if key in given else default
            for key, default in self.option_defaults.items()
        }
        self.data_dir = None if data_dir is None else Path(data_dir)
        self.check_options()

    def check_options(self) -> None:
        """Refuse option values out of range."""

    def data_folder(self, name: str) -> Path:
        """Return the folder of this recipe's files: ``data_dir/name`` where it exists, else ``data_dir`` itself.

        Args:
            name: Usual name of the data set's folder.

        Returns:
            An existing folder.

        Raises:
            RecipeDataError: If no folder was given or it does not exist.
        """
        if self.data_dir is None:
            raise RecipeDataError(f"recipe {self.name!r} reads files: give their folder with --data-dir DIR")
        folder = self.data_dir / name
        if not folder.is_dir():
            folder = self.data_dir
        if not folder.is_dir():
            raise RecipeDataError(f"--data-dir {self.data_dir}: no such folder")
        return folder


def convert_option(key: str, value: OptionValue, kind: type) -> OptionValue:
    """Turn the text of ``--option key=value`` (or a manifest's JSON value) into the option's type.

    Args:
        key: Name of the option, for the message.
        value: Text, or a value of the right type already.
        kind: bool, int, float or str.

    Returns:
        The value as ``kind``.

    Raises:
        RecipeOptionError: If the text does not read as such a value.
    """
    refusal = RecipeOptionError(f"option {key!r}: {value!r} is not {_KINDS.get(kind, kind.__name__)}")
    if kind is bool:
        named: dict[str, bool] = {"true": True, "false": False}
        if isinstance(value, bool):
            return value
        if str(value).lower() not in named:
            raise refusal
        return named[str(value).lower()]
    if isinstance(value, bool):
        raise refusal
    try:
        if kind is int:
            if isinstance(value, float) and not value.is_integer():
                raise refusal
            return int(value)
        if kind is float:
            return float(value)
    except ValueError:
        raise refusal from None
    return str(value)


_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
