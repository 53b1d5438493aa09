"""Which recipe may be loaded for a served index, and what comes of it: a sketcher of examples, or a reason."""

from pathlib import Path

from indexer.recipe import Recipe, RecipeError
from indexer.recipe_file import FileRecipe, load_recipe
from service.example_sketcher import ExampleSketcher
from sketchstore.reader import Index


def sketcher_of(
    index: Index, *, served_as: str, recipe: str | None, data_dir: Path | None, warm_up: bool
) -> tuple[ExampleSketcher | None, str | None]:
    """Load the recipe of an index.

    A built-in recipe that the manifest names loads by name; a user's recipe only when whoever starts the service
    gives it.

    Args:
        index: The open index.
        served_as: The name to serve it by.
        recipe: A recipe's file or built-in name; None leaves it to the manifest.
        data_dir: The folder of data files the recipe reads.
        warm_up: Whether to load the weights and sketch one example now, not only to compile the kernels.

    Returns:
        What sketches examples, or None and why there is nothing that does.

    Raises:
        RecipeError: If the recipe that was given cannot be loaded. One that the manifest names may need a model that is
            not on this machine: then the index takes no queries by example.
    """
    facts = index.manifest.recipe
    source = recipe if recipe is not None else facts.name if facts.builtin else None
    if source is None:
        return (
            None,
            f"its recipe {facts.name!r} is a user's; start the service with --recipe {served_as}=FILE to load it",
        )
    if not index.has_weights:
        return None, "the index was built with --no-weights"
    try:
        # A recipe that an index names gets no data: it needs none to read a request, and without data the text
        # recipes load only what is on this machine.
        folder = None if recipe is None else data_dir
        loaded: Recipe = load_recipe(source, data_dir=folder, options=dict(facts.options))  # type: ignore[arg-type]
        sketcher = ExampleSketcher(index, loaded)
        if warm_up:
            sketcher.warm_up()
        else:
            sketcher.compile_kernels()
            # Otherwise the first query by example makes the model, which may take long; this one is likely to fail.
            if isinstance(loaded, FileRecipe) and loaded.model_lacks_data:
                sketcher.try_model()
    except RecipeError as error:
        if recipe is not None:
            raise  # whoever names a recipe wants it; one that an index names may need a model that is not here
        return None, str(error)
    return sketcher, None
