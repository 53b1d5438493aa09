"""What is wrong with an index directory, as a stream of errors: opening raises the first, verifying lists them all."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
import pyarrow.compute as pc
import torch

from sketchstore.arrays import Array, map_npy
from sketchstore.derived_inspection import find_derived_damage
from sketchstore.errors import (
    CorruptIndexError,
    ExampleTableError,
    ExtraFileError,
    LabelMismatchError,
    ManifestError,
    MissingFileError,
    NormMismatchError,
    NotFiniteValueError,
    RowCountError,
    SymbolicLinkError,
)
from sketchstore.examples import ExampleTable
from sketchstore.first_use import PublishedFiles, check_file
from sketchstore.layout import files_below, folders_below, links_below
from sketchstore.manifest import (
    BUILD_LOG,
    DERIVED,
    MANIFEST,
    NO_LABEL,
    QUERY_REPRESENTATIONS,
    Manifest,
    column_file,
    query_file,
    read_manifest,
)
from sketchstore.norms import mean_squared_norms, squared_norms
from sketchstore.queries import QueryStore
from sketchstore.view import View

Depth = Literal["sizes", "use", "digests", "values"]
NORM_TOLERANCE = 1e-12  # float64 sums of the same values in another order


@dataclass(frozen=True)
class Damage:
    """One thing wrong with an index directory."""

    file: str
    kind: str
    message: str


def find_damage(path: Path, depth: Depth, derived: bool = True) -> Iterator[CorruptIndexError]:
    """Everything wrong with an index directory, as far as ``depth`` looks.

    Args:
        path: The index directory.
        depth: "sizes" looks at the manifest, lengths, norms and labels; "use" also compares the digests of norms and
            labels, and what is derived without reading it; "digests" reads every byte once; "values" also looks at
            the values.
        derived: Whether to look below derived/ (never at depth "sizes").

    Yields:
        One error per damage, each naming its file.
    """
    try:
        manifest = read_manifest(path)
    except (ManifestError, MissingFileError) as unreadable:
        yield unreadable
        return
    bad: set[str] = set()
    for error in _file_damage(path, manifest, depth):
        bad.add(error.file)
        yield error
    for needed, inspect in _inspections(path, manifest, depth):
        if bad.isdisjoint(needed):
            for error in _collect(inspect):
                bad.add(error.file)
                yield error
    if derived and depth != "sizes" and (path / DERIVED).is_dir():
        views = (shard.file for view in manifest.views.values() for shard in view.shards)
        sound = bad.isdisjoint(views)
        yield from find_derived_damage(path, manifest, digests=depth != "use", values=depth == "values" and sound)


def _collect(inspect: Callable[[], Iterator[CorruptIndexError]]) -> Iterator[CorruptIndexError]:
    try:
        yield from inspect()
    except CorruptIndexError as error:
        yield error


def _file_damage(path: Path, manifest: Manifest, depth: Depth) -> Iterator[CorruptIndexError]:
    for file in links_below(path):
        yield SymbolicLinkError(file, "is a symbolic link; an index directory holds its files itself")
    folders = {DERIVED} | {str(parent) for file in manifest.files for parent in PurePosixPath(file).parents}
    for folder in folders_below(path):
        if folder not in folders and not folder.startswith(f"{DERIVED}/"):
            yield ExtraFileError(folder, "is a folder in which no file of this index lies; move it out")
    for file in files_below(path):
        known = file in manifest.files or file in (MANIFEST, BUILD_LOG) or file.startswith(f"{DERIVED}/")
        if not known:
            yield ExtraFileError(file, "is not a file of this index; move it out of the directory")
    small = {column_file(name) for name in ("labels", *(f"squared_norms.{view}" for view in manifest.views))}
    digested = set(manifest.files) if depth in ("digests", "values") else small if depth == "use" else set()
    for file in manifest.files:
        try:
            check_file(path, manifest.files, file, digest=file in digested)
        except CorruptIndexError as error:
            yield error


def _inspections(
    path: Path, manifest: Manifest, depth: Depth
) -> Iterator[tuple[set[str], Callable[[], Iterator[CorruptIndexError]]]]:
    # Pairs of the files an inspection reads and the inspection: it is left out when one of them is damaged.
    labels_file = column_file("labels")
    yield {labels_file}, lambda: _label_damage(path, manifest)
    for name in manifest.views:
        norms = {labels_file, column_file(f"squared_norms.{name}")}
        yield norms, lambda name=name: _norm_damage(path, manifest, name)  # type: ignore[misc]
        if depth in ("digests", "values"):
            shards = {shard.file for shard in manifest.views[name].shards}
            yield norms | shards, lambda name=name: _sketch_damage(path, manifest, name, depth)  # type: ignore[misc]
    if depth in ("sizes", "use"):
        return
    for name in manifest.columns:
        yield {column_file(name)}, lambda name=name: _column_damage(path, manifest, name, depth)  # type: ignore[misc]
    files = PublishedFiles(path)  # read above
    train = ExampleTable(files, "examples.parquet", manifest.num_places, "train")  # the removed lines are checked too
    yield {"examples.parquet", labels_file}, lambda: _example_damage(train, "examples.parquet", path, manifest, depth)
    if manifest.queries is None:
        return
    store = QueryStore(files, manifest.queries, manifest.sketch_dim)
    file = "queries/examples.parquet"
    yield {file}, lambda: _example_damage(store.examples, file, path, manifest, depth)
    for name in manifest.queries.sketches:
        yield {query_file(name)}, lambda name=name: _query_damage(store, name, depth)  # type: ignore[misc]
    if QUERY_REPRESENTATIONS in manifest.files:
        yield {QUERY_REPRESENTATIONS}, lambda: _representation_damage(store, depth)


def _label_damage(path: Path, manifest: Manifest) -> Iterator[CorruptIndexError]:
    file = column_file("labels")
    labels = map_npy(path / file, file, dtype="<i8", shape=(manifest.num_places,))
    if int(labels.min()) < NO_LABEL:
        yield LabelMismatchError(file, f"holds label {int(labels.min())}; labels are 0 or more, and -1 for none")
        return
    kept = manifest.kept.take(labels)
    values, counts = np.unique(kept[kept != NO_LABEL], return_counts=True)
    found = {str(value): int(count) for value, count in zip(values, counts, strict=True)}
    for label in sorted(set(found) | set(manifest.labels.counts), key=int):
        if found.get(label) != manifest.labels.counts.get(label):
            counted = manifest.labels.counts.get(label, 0)
            yield LabelMismatchError(
                file, f"has {found.get(label, 0)} rows of label {label}, the manifest says {counted}"
            )


def _norm_damage(path: Path, manifest: Manifest, name: str) -> Iterator[CorruptIndexError]:
    file, labels_file = column_file(f"squared_norms.{name}"), column_file("labels")
    norms = map_npy(path / file, file, dtype="<f8", shape=(manifest.num_places,))
    if (bad := _first_not_finite(norms)) is not None or norms.min() < 0:
        yield NotFiniteValueError(file, f"row {bad if bad is not None else int(norms.argmin())} is {norms[bad or 0]}")
        return
    labels = map_npy(path / labels_file, labels_file, dtype="<i8", shape=(manifest.num_places,))
    kept = manifest.kept
    mean, by_label = mean_squared_norms(kept.take(norms), kept.take(labels))
    entry = manifest.views[name]
    stated = {"all rows": entry.mean_squared_norm} | {
        f"label {label}": value for label, value in entry.mean_squared_norm_by_label.items()
    }
    found = {"all rows": mean} | {f"label {label}": value for label, value in by_label.items()}
    for rows, value in stated.items():
        if not math.isclose(found.get(rows, math.nan), value, rel_tol=NORM_TOLERANCE):
            yield NormMismatchError(file, f"mean over {rows} is {found.get(rows)}, the manifest says {value}")


def _sketch_damage(path: Path, manifest: Manifest, name: str, depth: Depth) -> Iterator[CorruptIndexError]:
    view = View(PublishedFiles(path), manifest, name, torch.empty(0, dtype=torch.int64))
    file = column_file(f"squared_norms.{name}")
    stated = map_npy(path / file, file, dtype="<f8", shape=(manifest.num_places,))
    start = 0
    for number, shard in enumerate(manifest.views[name].shards):
        stored = view.shard(number)
        if depth == "values":
            norms = squared_norms(stored, view.scale)
            difference = np.abs(norms - stated[start : start + shard.rows])
            wrong = np.flatnonzero(difference > NORM_TOLERANCE * norms)
            if (bad := _first_not_finite(norms)) is not None:
                yield NotFiniteValueError(shard.file, f"row {start + bad} of view {name!r} is not finite")
            elif wrong.size:
                yield NormMismatchError(
                    file,
                    f"row {start + int(wrong[0])}: the stored sketch has squared norm {norms[wrong[0]]}",
                )
        start += shard.rows


def _column_damage(path: Path, manifest: Manifest, name: str, depth: Depth) -> Iterator[CorruptIndexError]:
    file, column = column_file(name), manifest.columns[name]
    values = map_npy(path / file, file, dtype=column.dtype, shape=column.shape)
    if depth == "values" and not name.startswith("squared_norms."):
        flat = values.reshape(values.shape[0], -1).sum(axis=1, dtype=np.float64)
        if (bad := _first_not_finite(flat)) is not None:
            yield NotFiniteValueError(file, f"row {bad} is not finite")


def _first_not_finite(values: Array) -> int | None:
    bad = np.flatnonzero(~np.isfinite(values))
    return int(bad[0]) if bad.size else None


def _example_damage(
    table: ExampleTable, file: str, path: Path, manifest: Manifest, depth: Depth
) -> Iterator[CorruptIndexError]:
    table.parquet  # noqa: B018 -- opening checks columns and row count
    if depth != "values":
        return
    rows = table.column("row").to_numpy()
    if table.column("row").null_count or not np.array_equal(rows, np.arange(table.count)):
        yield RowCountError(file, "column row is not 0, 1, 2, …")
    ids = table.column("id")
    if ids.null_count or pc.count_distinct(ids).as_py() != table.count:
        yield ExampleTableError(file, "column id has empty or repeated ids")
    labels = table.column("label")
    if labels.null_count:
        yield LabelMismatchError(file, "column label has empty values; -1 stands for no label")
    elif table.split == "train":
        labels_file = column_file("labels")
        stored = map_npy(path / labels_file, labels_file, dtype="<i8", shape=(manifest.num_places,))
        wrong = np.flatnonzero(labels.to_numpy() != stored)
        if wrong.size:
            yield LabelMismatchError(file, f"row {int(wrong[0])} has another label than {labels_file}")


def _representation_damage(store: QueryStore, depth: Depth) -> Iterator[CorruptIndexError]:
    values = store.representations()
    if depth == "values" and (bad := _first_not_finite(values.sum(axis=1, dtype=np.float64))) is not None:
        yield NotFiniteValueError(QUERY_REPRESENTATIONS, f"row {bad} is not finite")


def _query_damage(store: QueryStore, name: str, depth: Depth) -> Iterator[CorruptIndexError]:
    yield from store.damage(name)
    sketches, _, _ = store.arrays(name)
    if depth == "values" and (bad := _first_not_finite(squared_norms(sketches, 1.0))) is not None:
        yield NotFiniteValueError(query_file(name), f"sketch {bad} is not finite")
