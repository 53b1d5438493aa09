"""How stable an index's answers are: a sample of its rows and queries sketched again under another seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from indexer.agreement import compare_nats
from indexer.distortion import sample_rows
from indexer.exact_kernel import kernel_features
from indexer.featurise import Featuriser
from indexer.index_recipe import load_model, options_of, recipe_of
from indexer.kernel_errors import random_pairs
from indexer.progress import Progress, Silent
from indexer.reading import ExampleReader
from indexer.recipe import Example
from indexer.source_rows import SourceRows
from sketchstore.errors import UpkeepError
from sketchstore.manifest import NO_LABEL, OWN
from sketchstore.reader import Index

ROWS, QUERIES, PICKS, PAIRS = 300, 10, 10, 1000
RELATIVE_NOISES = (0.01, 0.1, 1.0, 10.0, 100.0)
#: What storage (float16: 2⁻¹¹ of an entry) and float32 sums in another order may change in a sketch, and room to spare.
MOST_DIFFERENCE = 0.01
#: What a compute type of fewer bits changes in a sketch where the build did not measure it, and what is taken for
#: rounding at most.
USUAL_ROUNDED, MOST_ROUNDED = 0.1, 0.7


class StabilityError(UpkeepError):
    """A sample of an index cannot be rebuilt."""


@dataclass(frozen=True)
class StabilityReport:
    """What a sample of an index says under two seeds.

    Attributes:
        view: The view.
        label: The label of the sample's rows, None where all rows compare.
        family: The sketch's family.
        sketch_dim: d.
        seed: The index's seed.
        other_seed: The other one.
        pool_rows: Rows of the pool.
        queries: How many queries.
        query_split: ``query`` for rows of the query set, ``train`` for rows held out of the pool.
        rebuilt_difference: Largest ‖rebuilt − stored‖/‖stored‖ of a row at the index's own seed: what was rebuilt is
            what the index holds.
        kernel_spread: Root mean square of the difference of kernel values over ‖φ‖‖φ′‖, on random pairs of the pool.
        norm_ratio: Mean squared norm of the pool under the index's seed over that under the other.
        nats: One entry per relative noise, each in units of its own kernel: ``shared_picks_fraction``, ``set_ratio``,
            ``pool_ratio`` (the index's seed over the other's) and ``by_query``.
    """

    view: str
    label: int | None
    family: str
    sketch_dim: int
    seed: int
    other_seed: int
    pool_rows: int
    queries: int
    query_split: str
    rebuilt_difference: float
    kernel_spread: float
    norm_ratio: float
    nats: list[dict[str, Any]]

    def as_json(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return asdict(self)


def measure_stability(
    index: Index,
    *,
    recipe: str | None = None,
    data_dir: Path | None = None,
    seed: int | None = None,
    rows: int = ROWS,
    queries: int = QUERIES,
    picks: int = PICKS,
    relative_noises: Sequence[float] = RELATIVE_NOISES,
    progress: Progress | None = None,
) -> StabilityReport:
    """Sketch a sample of an index again, under its own seed and under another, and compare what they answer.

    Args:
        index: The open index, with its weights.
        recipe: The recipe's file; None where the index names a built-in one.
        data_dir: Folder of the data files.
        seed: The other seed; None takes the index's plus one.
        rows: Rows of the pool, at most.
        queries: How many queries, at most; of the query set where its sketches are stored, else held-out rows.
        picks: Size of the sets that are selected for each query.
        relative_noises: Noises, in units of each kernel's own mean squared norm.
        progress: Told how far it is.

    Returns:
        The report.

    Raises:
        StabilityError: If the sketch has no seed, the seed is the index's own, or what is rebuilt is not what is there.
    """
    progress, manifest = progress or Silent(), index.manifest
    other_seed = manifest.sketch.seed + 1 if seed is None else seed
    if manifest.sketch.family == "identity":
        raise StabilityError(
            f"index {index.name!r} keeps the gradients as they are (identity): no seed is in it, so nothing can change"
        )
    if other_seed == manifest.sketch.seed:
        raise StabilityError(f"--seed {other_seed} is the index's own seed; choose another")
    loaded = recipe_of(index, recipe, data_dir=data_dir)
    model = load_model(index, loaded)
    own = Featuriser.from_manifest(manifest, loaded, model)
    changed = manifest.model_copy(update={"sketch": manifest.sketch.model_copy(update={"seed": other_seed})})
    other = Featuriser.from_manifest(changed, loaded, model)
    view = next(iter(manifest.views))
    sample = sample_rows(index.labels, manifest.views[view].comparable, pool_rows=rows, queries=queries)
    sources = SourceRows(
        index, lambda source: recipe_of(index, recipe, data_dir=data_dir, options=options_of(source.recipe))
    )
    pool, pool_rows = _examples_of(index, sources, sample.pool)
    asked, targets, split = _queries(index, loaded, view, sample.label, queries)
    if not asked:
        (asked, _), split = _examples_of(index, sources, sample.queries), "train"
    progress.phase("sketching a sample again", 2)
    size, sketched = len(pool), {}
    for name, featuriser in (("index", own), ("other_seed", other)):
        parts = [featuriser.sketch(pool, view=view), featuriser.sketch(asked, targets, view)]
        sketched[name] = torch.cat(parts).double()
        progress.advance(1)
    stored = index.view(view).sketches(torch.tensor(pool_rows))
    difference = _difference(sketched["index"][:size], stored)
    most = _most_difference(index)
    if not difference <= most:
        raise StabilityError(
            f"rows of index {index.name!r} that were rebuilt at its own seed differ from the stored ones by up to "
            f"{difference:.2g} of their length, where at most {most:.2g} is rounding: the recipe gives other data than "
            "it was built from"
        )
    sketched["index"][:size] = stored
    kernels = {name: kernel_features(values @ values.T) for name, values in sketched.items()}
    units = {name: float(values[:size].square().sum(1).mean()) for name, values in sketched.items()}
    return StabilityReport(
        view=view,
        label=sample.label,
        family=manifest.sketch.family,
        sketch_dim=manifest.sketch_dim,
        seed=manifest.sketch.seed,
        other_seed=other_seed,
        pool_rows=size,
        queries=len(asked),
        query_split=split,
        rebuilt_difference=difference,
        kernel_spread=_spread(sketched["index"][:size], sketched["other_seed"][:size]),
        norm_ratio=units["index"] / units["other_seed"],
        nats=[
            {
                "relative_noise": noise,
                **compare_nats(
                    {name: (features, noise * units[name]) for name, features in kernels.items()},
                    size,
                    min(picks, size),
                ),
            }
            for noise in relative_noises
        ],
    )


def _examples_of(index: Index, sources: SourceRows, rows: Sequence[int]) -> tuple[list[Example], list[int]]:
    """Find the examples of rows in the data that they were read from.

    Returns:
        The examples, and the rows that they are of.

    Raises:
        StabilityError: If not even half of them are there.
    """
    found = sources.examples(rows)
    if 2 * len(found) < len(rows):
        missing = next(row for row in rows if row not in found)
        reasons = "".join(f" ({reason})" for reason in sources.unreadable)
        raise StabilityError(
            f"row {missing} of index {index.name!r} has the id {index.examples.id(missing)!r}, and neither it nor most "
            f"of a sample are in the training sets that the index was built from{reasons}. Give their data (--data-dir)"
        )
    return list(found.values()), list(found)


def _queries(
    index: Index, recipe: Any, view: str, label: int | None, count: int
) -> tuple[list[Example], Tensor | None, str]:
    # Examples of the query set that were sketched for what the sample compares with, and at which label.
    dataset = None if index.queries is None or view not in index.queries.views else recipe.query_set()
    if dataset is None or index.queries is None:
        return [], None, "train"
    _, rows, targets = index.queries.arrays(view)
    usable = [(row, target) for row, target in zip(rows.tolist(), targets.tolist(), strict=True) if row < len(dataset)]
    if view == OWN:
        usable = [(row, target) for row, target in usable if target == label]
    order = torch.randperm(len(usable), generator=torch.Generator().manual_seed(0))[:count].tolist()
    chosen = sorted(usable[place] for place in order)
    reader = ExampleReader(recipe, dataset, "query")
    examples = [reader.example(row) for row, _ in chosen]
    wanted = [index.queries.examples.id(row) for row, _ in chosen]
    if [reader.id(example, row) for example, (row, _) in zip(examples, chosen, strict=True)] != wanted:
        return [], None, "train"
    measured = [target for _, target in chosen]
    return examples, None if NO_LABEL in measured else torch.tensor(measured), "query"


def _most_difference(index: Index) -> float:
    # A type of fewer bits rounds otherwise in batches of another size, by as much as its rounding changes a sketch:
    # the build measured that. Rows of other data differ by more than their length.
    if index.manifest.build.options.get("compute_dtype", "float32") == "float32":
        return MOST_DIFFERENCE
    distortion = cast("dict[str, Any]", index.manifest.distortion or {})
    measured = distortion.get("compute", {}).get("sketch_error_max", USUAL_ROUNDED)
    return min(max(MOST_DIFFERENCE, 3 * float(measured)), MOST_ROUNDED)


def _difference(rebuilt: Tensor, stored: Tensor) -> float:
    lengths = stored.norm(dim=1)
    return float(((rebuilt - stored).norm(dim=1) / lengths.where(lengths > 0, 1.0)).max())


def _spread(first: Tensor, second: Tensor) -> float:
    pairs = random_pairs(len(first), PAIRS)
    values = [(each[pairs.first] * each[pairs.second]).sum(1) for each in (first, second)]
    norms = [first.square().sum(1), second.square().sum(1)]
    squared = (norms[0][pairs.first] * norms[0][pairs.second] * norms[1][pairs.first] * norms[1][pairs.second]).sqrt()
    lengths = squared.clamp_min(torch.finfo(torch.float64).tiny)
    return float(((values[0] - values[1]).square() / lengths).mean().sqrt())
