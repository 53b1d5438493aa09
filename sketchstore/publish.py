"""Publication: norms, manifest and digests, everything synced, then one rename that makes the index appear whole."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from pydantic import JsonValue

from sketchstore.arrays import Array, map_npy, map_tensor, npy_header
from sketchstore.digests import digest_file
from sketchstore.errors import IncompleteBuildError, IndexExistsError
from sketchstore.layout import exchange, files_below, folders_below, sync_directory, sync_tree, write_file
from sketchstore.manifest import (
    BUILD_LOG,
    MANIFEST,
    Column,
    FileEntry,
    Labels,
    Manifest,
    Queries,
    Shard,
    Source,
    ViewEntry,
    column_file,
    query_file,
    revision_of,
    shard_file,
)
from sketchstore.norms import mean_squared_norms, squared_norms
from sketchstore.plan import BuildPlan
from sketchstore.storing import storing

PUBLISHING = "publishing.json"
REPLACED = "replaced"
"""Inside `name.partial/`: what had the name, for the moment in which nothing has it."""


def publish(
    partial: Path,
    content: Path,
    target: Path,
    plan: BuildPlan,
    scales: dict[str, int],
    *,
    distortion: JsonValue,
    default_relative_noise: float | None,
    overwrite: bool,
    written: set[str],
) -> Path:
    """Finish a build whose blocks and tables are all written.

    Args:
        partial: ``name.partial``.
        content: The directory inside it that becomes the index.
        target: Where the index is published.
        plan: The build plan.
        scales: Scale exponents by view.
        distortion: For the manifest.
        default_relative_noise: For the manifest.
        overwrite: Whether an index at ``target`` is replaced.
        written: Files that the build wrote; others but the shards are leftovers and are deleted.

    Returns:
        ``target``.

    Raises:
        IndexExistsError: If something is at ``target`` and ``overwrite`` is not set.
    """
    if os.path.lexists(target) and not overwrite:
        raise IndexExistsError(f"{target} exists. Choose another --out, or replace it with --overwrite.")
    shards = {shard_file(view, number) for view in plan.views for number in range(plan.num_shards)}
    for file in files_below(content):
        if file not in written | shards and file != BUILD_LOG:
            (content / file).unlink()
    for folder in sorted(folders_below(content), reverse=True):
        if not any((content / folder).iterdir()):
            (content / folder).rmdir()
    _write_labels(content, plan)
    for view, exponent in scales.items():
        _write_norms(content, plan, view, 2.0**exponent)
    manifest = _manifest(content, plan, scales, distortion, default_relative_noise)
    fields = manifest.model_dump(mode="json")
    fields["revision"] = revision_of(fields)
    Manifest.model_validate(fields)
    write_file(content / MANIFEST, (json.dumps(fields, indent=2, ensure_ascii=False) + "\n").encode())
    sync_tree(content)
    write_file(partial / PUBLISHING, json.dumps({"revision": fields["revision"]}).encode())
    take_name(content, target, partial)
    return target


def take_name(content: Path, target: Path, partial: Path) -> None:
    """Give a finished directory its name in one step; what had the name is deleted.

    Args:
        content: The directory, synced, inside ``partial``.
        target: Its name from now on.
        partial: A folder on the same file system that may hold what had the name.

    Raises:
        OSError: If the system refuses; named by `storing`. What had the name has it still, or again.
    """
    with storing(target):
        if not os.path.lexists(target):
            os.rename(content, target)
        elif not exchange(content, target):
            # No call that swaps: for a moment there is no index here, and a kill in it leaves the old one in .partial.
            os.rename(target, partial / REPLACED)
            try:
                os.rename(content, target)
            except OSError:
                os.rename(partial / REPLACED, target)
                raise
    sync_directory(target.parent)
    shutil.rmtree(content, ignore_errors=True)


def _write_labels(content: Path, plan: BuildPlan) -> None:
    """Write the label columns from the examples table, unless they were written.

    Raises:
        IncompleteBuildError: If labels were written and the table has others.
    """
    table = pq.read_table(content / "examples.parquet", columns=["label", "predicted_label"])
    labels = table.column("label").to_numpy()
    labels_file = column_file("labels")
    if not (content / labels_file).exists():
        _save(content / labels_file, labels.astype(np.int64))
    stored = map_npy(content / labels_file, labels_file, dtype="<i8", shape=(plan.num_rows,))
    wrong = np.flatnonzero(stored != labels)
    if wrong.size:
        row = int(wrong[0])
        raise IncompleteBuildError(
            f"row {row} has label {labels[row]} in examples.parquet and {stored[row]} in {labels_file}"
        )
    predicted = table.column("predicted_label")
    if predicted.null_count == 0 and not (content / column_file("predicted_labels")).exists():
        _save(content / column_file("predicted_labels"), predicted.to_numpy().astype(np.int64))


def _save(path: Path, values: Array) -> None:
    write_file(path, npy_header(values.dtype, values.shape) + values.tobytes())


def _write_norms(content: Path, plan: BuildPlan, view: str, scale: float) -> None:
    norms = np.empty(plan.num_rows)
    for number in range(plan.num_shards):
        file = shard_file(view, number)
        stored = map_tensor(content / file, file, "sketches", dtype=plan.dtype)
        start = number * plan.build.shard_rows
        norms[start : start + len(stored)] = squared_norms(stored, scale)
    _save(content / column_file(f"squared_norms.{view}"), norms)


def _manifest(
    content: Path,
    plan: BuildPlan,
    scales: dict[str, int],
    distortion: JsonValue,
    default_relative_noise: float | None,
) -> Manifest:
    files = {
        file: FileEntry(bytes=(content / file).stat().st_size, blake3=digest_file(content / file))
        for file in files_below(content)
        if file != BUILD_LOG
    }
    labels_file = column_file("labels")
    labels = map_npy(content / labels_file, labels_file)
    views = {}
    for view, comparable in plan.views.items():
        file = column_file(f"squared_norms.{view}")
        mean, by_label = mean_squared_norms(map_npy(content / file, file), labels)
        views[view] = ViewEntry(
            scale_exponent=scales[view],
            comparable=comparable,
            mean_squared_norm=mean,
            mean_squared_norm_by_label=by_label,
            shards=tuple(
                Shard(file=shard_file(view, number), rows=plan.shard_size(number)) for number in range(plan.num_shards)
            ),
        )
    columns = {}
    for file in files:
        if file.startswith("columns/"):
            array = map_npy(content / file, file)
            name = file.removeprefix("columns/").removesuffix(".npy")
            columns[name] = Column.model_validate({"dtype": array.dtype.name, "shape": array.shape})
    queries = None
    if "queries/examples.parquet" in files:
        count = pq.ParquetFile(content / "queries/examples.parquet").metadata.num_rows
        sketched = {}
        for view in plan.views:
            if (file := query_file(view)) in files:
                sketched[view] = len(map_tensor(content / file, file, "sketches"))
        queries = Queries(count=count, sketches=sketched)
    values, counts = np.unique(labels[labels >= 0], return_counts=True)
    return Manifest(
        format="nattribute-index",
        format_version=2,
        name=plan.name,
        revision="0" * 32,  # replaced once everything it digests is there
        num_rows=plan.num_rows,
        sketch_dim=plan.sketch.dim,
        dtype=plan.dtype,
        sketch=plan.sketch,
        measurement=plan.measurement,
        views=views,
        labels=Labels(
            counts={str(value): int(count) for value, count in zip(values, counts, strict=True)},
            names=plan.label_names,
        ),
        columns=columns,
        recipe=plan.recipe,
        build=plan.build,
        digests=plan.digests,
        default_relative_noise=default_relative_noise,
        distortion=distortion,
        queries=queries,
        files=files,
        sources=(
            Source(
                recipe=plan.recipe,
                first_row=0,
                rows=plan.num_rows,
                block_rows=plan.build.block_rows,
                id_prefix=str(plan.build.options.get("id_prefix", "")),
                data_order=plan.digests.data_order,
            ),
        ),
    )
