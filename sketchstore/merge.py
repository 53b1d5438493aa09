"""Several indexes of one sketch, model and measurement become one; nothing is sketched, and shards are taken over."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import JsonValue

from sketchstore.arrays import Array, map_npy, widened
from sketchstore.earlier_rows import noise_of_other_rows, rows_changed
from sketchstore.errors import IdCollisionError, MergeMismatchError, listed
from sketchstore.examples import ExampleTable
from sketchstore.float16 import check_subnormals, to_float16
from sketchstore.kept import Kept
from sketchstore.manifest import RECIPE_OPTIONS, Manifest, Measurement, Recipe, Source, column_file, shard_file
from sketchstore.norms import squared_norms
from sketchstore.reader import WEIGHTS, Index
from sketchstore.revising import Draft, drafted, fields_of, sources_of, sweep
from sketchstore.row_facts import state_rows, united_ranges
from sketchstore.stored_arrays import write_column, write_shard
from sketchstore.table_copy import copy_tables

EXAMPLES = "examples.parquet"
_NORMS = "squared_norms."
_RESCALED_ROWS = 4096


@dataclass(frozen=True)
class MergeReport:
    """What a merge did.

    Attributes:
        revision: The revision that was published.
        num_rows: Its rows.
        rows: Rows that each index gave.
        dropped_columns: Columns that not every index has.
        notes: What else is worth knowing.
    """

    revision: str
    num_rows: int
    rows: list[int]
    dropped_columns: list[str]
    notes: list[str]


def merge_indexes(
    indexes: Sequence[Index],
    out: Path,
    *,
    appended: Source | None = None,
    log: Mapping[str, JsonValue] | None = None,
) -> MergeReport:
    """Publish an index of the rows of several, in the order of the indexes.

    Recipe, build, distortion and default noise are those of the first index, the latter two said to be of other rows
    (`earlier_rows.py`); weights and queries are those of the first that has them. Rows that were removed stay removed.
    float16 shards keep the first index's scale; those at another are written anew.

    Args:
        indexes: At least two open indexes.
        out: Where it is published: a new place, or the first index's own with ``appended``.
        appended: Where the rows of the last index came from; the result is then the first index's next revision.
        log: Facts for the log line.

    Returns:
        What was done.
    """
    sweep(out)
    first, notes = indexes[0], []
    for other in indexes[1:]:
        check_mergeable(first, other)
    check_ids(indexes)
    columns, dropped = _common_columns([index.manifest for index in indexes])
    removed = united_ranges([(index.manifest.num_places, index.manifest.removed) for index in indexes])
    with drafted(out, follows=None if appended is None else first) as draft:
        fields = fields_of(first.manifest)
        fields["name"] = draft.target.name if appended is None else first.name
        sources = [sources_of(index.manifest) for index in indexes]
        if appended is not None:
            sources[-1] = (appended,)
        fields["sources"] = [each.model_dump(mode="json") for group in sources for each in group]
        named = [(f"index {index.path}", index.manifest.labels.names) for index in indexes]
        fields["labels"]["names"] = united_label_names(named)
        fields["columns"] = {}
        labels, norms = _write_columns(draft, fields, indexes, columns)
        for view in first.manifest.views:
            fields["views"][view]["shards"], rescaled = _write_shards(draft, indexes, view)
            if rescaled:
                notes.append(f"view {view!r}: {rescaled} shards were written at the scale of {first.name!r}")
        state_rows(fields, removed, labels, norms)
        rows_changed(fields)
        stale = noise_of_other_rows(first.manifest.default_relative_noise, fields["noise_tuning"], fields["num_rows"])
        notes += [] if stale is None else [stale]
        tables = [
            (ExampleTable(index.files, EXAMPLES, index.manifest.num_places, "train"), Kept(index.manifest.num_places))
            for index in indexes
        ]
        with draft.writing(EXAMPLES) as path:
            copy_tables(path, tables)
        notes += _take_over(draft, fields, indexes)
        owner = None if appended is None else first
        draft.log(owner, {"event": "merge", "rows": [i.num_rows for i in indexes], **(log or {})})
        revision = draft.publish(fields)
    return MergeReport(revision, int(fields["num_rows"]), [i.num_rows for i in indexes], dropped, notes)


def check_mergeable(first: Index, other: Index) -> None:
    """Refuse an index whose rows cannot meet those of another.

    Args:
        first: The index.
        other: The one to be merged with it.

    Raises:
        MergeMismatchError: If the weights, measurement, views, storage or compute type differ, or either does not say
            its weights.
    """
    mine, theirs = first.manifest, other.manifest
    cure = (
        f"Build {other.path} again with the other's sketch (`indexer build … --sketch-like {first.path}`), or give its "
        f"rows to {first.path} by `indexer append`."
    )
    mine.sketch.check_same(theirs.sketch, what=f"index {other.name!r}", index=first.name, cure=cure)
    if _recipe_file(mine) != _recipe_file(theirs):
        raise MergeMismatchError(
            f"index {other.path} was built with the recipe {_recipe_file(theirs)}, index {first.path} with "
            f"{_recipe_file(mine)}; measurements of another recipe need not compare. Build one of them again with the "
            "other's file."
        )
    check_options(mine, theirs.measurement, theirs.recipe, what=f"index {other.path}")
    for what, ours, found in (
        ("measurement", mine.measurement.name, theirs.measurement.name),
        ("views", sorted(mine.views), sorted(theirs.views)),
        ("dtype", mine.dtype, theirs.dtype),
        ("compute_dtype", _compute_dtype(mine), _compute_dtype(theirs)),
        ("digest of the weights", mine.digests.weights, theirs.digests.weights),
    ):
        if ours != found:
            raise MergeMismatchError(
                f"index {other.path} has {what} {found}, index {first.path} has {ours}; their rows do not compare. "
                "Build both with the same settings and the same trained model: a model() that trains must be seeded."
            )
    if mine.digests.weights is None:
        raise MergeMismatchError(
            f"indexes {first.name!r} and {other.name!r} do not say what weights they were sketched at, so their rows "
            "may not compare. Build both again."
        )


def check_options(manifest: Manifest, measurement: Measurement, recipe: Recipe, *, what: str) -> None:
    """Refuse rows that were measured with other options of the recipe than those of an index.

    An index of an older program does not say which options have a part in what is measured; of it those count that
    the other side says.

    Args:
        manifest: The index's manifest.
        measurement: What was measured of the rows.
        recipe: Their recipe.
        what: Whose rows they are, for the message.

    Raises:
        MergeMismatchError: It names the first option that differs.
    """
    of_index, of_rows = _said_options(manifest.measurement), _said_options(measurement)
    for name in sorted({*of_index, *of_rows}):
        ours = of_index.get(name, manifest.recipe.options.get(name))
        theirs = of_rows.get(name, recipe.options.get(name))
        if ours != theirs:
            raise MergeMismatchError(
                f"{what}: measured with the recipe's option {name}={theirs}, index {manifest.name!r} with "
                f"{name}={ours}; the option has a part in what is measured, so rows of both do not compare. Give "
                f"--option {name}={ours}."
            )


def _said_options(measurement: Measurement) -> dict[str, JsonValue]:
    said = measurement.options.get(RECIPE_OPTIONS)
    return said if isinstance(said, dict) else {}  # the options are free JSON, another writer's may be anything


def _recipe_file(manifest: Manifest) -> str:
    recipe = manifest.recipe
    return repr(recipe.name) if recipe.file_digest is None else f"{recipe.name}.py of digest {recipe.file_digest}"


def _compute_dtype(manifest: Manifest) -> str:
    return str(manifest.build.options.get("compute_dtype", "float32"))


def check_ids(indexes: Sequence[Index]) -> None:
    """Refuse indexes of which two have a row of the same id, be it removed or not.

    Args:
        indexes: The indexes.

    Raises:
        IdCollisionError: If an id is in two of them; it names some.
    """
    owners: dict[str, Index] = {}
    for index in indexes:
        table = ExampleTable(index.files, EXAMPLES, index.manifest.num_places, "train")
        ids: list[str] = table.column("id").to_pylist()
        both = [id for id in ids if id in owners]
        if both:
            raise IdCollisionError(
                f"{listed(map(repr, both), 5)} in index {index.path} is already an id of {owners[both[0]].path}, "
                "withdrawn or not; ids must be unique. Build one of the two again with ids of its own (`indexer "
                "build … --id-prefix PREFIX`, or id() in a recipe file), leave these rows out, or purge them where "
                "they were withdrawn."
            )
        owners.update(dict.fromkeys(ids, index))


def _common_columns(manifests: Sequence[Manifest]) -> tuple[list[str], list[str]]:
    # Names of the columns that all have in one type and shape, and of the others.
    kinds = [{name: (each.dtype, each.shape[1:]) for name, each in manifest.columns.items()} for manifest in manifests]
    common = [name for name, kind in kinds[0].items() if all(other.get(name) == kind for other in kinds[1:])]
    return common, sorted({name for each in kinds for name in each} - set(common))


def _places(index: Index, name: str) -> Array:
    column, file = index.manifest.columns[name], column_file(name)
    return map_npy(index.files.path(file), file, dtype=column.dtype, shape=column.shape)


def _write_columns(
    draft: Draft, fields: dict[str, Any], indexes: Sequence[Index], names: Sequence[str]
) -> tuple[Array, dict[str, Array]]:
    # Labels, and squared norms by view: what the manifest has to say something of.
    kept: dict[str, Array] = {}
    for name in names:
        parts = [_places(index, name) for index in indexes]
        if name.startswith(_NORMS):
            # A float16 row that another scale rounds has another norm than before: computed from what is stored.
            view = name.removeprefix(_NORMS)
            parts = [_norms(indexes[0], index, view, part) for index, part in zip(indexes, parts, strict=True)]
        with draft.writing(column_file(name)) as path:
            write_column(path, parts)
        if name == "labels" or name.startswith(_NORMS):
            kept[name.removeprefix(_NORMS)] = np.concatenate(parts)
        shape = [sum(len(part) for part in parts), *parts[0].shape[1:]]
        fields["columns"][name] = {"dtype": parts[0].dtype.name, "shape": shape}
    return kept.pop("labels"), kept


def _norms(first: Index, index: Index, view: str, stored: Array) -> Array:
    exponent = first.manifest.views[view].scale_exponent
    if index.manifest.views[view].scale_exponent == exponent:
        return stored
    shards = index.manifest.views[view].shards
    parts = [squared_norms(_rescaled(index, view, n, exponent), 2.0**exponent) for n in range(len(shards))]
    return np.concatenate(parts)


def _write_shards(draft: Draft, indexes: Sequence[Index], name: str) -> tuple[list[dict[str, Any]], int]:
    # Shards in the order of the indexes, and how many had to be written at another scale.
    shards: list[dict[str, Any]] = []
    exponent, rescaled = indexes[0].manifest.views[name].scale_exponent, 0
    for index in indexes:
        for number, shard in enumerate(index.manifest.views[name].shards):
            file = shard_file(name, len(shards))
            if index.manifest.views[name].scale_exponent == exponent:
                draft.keep(index, shard.file, file)
            else:
                rescaled += 1
                with draft.writing(file) as path:
                    write_shard(path, [_rescaled(index, name, number, exponent)])
            shards.append({"file": file, "rows": shard.rows})
    return shards, rescaled


def _rescaled(index: Index, name: str, number: int, exponent: int) -> Array:
    # float16 values of a shard at another power of two: exact but for what leaves float16's normal range.
    view, what = index.view(name), f"index {index.name!r}, view {name!r}, shard {number}"
    shard = view.shard(number)
    stored, subnormal = np.empty_like(shard), 0
    for start in range(0, len(shard), _RESCALED_ROWS):
        lines = slice(start, start + _RESCALED_ROWS)
        values = widened(shard[lines], torch.float32) * view.scale
        stored[lines], here = to_float16(values.numpy(), exponent, what)
        subnormal += here
    check_subnormals(subnormal, stored.size, name, exponent)
    return stored


def united_label_names(named: Sequence[tuple[str, Mapping[str, str] | None]]) -> dict[str, str] | None:
    """Unite the names of labels.

    Args:
        named: Whose they are, for the message, and names by label; None where none are given.

    Returns:
        Names by label; None where nobody gives any.

    Raises:
        MergeMismatchError: If two call a label by two names.
    """
    names: dict[str, str] = {}
    for what, theirs in named:
        for label, name in (theirs or {}).items():
            if names.setdefault(label, name) != name:
                raise MergeMismatchError(
                    f"{what}: label {label} is called {name!r}, elsewhere {names[label]!r}; labels must mean the same"
                )
    return names or None


def _take_over(draft: Draft, fields: dict[str, Any], indexes: Sequence[Index]) -> list[str]:
    # Weights and queries of the first index that has them.
    notes = []
    owner = next((index for index in indexes if index.has_weights), None)
    if owner is not None:
        draft.keep(owner, WEIGHTS)
    asked = [index for index in indexes if index.manifest.queries is not None]
    if asked:
        fields["queries"] = asked[0].manifest.model_dump(mode="json")["queries"]
        for file in asked[0].manifest.files:
            if file.startswith("queries/"):
                draft.keep(asked[0], file)
        if len(asked) > 1:
            notes.append(f"the queries are those of {asked[0].name!r}")
    return notes
