"""Appending: further rows of an index's recipe are sketched as its own were, and join it in its next revision."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

from indexer.build import build_index
from indexer.derive import derive
from indexer.index_recipe import load_model, recipe_of
from indexer.parameters import ParameterList
from indexer.preparation import Part
from indexer.progress import Progress, Silent
from indexer.reading import ExampleReader
from indexer.rebuilding import derived_choices, settings_of, sketch_of
from indexer.recipe import MapDataset, OptionValue, Recipe
from indexer.rows_of_recipe import ChosenRows, RowsOfRecipe
from sketchstore.errors import IdCollisionError, IncompatibleSketchError, UpkeepError, listed
from sketchstore.examples import ExampleTable
from sketchstore.manifest import RECIPE_OPTIONS, Measurement, Source
from sketchstore.manifest import Recipe as RecipeEntry
from sketchstore.merge import check_options, merge_indexes, united_label_names
from sketchstore.plan import BuildPlan
from sketchstore.reader import Index, open_index
from sketchstore.revising import sources_of, sweep
from sketchstore.unfinished import appending_path


class AppendError(UpkeepError):
    """The rows that were named cannot be appended."""


@dataclass(frozen=True)
class AppendReport:
    """What an append did.

    Attributes:
        revision: The new revision.
        appended_rows: Rows that were added.
        first_row: The first of them in the data set.
        num_rows: Rows of the index now.
        derived: Derived files that were written.
        notes: What was said on the way.
    """

    revision: str
    appended_rows: int
    first_row: int
    num_rows: int
    derived: list[str]
    notes: list[str]

    def as_json(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return asdict(self)


def append_rows(
    directory: Path,
    *,
    recipe: str | None = None,
    data_dir: Path | None = None,
    options: Mapping[str, OptionValue] | None = None,
    rows: tuple[int, int | None] | None = None,
    id_prefix: str | None = None,
    resume: bool = False,
    derived: bool = True,
    device: str = "cpu",
    threads: int | None = None,
    processes: int = 1,
    progress: Progress | None = None,
) -> AppendReport:
    """Sketch further rows and publish the next revision of an index with them.

    Without ``rows``, the rows are those of the training set behind what the index has read of it, and what it has read
    must still be as it was. A data source of which it has read nothing (other options, or ids with another prefix)
    is taken from its first row on. Until the last moment the old revision is whole.

    Args:
        directory: The index directory.
        recipe: The recipe's file; None where the index names a built-in one.
        data_dir: Folder of the data files.
        options: Options of the recipe that differ from the index's.
        rows: First row, and row after the last (None: all), of the training set, whatever was read before.
        id_prefix: What the ids of the new rows begin with; None takes what the index was built with.
        resume: Whether an interrupted append of the same rows goes on.
        derived: Whether what was derived of the index is derived of its next revision.
        device: Where to compute.
        threads: CPU threads of each process; None means torch's number, shared among the processes.
        processes: Worker processes that share the blocks.
        progress: Told how far it is.

    Returns:
        What was done.

    Raises:
        AppendError: If there is no such row, or none that was not read.
    """
    progress = progress or Silent()
    sweep(directory)
    index = open_index(directory, check="use", derived=False)
    loaded = recipe_of(index, recipe, data_dir=data_dir, options=options)
    dataset = loaded.train_set()
    id_prefix = sources_of(index.manifest)[0].id_prefix if id_prefix is None else id_prefix
    work = appending_path(index.path.resolve())
    entry = RecipeEntry(
        name=loaded.name, builtin=loaded.builtin, options=dict(loaded.options), file_digest=loaded.file_digest
    )
    if rows is None:
        first, stop = _behind(index, loaded, entry, dataset, id_prefix), len(dataset)
        if first >= stop:
            shutil.rmtree(work, ignore_errors=True)
            raise AppendError(f"nothing to append: index {index.name!r} has read all {stop} rows of this training set")
    else:
        first, stop = rows[0], len(dataset) if rows[1] is None else rows[1]
        if not 0 <= first < stop <= len(dataset):
            raise AppendError(
                f"--rows {first}:{stop} must be FIRST:STOP with 0 <= FIRST < STOP <= {len(dataset)}, the rows of the "
                "training set"
            )
    gain = cast("float | None", index.manifest.build.options.get("ntk_gain"))
    chosen = ChosenRows(first, stop - first, id_prefix, gain)
    part = RowsOfRecipe(loaded, dataset, load_model(index, loaded), chosen)
    _check_new_ids(index, part, progress)
    settings = settings_of(index, device=device, threads=threads, data_dir=data_dir)
    source_file = settings.recipe if recipe is None else recipe  # worker processes load it for themselves
    settings = replace(settings, recipe=source_file, options=loaded.options, processes=processes)
    report = build_index(
        settings,
        work / "rows",
        resume=resume,
        overwrite=not resume,
        faiss=None,
        spectra=False,
        codes="none",
        progress=progress,
        part=Part(
            part,
            lambda plan: _check_same(index, plan),
            sketch_of(index.manifest.sketch),
            ParameterList.of_sketch(index.manifest.sketch),
        ),
    )
    new = open_index(work / "rows", check="use")
    source = Source(
        recipe=entry,
        first_row=first,
        rows=stop - first,
        block_rows=new.manifest.build.block_rows,
        id_prefix=id_prefix,
        data_order=new.manifest.digests.data_order,
    )
    progress.phase("publishing", 0)
    choices = derived_choices(index)
    merged = merge_indexes([index, new], index.path, appended=source, log={"event": "append"})
    shutil.rmtree(work, ignore_errors=True)
    written = []
    if derived:
        found = open_index(directory, check="use", derived=False)
        written = derive(found, **asdict(choices), progress=progress).written
    return AppendReport(
        revision=merged.revision,
        appended_rows=stop - first,
        first_row=first,
        num_rows=merged.num_rows,
        derived=written,
        notes=[*report.notes, *merged.notes],
    )


def _behind(index: Index, recipe: Recipe, entry: RecipeEntry, dataset: MapDataset, id_prefix: str) -> int:
    """Find the first row of a data source that the index has not read, after checking those that it has.

    Returns:
        The row.

    Raises:
        AppendError: If a row that the index has read is another one now.
    """
    first = 0
    for source in sources_of(index.manifest):
        if (source.recipe, source.id_prefix) != (entry, id_prefix):
            continue
        first, last = max(first, source.first_row + source.rows), source.first_row + source.rows
        if last <= len(dataset):
            part = RowsOfRecipe(recipe, dataset, None, ChosenRows(source.first_row, source.rows, id_prefix))
            reader = ExampleReader(part, part.train_set(), "train")
            if reader.read_once(source.block_rows).digest == source.data_order:
                continue
        raise AppendError(
            f"rows {source.first_row} to {last - 1} of this training set are not those that index {index.name!r} has "
            f"read: the digest of the data differs. Where this is another data source, name its rows with --rows "
            "FIRST:STOP and give their ids a prefix of their own with --id-prefix."
        )
    return first


def _check_new_ids(index: Index, part: Recipe, progress: Progress) -> None:
    # Before anything is sketched; the merge looks again.
    reader = ExampleReader(part, part.train_set(), "train")
    table = ExampleTable(index.files, "examples.parquet", index.manifest.num_places, "train")
    known = set(table.column("id").to_pylist())
    progress.phase("reading the ids of the new rows", reader.num_rows)
    both = []
    for row in range(reader.num_rows):
        if (name := reader.id(reader.example(row), row)) in known:
            both.append(repr(name))
        progress.advance(1)
    if both:
        raise IdCollisionError(
            f"{listed(both, 5)}: index {index.name!r} has a row of this id already, withdrawn or not; ids must be "
            "unique. Name only new rows with --rows FIRST:STOP, or give the ids of another data source a prefix with "
            "--id-prefix."
        )


def _check_same(index: Index, plan: BuildPlan) -> None:
    """Refuse rows that would not compare with those of the index.

    Raises:
        IncompatibleSketchError: If sketch, measurement or weights differ.
        MergeMismatchError: If options that were measured with, or names of labels, do.
    """
    manifest = index.manifest
    cure = "Append with the recipe, options and data folder that the index was built with."
    manifest.sketch.check_same(plan.sketch, what="the new rows", index=index.name, cure=cure)
    check_options(manifest, plan.measurement, plan.recipe, what="the new rows")
    united_label_names([(f"index {index.name!r}", manifest.labels.names), ("the new rows", plan.label_names)])
    for what, ours, theirs in (
        ("measurement", _without_recipe(manifest.measurement), _without_recipe(plan.measurement)),
        ("views", {name: view.comparable for name, view in manifest.views.items()}, plan.views),
        ("digest of the weights", manifest.digests.weights, plan.digests.weights),
    ):
        if ours != theirs:
            raise IncompatibleSketchError(
                f"the new rows have {what} {theirs}, index {index.name!r} has {ours}; they would not compare. {cure}"
            )


def _without_recipe(measurement: Measurement) -> Measurement:
    # The recipe's options are compared by themselves: an older index does not say which are of the measurement.
    options = {name: value for name, value in measurement.options.items() if name != RECIPE_OPTIONS}
    return measurement.model_copy(update={"options": options})
