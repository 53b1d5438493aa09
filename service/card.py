"""The index card: what an index holds and can answer, and what to beware of."""

from service.schemas.cards import (
    IndexCard,
    LabelFacts,
    QuerySetFacts,
    RecipeFacts,
    SketchFacts,
    ViewFacts,
)
from service.served_index import ServedIndex
from sketchstore.earlier_rows import noise_of_other_rows

SLOW_SKETCH_SECONDS = 1.0


def index_card(served: ServedIndex, refused: str | None = None) -> IndexCard:
    """Write the card of an index from its manifest and from what is loaded beside it.

    Args:
        served: The index.
        refused: Why a newer revision is not served; None where there is none.

    Returns:
        Its card.
    """
    manifest = served.index.manifest
    sketcher = served.sketcher
    unsupported = served.no_recipe_reason if sketcher is None else sketcher.failure
    query_types = ["row", "train_id", "sketch"] + (["example"] if unsupported is None else [])
    return IndexCard(
        name=served.name,
        revision=served.index.revision,
        format_version=manifest.format_version,
        num_rows=manifest.num_rows,
        dtype=manifest.dtype,
        sketch=SketchFacts(
            family=manifest.sketch.family,
            dim=manifest.sketch_dim,
            seed=manifest.sketch.seed,
            num_parameters=manifest.sketch.num_parameters,
            options=dict(manifest.sketch.options),
        ),
        measurement=manifest.measurement.name,
        views={
            name: ViewFacts(
                comparable=view.comparable,
                mean_squared_norm=view.mean_squared_norm,
                mean_squared_norm_by_label=dict(view.mean_squared_norm_by_label),
            )
            for name, view in manifest.views.items()
        },
        labels=LabelFacts(counts=dict(manifest.labels.counts), names=manifest.labels.names),
        recipe=RecipeFacts(
            name=manifest.recipe.name,
            builtin=manifest.recipe.builtin,
            options=dict(manifest.recipe.options),
            loaded=unsupported is None,
            reason=unsupported,
        ),
        queries=None
        if manifest.queries is None
        else QuerySetFacts(count=manifest.queries.count, sketches=dict(manifest.queries.sketches)),
        query_types=query_types,
        methods=list(served.methods),
        engine=served.engine,
        removed_rows=manifest.num_places - manifest.num_rows,
        default_relative_noise=manifest.default_relative_noise,
        noise_tuning=manifest.noise_tuning,
        query_sketch_seconds=None if sketcher is None else sketcher.last_seconds,
        distortion=manifest.distortion,
        warnings=warnings_about(served, refused),
    )


def warnings_about(served: ServedIndex, refused: str | None) -> list[str]:
    """Say what a reader of this index's answers should beware of.

    Args:
        served: The index.
        refused: Why a newer revision is not served; None where there is none.

    Returns:
        Sentences, none for an index without reservations.
    """
    manifest = served.index.manifest
    found = []
    if refused is not None:
        found.append(f"a newer revision was published and is refused: {refused}")
    if manifest.default_relative_noise is None:
        found.append("the noise of this index is untuned: without one in the request, relative noise 1.0 is used")
    stale = noise_of_other_rows(manifest.default_relative_noise, manifest.noise_tuning, manifest.num_rows)
    found += [] if stale is None else [stale]
    if any(view.comparable == "label" for view in manifest.views.values()):
        found.append(
            "rows are comparable within a label only: candidates and D are the rows of the target's label, where the "
            "paper conditions on the whole training set"
        )
    if manifest.distortion is None:
        found.append("how far the sketched kernel is from the exact one was not measured for this index")
    seconds = None if served.sketcher is None else served.sketcher.last_seconds
    if seconds is not None and seconds > SLOW_SKETCH_SECONDS:
        found.append(
            f"a query by example takes {seconds:.1f} s to sketch; an index with the sjlt or kronecker family is faster"
        )
    return found
