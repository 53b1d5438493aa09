"""Small real index directories for the tests of every part: made by the writer, opened by the reader."""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sketchstore.digests import digest_file
from sketchstore.float16 import scale_exponent_for
from sketchstore.layout import files_below
from sketchstore.manifest import Build, Measurement, Recipe, Sketch, SourceDigests, revision_of
from sketchstore.plan import BuildPlan
from sketchstore.reader import Index, open_index
from sketchstore.tables import ExampleRow
from sketchstore.writer import IndexWriter

MEASUREMENTS = {"own": "label_logit", "margin": "margin", "custom": "custom"}


@dataclass(frozen=True)
class Contents:
    """What make_index wrote, before rounding to the storage type: sketches float32 in true units by view."""

    sketches: dict[str, np.ndarray]
    labels: np.ndarray
    query_sketches: dict[str, np.ndarray]  # [M, d] by view, M = (query, target) pairs
    query_rows: dict[str, np.ndarray]
    target_labels: dict[str, np.ndarray]


def views_of(view: str, num_classes: int) -> dict[str, str]:
    """Views and their comparability for "own", "margin", "custom" or "class" (one view per class)."""
    if view == "class":
        return {str(label): "all" for label in range(num_classes)}
    return {view: "label" if view == "own" else "all"}


def make_plan(
    *,
    name: str = "small",
    view: str = "own",
    num_rows: int = 60,
    dim: int = 16,
    num_classes: int = 3,
    dtype: str = "float32",
    block_rows: int = 16,
    shard_rows: int = 32,
    seed: int = 0,
    **changes: Any,
) -> BuildPlan:
    """A build plan; ``changes`` replace whole fields."""
    fields: dict[str, Any] = {
        "name": name,
        "num_rows": num_rows,
        "dtype": dtype,
        "views": views_of(view, num_classes),
        "sketch": Sketch(family="gaussian", seed=seed, dim=dim, num_parameters=100),
        "measurement": Measurement(name=MEASUREMENTS.get(view, "class_logit")),
        "recipe": Recipe(name="factory", builtin=False),
        "build": Build(block_rows=block_rows, shard_rows=shard_rows, compute_rows=8, versions={"factory": "1"}),
        "digests": SourceDigests(weights="a" * 64, data_order="b" * 64),
        "label_names": {str(label): f"class {label}" for label in range(num_classes)},
    }
    return BuildPlan(**(fields | changes))


def png(shade: int) -> bytes:
    """A 4 × 4 grey PNG."""
    buffer = io.BytesIO()
    Image.new("L", (4, 4), shade % 256).save(buffer, format="PNG")
    return buffer.getvalue()


def make_contents(plan: BuildPlan, *, num_queries: int = 6, num_classes: int = 3, seed: int = 0) -> Contents:
    """Random sketches with norms that vary and a shared direction per label, so that selections mean something."""
    rng = np.random.default_rng(seed)
    n, d = plan.num_rows, plan.sketch.dim
    labels = np.arange(n, dtype=np.int64) % num_classes
    rng.shuffle(labels)
    centres = rng.standard_normal((num_classes, d))
    sketches, queries, rows, targets = {}, {}, {}, {}
    for view in plan.views:
        norms = rng.lognormal(0.0, 0.3, (n, 1))
        sketches[view] = ((rng.standard_normal((n, d)) + centres[labels]) * norms).astype(np.float32)
        pairs = _query_targets(view, num_queries, num_classes)
        rows[view], targets[view] = (np.array(column, dtype=np.int64) for column in zip(*pairs, strict=True))
        towards = centres[np.maximum(targets[view], 0)]
        queries[view] = (rng.standard_normal((len(pairs), d)) + towards).astype(np.float32)
    return Contents(sketches, labels, queries, rows, targets)


def _query_targets(view: str, num_queries: int, num_classes: int) -> list[tuple[int, int]]:
    if view in ("own", "margin"):  # the predicted label, and the true one where it differs (every third query)
        pairs = [(row, row % num_classes) for row in range(num_queries)]
        return sorted(pairs + [(row, (row + 1) % num_classes) for row in range(0, num_queries, 3)])
    target = int(view) if view.isdigit() else -1
    return [(row, target) for row in range(num_queries)]


def train_rows(labels: np.ndarray, previews: bool = True) -> list[ExampleRow]:
    """Examples "train:0"…; metadata source (web/book), length (int), weight (float); image previews."""
    return [
        ExampleRow(
            id=f"train:{row}",
            label=int(label),
            predicted_label=int(label),
            metadata={"source": "web" if row % 2 else "book", "length": row % 7, "weight": row / 4},
            preview=png(row) if previews else None,
        )
        for row, label in enumerate(labels)
    ]


def query_examples(num_queries: int, num_classes: int) -> list[ExampleRow]:
    """Queries "query:0"…: predicted label row mod classes; the true label differs for every third."""
    return [
        ExampleRow(
            id=f"query:{row}",
            label=(row + (row % 3 == 0)) % num_classes,
            predicted_label=row % num_classes,
            preview=f"query {row}",
        )
        for row in range(num_queries)
    ]


def write_contents(
    writer: IndexWriter,
    contents: Contents,
    *,
    num_queries: int = 6,
    num_classes: int = 3,
    query_representations: np.ndarray | None = None,
    previews: Sequence[Any] | None = None,
) -> None:
    """Everything but publication, only what is still pending; ``previews`` replace the images."""
    if writer.scales is None:
        writer.set_scales({view: scale_exponent_for(values) for view, values in contents.sketches.items()})
    for block in writer.pending_blocks():
        rows = slice(block.start, block.stop)
        writer.write_block(block, {view: values[rows] for view, values in contents.sketches.items()})
    rows = train_rows(contents.labels, previews is None)
    if previews is not None:
        rows = [replace(row, preview=preview) for row, preview in zip(rows, previews, strict=True)]
    writer.write_examples(rows)
    if num_queries:
        writer.write_queries(
            query_examples(num_queries, num_classes),
            num_queries,
            {
                view: (contents.query_sketches[view], contents.query_rows[view], contents.target_labels[view])
                for view in contents.sketches
            },
            query_representations,
        )


def make_index(
    tmp_path: Path,
    *,
    name: str = "small",
    view: str = "own",
    num_rows: int = 60,
    dim: int = 16,
    num_classes: int = 3,
    num_queries: int = 6,
    dtype: str = "float32",
    seed: int = 0,
    sketches: Mapping[str, np.ndarray] | None = None,
    labels: np.ndarray | None = None,
    default_relative_noise: float | None = None,
    columns: Mapping[str, np.ndarray] | None = None,
    representations: int | None = None,
    faiss: str | None = None,
    previews: Sequence[Any] | None = None,
    **plan_changes: Any,
) -> Index:
    """Write, publish and open a small index at tmp_path/name.

    ``view``: "own", "margin", "custom" or "class" (one view per class). ``sketches`` (float32 [n, d] by view) and
    ``labels`` replace the random ones. ``representations``: also penultimate features of so many values.
    ``faiss``: also write derived FAISS indexes with this factory string. ``previews``: one for each row.
    """
    if sketches is not None:
        num_rows, dim = next(iter(sketches.values())).shape
    plan = make_plan(
        name=name,
        view=view,
        num_rows=num_rows,
        dim=dim,
        num_classes=num_classes,
        dtype=dtype,
        seed=seed,
        **plan_changes,
    )
    contents = make_contents(plan, num_queries=max(1, num_queries), num_classes=num_classes, seed=seed)
    if sketches is not None:
        contents.sketches.update({key: np.asarray(value, np.float32) for key, value in sketches.items()})
    if labels is not None:
        contents.labels[:] = labels
    with IndexWriter.create(tmp_path / name, plan) as writer:
        features = np.random.default_rng(seed + 1).random((num_rows + num_queries, representations or 1), np.float32)
        write_contents(
            writer,
            contents,
            num_queries=num_queries,
            num_classes=num_classes,
            query_representations=features[num_rows:] if representations else None,
            previews=previews,
        )
        one_minus_p = np.linspace(0.0, 0.9, num_rows)
        represented = {"representations": features[:num_rows]} if representations else {}
        writer.write_columns({"one_minus_p": one_minus_p, **represented, **(columns or {})})
        path = writer.publish(default_relative_noise=default_relative_noise)
    index = open_index(path)
    if faiss is not None:
        from sketchstore.faiss_build import write_faiss

        for each in index.views.values():
            for label in each.partitions:
                write_faiss(index, each.name, label, faiss)
    return index


def resign(path: Path, changes: Mapping[str, Any] | None = None) -> None:
    """Make a manifest agree with the files that are there now, as a writer with a bug would have published them.

    ``changes`` replace fields of the manifest before its revision is computed.
    """
    manifest = json.loads((path / "manifest.json").read_text("utf-8"))
    manifest["files"] = {
        file: {"bytes": (path / file).stat().st_size, "blake3": digest_file(path / file)}
        for file in files_below(path)
        if file not in ("manifest.json", "build-log.jsonl") and not file.startswith("derived/")
    }
    manifest |= changes or {}
    manifest["revision"] = revision_of(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest, indent=2), "utf-8")
