"""The recipe and model that an index was built with: its own weights in the recipe's architecture, nothing trained."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file
from torch import nn

from indexer.recipe import OptionValue, Recipe, RecipeError
from indexer.recipe_file import load_recipe
from sketchstore.errors import IncompatibleSketchError
from sketchstore.manifest import Recipe as RecipeEntry
from sketchstore.reader import Index


def recipe_of(
    index: Index,
    source: str | None = None,
    *,
    data_dir: Path | None = None,
    options: Mapping[str, OptionValue] | None = None,
) -> Recipe:
    """Load the recipe that an index names: a built-in one by its name, a user's from the file that is given.

    Args:
        index: The open index.
        source: The recipe's file or built-in name; None where the index names a built-in one.
        data_dir: Folder of the data files.
        options: Options other than those the index was built with.

    Returns:
        The recipe, with the index's options.

    Raises:
        RecipeError: If no file is given for a user's recipe, or it is another recipe than the index's.
    """
    facts = index.manifest.recipe
    if source is None and not facts.builtin:
        raise RecipeError(
            f"index {index.name!r} was built with the recipe file {facts.name}.py; give it: --recipe FILE"
        )
    given = {**options_of(facts), **(options or {})}
    recipe = load_recipe(source or facts.name, data_dir=data_dir, options=given)
    if (recipe.name, recipe.file_digest) != (facts.name, facts.file_digest):
        other = "is another file than" if recipe.name == facts.name else f"is {recipe.name!r}, not"
        raise RecipeError(
            f"recipe {source or facts.name} {other} the recipe {facts.name!r} that index {index.name!r} was built with "
            f"(digest {facts.file_digest}, here {recipe.file_digest}); measurements of another recipe need not compare."
            " Give the file as it was then, or build the index again with this one"
        )
    return recipe


def options_of(entry: RecipeEntry) -> dict[str, OptionValue]:
    """Read back the options of a recipe; one without a value is left to its default.

    Args:
        entry: What a manifest says of it.

    Returns:
        Name to value.
    """
    return {name: value for name, value in entry.options.items() if isinstance(value, str | int | float | bool)}


def load_model(index: Index, recipe: Recipe, model: nn.Module | None = None) -> nn.Module:
    """Put the weights that lie in the index into the recipe's architecture; nothing is trained.

    Args:
        index: The open index.
        recipe: The recipe.
        model: The recipe's architecture where it was made already; its weights are replaced.

    Returns:
        The model in eval mode.

    Raises:
        IncompatibleSketchError: If the index has no weights, or the recipe's modules are not those of the weights.
    """
    if index.weights_path is None:
        raise IncompatibleSketchError(
            f"index {index.name!r} was built with --no-weights, so nothing can be sketched at its weights. Build it "
            "with them."
        )
    model = recipe.architecture() if model is None else model
    try:
        model.load_state_dict(load_file(index.weights_path))
    except RuntimeError as error:
        raise IncompatibleSketchError(
            f"the weights in index {index.name!r} do not fit the model of recipe {recipe.name!r}: {error}"
        ) from error
    return model.eval()
