"""Writes down, before the first row, everything that decides the bytes of an index: `--resume` compares it."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from indexer.out_of_memory import RULE
from indexer.preparation import Prepared
from indexer.reading import ReadOnce
from indexer.training import state_digest
from sketchstore.manifest import RECIPE_OPTIONS, Build, Measurement, Parameter, Recipe, Sketch, SourceDigests
from sketchstore.plan import BuildPlan, shard_rows_for

BUILD_VERSION = "3"
"""Raised when a change in this package changes the bytes of an index."""
BYTES_DECIDED_BY = ("torch", "numpy", "numba", "pyarrow", "pillow")
"""Packages whose version can change them too; recorded in the plan and compared on resume."""


def build_plan(prepared: Prepared, name: str, train: ReadOnce, queries: ReadOnce | None) -> BuildPlan:
    """Write down everything that decides the bytes of the index.

    Args:
        prepared: The recipe and the choices.
        name: Name of the index.
        train: What one pass over the training rows found.
        queries: The same for the query rows.

    Returns:
        The plan.
    """
    settings, recipe = prepared.settings, prepared.recipe
    options: dict[str, Any] = {
        "limit": settings.limit,
        "ntk_gain": prepared.ntk_gain,
        "include": list(settings.include),
        "exclude": list(settings.exclude),
        "layers": settings.layers or recipe.default_layers,
        "num_queries": 0 if prepared.queries is None else prepared.queries.num_rows,
        "queries_digest": None if queries is None else queries.digest,
        "previews": settings.previews,
        "weights": settings.weights,
        "out_of_memory": RULE,
        "memory_budget_bytes": settings.memory_budget_bytes,
        "compute_dtype": settings.compute_dtype,
    }
    if settings.id_prefix:  # else left out: builds without one have the plan they always had
        options["id_prefix"] = settings.id_prefix
    names = recipe.label_names
    return BuildPlan(
        name=name,
        num_rows=prepared.train.num_rows,
        dtype=settings.dtype,
        views=dict.fromkeys(prepared.views, prepared.measurement.comparable),
        sketch=Sketch(
            family=prepared.spec.family,
            seed=prepared.spec.seed,
            dim=prepared.spec.dim,
            num_parameters=prepared.parameters.num_parameters,
            parameters=tuple(
                Parameter(name=parameter.name, shape=parameter.shape, ntk_scale=parameter.ntk_scale)
                for parameter in prepared.parameters
            ),
            options=dict(prepared.spec.options),
        ),
        measurement=Measurement(
            name=prepared.measurement.name,
            options={
                **({} if settings.views is None else {"views": [*sorted(settings.views)]}),
                **({RECIPE_OPTIONS: dict(recipe.measuring_options)} if recipe.measuring_options else {}),
            },
        ),
        recipe=Recipe(
            name=recipe.name, builtin=recipe.builtin, options=dict(recipe.options), file_digest=recipe.file_digest
        ),
        build=Build(
            block_rows=prepared.block_rows,
            shard_rows=shard_rows_for(prepared.block_rows, prepared.spec.dim, settings.dtype),
            compute_rows=prepared.compute_rows,
            num_threads=settings.num_threads,
            device=settings.device,
            versions={"build": BUILD_VERSION, **{name: version(name) for name in BYTES_DECIDED_BY}},
            options=options,
        ),
        digests=SourceDigests(weights=state_digest(prepared.model.state_dict()), data_order=train.digest),
        label_names=None if names is None else {str(label): name for label, name in enumerate(names)},
    )
