"""An index pass with its store: rows are sketched block by block and written as a build writes them, up to publication.

Every block is sketched, compared with some of its rows alone and gets its columns (predictions, 1 − p of the label,
representations), is put into its shard, synced to the disk and journaled before the next one is begun; then the table
of examples, norms and manifest follow, and the directory gets its name. What a build stores beside that (weights,
previews, queries, derived files) is no part of the pass.
"""

import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.measuring import timed
from indexer.batch_rows import batches_of
from indexer.batches import Batch, take_rows
from indexer.block_sketcher import Columns, prediction_columns
from indexer.featurise import COMPUTE_ROWS, Featuriser
from indexer.measurement import Measurement as Scalar
from indexer.planned import BUILD_VERSION
from indexer.rows_alone import compare_alone
from indexer.workers import scales_of
from sketchstore.manifest import Build, Measurement, Parameter, Recipe, Sketch, SourceDigests
from sketchstore.plan import BuildPlan, shard_rows_for
from sketchstore.tables import ExampleRow
from sketchstore.writer import IndexWriter


def the_view(measurement: Scalar) -> str:
    """Name the view of a measurement that has one.

    Args:
        measurement: Not class_logit.

    Returns:
        Its name.
    """
    (view,) = measurement.views(1)
    return view


def pass_plan(featuriser: Featuriser, num_rows: int, name: str) -> BuildPlan:
    """Say what index a pass writes: float32 in blocks of 1,024 rows, as a build's defaults are.

    Args:
        featuriser: What sketches.
        num_rows: Rows of the index.
        name: Its name.

    Returns:
        The plan; its digests are of nothing, for no query will ever be compared with these rows.
    """
    spec = featuriser.spec
    return BuildPlan(
        name=name,
        num_rows=num_rows,
        dtype="float32",
        views={the_view(featuriser.measurement): featuriser.measurement.comparable},
        sketch=Sketch(
            family=spec.family,
            seed=spec.seed,
            dim=spec.dim,
            num_parameters=featuriser.parameters.num_parameters,
            parameters=tuple(
                Parameter(name=parameter.name, shape=parameter.shape, ntk_scale=parameter.ntk_scale)
                for parameter in featuriser.parameters
            ),
            options=dict(spec.options),
        ),
        measurement=Measurement(name=featuriser.measurement.name),
        recipe=Recipe(name="benchmark", builtin=False),
        build=Build(
            block_rows=min(COMPUTE_ROWS, num_rows),
            shard_rows=shard_rows_for(min(COMPUTE_ROWS, num_rows), spec.dim, "float32"),
            compute_rows=featuriser.compute_rows,
            versions={"build": BUILD_VERSION},
        ),
        digests=SourceDigests(weights="0" * 64, data_order="0" * 64),
    )


def store_pass(
    featuriser: Featuriser,
    represented: Callable[[Batch], Tensor | None],
    inputs: Batch,
    labels: Tensor,
    out: Path,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Sketch rows and publish them as an index directory.

    Args:
        featuriser: What sketches.
        represented: Penultimate features [b, k] of a batch; None where there are none.
        inputs: A collated batch of all rows.
        labels: Their labels, shape [n].
        out: Where the directory will be; there must be nothing.
        clock: What seconds are read from.

    Returns:
        Seconds of the model and the sketch alone; the others go into the store.
    """
    plan = pass_plan(featuriser, len(labels), out.name)
    view = the_view(featuriser.measurement)
    sketching = 0.0

    def in_parts(rows: Batch, count: int) -> list[Batch]:
        at_once = featuriser.compute_rows
        return [take_rows(rows, start, min(start + at_once, count)) for start in range(0, count, at_once)]

    def computed(rows: Batch, own: Tensor) -> tuple[Tensor, Columns]:
        kept = featuriser.sketch_and_keep(rows, own, view)
        batches = batches_of(len(own), featuriser.compute_rows)
        compared = compare_alone(
            featuriser, kept, own, view, batches, lambda row: take_rows(rows, row, row + 1), drawn_by=0
        )
        assert compared.changed is None
        outputs, features = kept.outputs, kept.given
        outputs = featuriser.outputs_batch(rows) if outputs is None else outputs
        columns = prediction_columns(outputs, own) if outputs.ndim == 2 else {}
        if features is None:
            with torch.no_grad():
                parts = [represented(part) for part in in_parts(rows, len(own))]
            found = [part for part in parts if part is not None]
            features = torch.cat(found) if found else None
        if features is not None:
            columns["representations"] = features.numpy()
        return kept.sketches, columns

    with IndexWriter.create(out, plan) as writer:
        for block in plan.blocks():
            rows, own = take_rows(inputs, block.start, block.stop), labels[block.start : block.stop]
            seconds, (values, columns) = timed(lambda rows=rows, own=own: computed(rows, own), clock)  # type: ignore[misc]
            sketching += seconds
            if writer.scales is None:
                writer.set_scales(scales_of({view: values}))
            writer.write_block(block, {view: values}, columns)
        writer.write_examples(ExampleRow(id=f"train:{row}", label=int(label)) for row, label in enumerate(labels))
        writer.publish()
    return sketching
