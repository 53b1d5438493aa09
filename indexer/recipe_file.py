"""Loads a recipe by built-in name or from the user's file, whose module-level functions become the recipe's parts."""

from __future__ import annotations

import difflib
import functools
import importlib
import importlib.util
import inspect
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, get_args, get_type_hints

from blake3 import blake3
from torch import Tensor, nn

from indexer.out_of_memory import is_out_of_memory
from indexer.recipe import (
    Example,
    MapDataset,
    OptionValue,
    Recipe,
    RecipeCodeError,
    RecipeError,
    RecipeNotFoundError,
    RecipeOptionError,
    convert_option,
)
from indexer.recipe_failure import MODULE_PREFIX, said

log = logging.getLogger("indexer.recipe")

BUILTIN_RECIPES: Mapping[str, str] = {
    "digits": "indexer.recipes.digits",
    "fashion-mnist": "indexer.recipes.fashion_mnist",
    "cifar10": "indexer.recipes.cifar10",
    "text-classification": "indexer.recipes.text_classification",
    "causal-lm": "indexer.recipes.causal_lm",
}

# What a user's file may define, and the arguments each part is called with.
PARTS: Mapping[str, tuple[str, ...]] = {
    "model": (),
    "architecture": (),
    "train_set": (),
    "query_set": (),
    "collate": ("examples",),
    "call": ("model", "inputs"),
    "outputs": ("model_output",),
    "label": ("example",),
    "id": ("example", "row", "split"),
    "metadata": ("example",),
    "loss": ("outputs", "label"),
    "representation": ("model", "inputs"),
    "length": ("example",),
    "preview": ("example",),
    "parse": ("content",),
    "measurement": ("outputs", "label"),
}
CONSTANTS = ("label_names", "ntk_gain")
#: Parts whose options decide what is measured. Those of model() do not: what it is trained on may, and its weights, of
#: which an index has a digest, are what counts of it.
MEASURING = ("architecture", "collate", "call", "outputs", "measurement")
REQUIRED: Mapping[str, str] = {
    "model": "the trained torch.nn.Module, in eval mode",
    "train_set": "a sequence of pairs (inputs, label), labels whole numbers from 0",
}


def load_recipe(
    name_or_path: str | Path,
    *,
    data_dir: str | Path | None = None,
    options: Mapping[str, OptionValue] | None = None,
) -> Recipe:
    """Load a built-in recipe by name, or a user's recipe from its Python file.

    A user's file runs: name only files that you trust.

    Args:
        name_or_path: A built-in name, or a path that ends in ``.py``.
        data_dir: Folder of the data files; passed to every part of a user's recipe that has an argument ``data_dir``.
        options: Values of the recipe's options, as text or already typed.

    Returns:
        The recipe. Neither model nor data are loaded yet.

    Raises:
        RecipeNotFoundError: If there is neither such a built-in recipe nor such a file.
        RecipeCodeError: If the file cannot be imported.
        RecipeError: If it lacks a required part, or misspells one.
        RecipeOptionError: If the recipe does not have one of the options.
    """
    if str(name_or_path) in BUILTIN_RECIPES:
        module = importlib.import_module(BUILTIN_RECIPES[str(name_or_path)])
        recipe = module.RECIPE(data_dir=data_dir, options=options)
        assert isinstance(recipe, Recipe)
        return recipe
    path = Path(name_or_path)
    if not path.is_file():
        close = difflib.get_close_matches(str(name_or_path), BUILTIN_RECIPES, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise RecipeNotFoundError(
            f"recipe {str(name_or_path)!r} is neither a built-in recipe ({', '.join(sorted(BUILTIN_RECIPES))}) "
            f"nor a Python file that exists{hint}"
        )
    return FileRecipe(path, data_dir=data_dir, options=options)


class FileRecipe(Recipe):
    """A recipe whose parts are the module-level functions of a user's file; what it lacks, the defaults supply.

    Options are keyword arguments of those functions beyond the ones of the contract: a function
    ``train_set(data_dir, fraction=0.5)`` makes ``--option fraction=0.1`` valid.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        data_dir: str | Path | None = None,
        options: Mapping[str, OptionValue] | None = None,
    ) -> None:
        self.path = Path(path).resolve()
        self.name = self.path.stem
        source = self.path.read_bytes()
        self.file_digest = blake3(source).hexdigest()
        module = _import_file(self.path, self.file_digest)
        _refuse_misspelt(module, self.path)
        functions = _functions(module, self.path)
        settings = _settings(functions, self.path)
        self.options = _resolve(settings, dict(options or {}), self.name)
        measuring = {
            name for part in MEASURING if part in functions for name in _extra_parameters(part, functions[part])
        }
        self._measuring = {name: value for name, value in self.options.items() if name in measuring}
        self._parts: dict[str, Callable[..., Any]] = {}
        self._without_data = set[str]()  # parts that take data_dir and have none
        for part, function in functions.items():
            accepted = _extra_parameters(part, function)
            given: dict[str, Any] = {key: value for key, value in self.options.items() if key in accepted}
            if data_dir is not None and "data_dir" in accepted:
                given["data_dir"] = Path(data_dir)
            elif "data_dir" in accepted and accepted["data_dir"].default in (inspect.Parameter.empty, None):
                given["data_dir"] = None
                self._without_data.add(part)
            self._parts[part] = functools.partial(function, **given)
        if data_dir is not None and not any("data_dir" in _extra_parameters(*part) for part in functions.items()):
            log.warning("%s: no part has an argument data_dir, so --data-dir says nothing to it", self.path.name)
        names = getattr(module, "label_names", None)
        self.label_names = None if names is None else [str(name) for name in names]
        gain = getattr(module, "ntk_gain", None)
        self.ntk_gain = None if gain is None else float(gain)
        self.measurement = self._parts.get("measurement")

    @property
    def measuring_options(self) -> Mapping[str, OptionValue]:  # noqa: D102
        return self._measuring

    @property
    def model_lacks_data(self) -> bool:
        """Whether the function that gives the architecture takes ``data_dir`` and has none."""
        return ("architecture" if "architecture" in self._parts else "model") in self._without_data

    def model(self) -> nn.Module:  # noqa: D102 — the contract is documented once, in Recipe
        model = self._load("model")
        if not isinstance(model, nn.Module):
            raise RecipeError(f"{self.path.name}: model() returned {type(model).__name__}, not a torch.nn.Module")
        _refuse_training_mode(model, self.path)
        return model

    def train_set(self) -> MapDataset:  # noqa: D102
        return self._dataset("train_set")

    def architecture(self) -> nn.Module:  # noqa: D102
        if "architecture" not in self._parts:
            return self.model()
        model = self._load("architecture")
        if not isinstance(model, nn.Module):
            raise RecipeError(f"{self.path.name}: architecture() returned {type(model).__name__}, not a module")
        return model

    @property
    def defines_architecture(self) -> bool:  # noqa: D102
        return "architecture" in self._parts

    def query_set(self) -> MapDataset | None:  # noqa: D102
        return self._dataset("query_set") if "query_set" in self._parts else None

    def _load(self, part: str) -> Any:
        # Calls a part that gives a model or data, where the user's code may raise anything.
        try:
            return self._parts[part]()
        except RecipeError:
            raise
        except Exception as error:
            if is_out_of_memory(error):
                raise
            cure = f". {part}() takes data_dir and none was given: give --data-dir DIR"
            raise RecipeCodeError(
                f"{self.path.name}: {part}() raised {said(error)}{cure if part in self._without_data else ''}"
            ) from error

    def _dataset(self, part: str) -> MapDataset:
        dataset = self._load(part)
        if not isinstance(dataset, MapDataset):
            raise RecipeError(
                f"{self.path.name}: {part}() returned {type(dataset).__name__}; it must be map-style, with __len__ and "
                "__getitem__ (a list of examples is one)"
            )
        return dataset

    def collate(self, examples: Sequence[Example]) -> tuple[Any, Tensor]:  # noqa: D102
        if "collate" not in self._parts:
            return super().collate(examples)
        batch = self._parts["collate"](examples)
        if not (isinstance(batch, tuple | list) and len(batch) == 2 and isinstance(batch[1], Tensor)):
            raise RecipeError(
                f"{self.path.name}: collate(examples) must return a pair (inputs, labels), labels an int64 tensor"
            )
        return batch[0], batch[1]

    def call(self, model: nn.Module, inputs: Any) -> Any:  # noqa: D102
        return self._parts["call"](model, inputs) if "call" in self._parts else super().call(model, inputs)

    def outputs(self, model_output: Any) -> Tensor:  # noqa: D102
        if "outputs" not in self._parts:
            return super().outputs(model_output)
        tensor = self._parts["outputs"](model_output)
        if not isinstance(tensor, Tensor):
            raise RecipeError(f"{self.path.name}: outputs(model_output) returned {type(tensor).__name__}, not a tensor")
        return tensor

    def label(self, example: Example) -> int:  # noqa: D102
        if "label" in self._parts:
            value = self._parts["label"](example)
            label = int(value)
            if float(value) != label:
                raise RecipeError(
                    f"{self.path.name}: label(example) returned {value!r}, which is no class; labels are whole numbers "
                    "from 0, or -1 for none. For regression return -1 and define measurement(outputs, label)"
                )
            return label
        if self.measurement is not None:  # the targets of a regression are not labels
            return -1
        return super().label(example)

    def id(self, example: Example, row: int, split: str) -> str:  # noqa: D102
        return str(self._parts["id"](example, row, split)) if "id" in self._parts else super().id(example, row, split)

    def metadata(self, example: Example) -> Mapping[str, Any]:  # noqa: D102
        return dict(self._parts["metadata"](example)) if "metadata" in self._parts else super().metadata(example)

    def loss(self, outputs: Tensor, label: Tensor) -> Tensor:  # noqa: D102
        if "loss" not in self._parts:
            return super().loss(outputs, label)
        value = self._parts["loss"](outputs, label)
        assert isinstance(value, Tensor)
        return value

    def representation(self, model: nn.Module, inputs: Any) -> Tensor | None:  # noqa: D102
        if "representation" not in self._parts:
            return None
        features = self._parts["representation"](model, inputs)
        if features is not None and not isinstance(features, Tensor):
            raise RecipeError(f"{self.path.name}: representation() returned {type(features).__name__}, not a tensor")
        return features

    def length(self, example: Example) -> int | None:  # noqa: D102
        length: int | None = self._parts["length"](example) if "length" in self._parts else None
        return length

    def preview(self, example: Example) -> Any:  # noqa: D102
        return self._parts["preview"](example) if "preview" in self._parts else None

    def parse(self, content: Mapping[str, Any]) -> Example:  # noqa: D102
        return self._parts["parse"](content) if "parse" in self._parts else super().parse(content)


def _refuse_training_mode(model: nn.Module, path: Path) -> None:
    # Not put into eval mode here: whoever returns a model in training mode may have measured and saved it so too.
    training = [
        f"{name or 'the model'} ({type(module).__name__})" for name, module in model.named_modules() if module.training
    ]
    if training:
        rest = f" and {len(training) - 5} more" if len(training) > 5 else ""
        raise RecipeError(
            f"{path.name}: model() returned a model in training mode: {', '.join(training[:5])}{rest}. There "
            "dropout is random and batch norm sees the other examples of a batch, so that no example has a gradient of "
            "its own. Return model.eval()"
        )


def _import_file(path: Path, digest: str) -> ModuleType:
    name = f"{MODULE_PREFIX}{path.stem}_{digest[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    # The file's own folder comes last on the path, so that its neighbours can be imported and shadow nothing.
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise RecipeNotFoundError(f"{path}: a recipe is a Python file, its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, Exception):
            raise RecipeCodeError(f"{path}: cannot be imported: {said(error)}") from error
        raise
    return module


def _refuse_misspelt(module: ModuleType, path: Path) -> None:
    known = (*PARTS, *CONSTANTS)
    for name, value in vars(module).items():
        foreign = getattr(value, "__module__", module.__name__) != module.__name__
        if name.startswith("_") or name in known or inspect.ismodule(value) or foreign:
            continue
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
        if close:
            raise RecipeError(
                f"{path.name}: {name!r} is not a part of a recipe; did you mean {close[0]!r}? The parts are "
                f"{', '.join(known)}. A helper of your own with a name so close to one needs a leading underscore"
            )


def _functions(module: ModuleType, path: Path) -> dict[str, Callable[..., Any]]:
    functions: dict[str, Callable[..., Any]] = {}
    for part, arguments in PARTS.items():
        value = getattr(module, part, None)
        if value is None:
            if part in REQUIRED:
                raise RecipeError(
                    f"{path.name}: a recipe must define {part}(), and this one does not. It returns {REQUIRED[part]}; "
                    "docs/recipes.md has all parts"
                )
            continue
        if not callable(value):
            raise RecipeError(f"{path.name}: {part} must be a function {part}({', '.join(arguments)})")
        functions[part] = value
    return functions


def _extra_parameters(part: str, function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Return the parameters beyond the contract's positional ones: ``data_dir`` and the recipe's options."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except ValueError:  # a builtin without a signature has no options
        return {}
    extra = parameters[len(PARTS[part]) :]
    return {p.name: p for p in extra if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}


def _settings(functions: Mapping[str, Callable[..., Any]], path: Path) -> dict[str, tuple[type, Any]]:
    # Option → (type, default) over all parts; two parts that share an option must agree on its default.
    settings: dict[str, tuple[type, Any]] = {}
    for part, function in functions.items():
        try:
            hints = get_type_hints(function)
        except (NameError, TypeError):  # names that exist only for a type checker say nothing here
            hints = {}
        for name, parameter in _extra_parameters(part, function).items():
            if name == "data_dir":
                continue
            default = parameter.default
            hint = hints.get(name)
            kinds = [kind for kind in (get_args(hint) or (hint,)) if kind in (bool, int, float, str)]
            kind = kinds[0] if len(kinds) == 1 else type(default)  # of ``int | None`` the int
            if kind not in (bool, int, float, str):
                kind = str
            if name in settings and settings[name] != (kind, default):
                raise RecipeError(
                    f"{path.name}: {part}() gives option {name!r} the default {default!r}, another part gives it "
                    f"{settings[name][1]!r}; one option has one default"
                )
            settings[name] = (kind, default)
    return settings


def _resolve(
    settings: Mapping[str, tuple[type, Any]], given: Mapping[str, OptionValue], name: str
) -> dict[str, OptionValue]:
    unknown = sorted(set(given) - set(settings))
    if unknown:
        listed = ", ".join(sorted(settings)) or "none"
        raise RecipeOptionError(f"recipe {name!r} has no option {unknown[0]!r}; its options: {listed}")
    resolved: dict[str, OptionValue] = {}
    for key, (kind, default) in settings.items():
        if key in given:
            resolved[key] = convert_option(key, given[key], kind)
        elif default is inspect.Parameter.empty:
            raise RecipeOptionError(f"recipe {name!r} needs a value for its option {key!r}: --option {key}=VALUE")
        elif isinstance(default, bool | int | float | str):
            resolved[key] = default
    return resolved
