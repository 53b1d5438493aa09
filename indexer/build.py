"""The build: tangent features → sketches → index directory, in fixed blocks that an interruption cannot spoil."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import JsonValue
from torch import Tensor

from indexer.accuracy import accuracies
from indexer.block_sketcher import BlockSketcher
from indexer.build_report import BuildReport, host_facts, peak_memory_bytes
from indexer.build_settings import BuildSettings, check_target
from indexer.check import refuse_unsound
from indexer.derive import DEFAULT_CODES, DEFAULT_FACTORY, CodesChoice, derive
from indexer.distortion import POOL_ROWS, QUERIES, DistortionError, measure_distortion, sample_rows
from indexer.out_of_memory import is_out_of_memory
from indexer.planned import build_plan
from indexer.preparation import Part, Prepared, check_labels, prepare
from indexer.previews import preview_of
from indexer.progress import Progress, Silent, Stopwatch
from indexer.reading import CollatedRows, ExampleError, ExampleReader, ReadOnce
from indexer.recipe import UNLABELLED
from indexer.training import cpu_threads
from indexer.workers import WorkerJob, Workers, scales_of
from sketchstore.errors import AlreadyPublishedError
from sketchstore.faiss_build import check_factory
from sketchstore.manifest import query_file
from sketchstore.plan import Block
from sketchstore.reader import open_index
from sketchstore.tables import ExampleRow
from sketchstore.writer import IndexWriter


class BuildInterruptedError(RuntimeError):
    """The build stopped because it was asked to; what is finished is kept for ``--resume``."""


def build_index(
    settings: BuildSettings,
    out: str | os.PathLike[str],
    *,
    resume: bool = False,
    overwrite: bool = False,
    faiss: str | None = DEFAULT_FACTORY,
    spectra: bool = True,
    codes: CodesChoice = DEFAULT_CODES,
    progress: Progress | None = None,
    part: Part | None = None,
) -> BuildReport:
    """Build an index directory, or continue an interrupted build.

    Args:
        settings: The user's choices.
        out: Where the index is published; its last part is the index's name.
        resume: Continue the unfinished build there; where there is none, say so and build from the start.
        overwrite: Replace what is there at publication, and discard an unfinished build. Not with ``resume``.
        faiss: FAISS factory string of the derived search indexes; None writes none.
        spectra: Whether to write the derived spectra.
        codes: "int8" writes codes and heads of the views with a partition of more rows than d; "none" writes none.
        progress: Told how far the build is.
        part: Given where the rows are to join an index that is there.

    Returns:
        The report.
    """
    settings.check()
    with cpu_threads(settings.num_threads):
        return _Build(settings, Path(out).absolute(), progress or Silent(), part).run(
            resume, overwrite, faiss, spectra, codes
        )


class _Build:
    """One run of the build; the state that its phases share."""

    def __init__(self, settings: BuildSettings, out: Path, progress: Progress, part: Part | None = None) -> None:
        self.settings = settings
        self.part = part
        self.out = out
        self.progress = progress
        self.watch = Stopwatch()
        self.notes: list[str] = []
        self.built_rows = 0
        self.sketch_seconds = 0.0
        self.gradient_seconds = 0.0

    def run(self, resume: bool, overwrite: bool, faiss: str | None, spectra: bool, codes: CodesChoice) -> BuildReport:
        check_target(self.out, resume=resume, overwrite=overwrite, note=self._note)  # a model may train for hours
        self.progress.phase("loading the recipe, its model and its data", 0)
        with self.watch.phase("prepare"):
            self.prepared = self._prepare()
            self.blocks = BlockSketcher(self.prepared, self._note)
            if faiss is not None:
                check_factory(faiss, self.prepared.spec.dim)  # now, not after hours of sketching
        with self.watch.phase("read"):
            self.train_rows = self._read_once(self.prepared.train)
            check_labels(self.prepared, self.train_rows.labels)
            refuse_unsound(self.prepared)
            queries = self.prepared.queries
            self.query_rows = None if queries is None else self._read_once(queries)
        plan = build_plan(self.prepared, self.out.name, self.train_rows, self.query_rows)
        if self.part is not None:
            self.part.check_plan(plan)
        try:
            with IndexWriter.create(self.out, plan, resume=resume, overwrite=overwrite) as writer:
                self._write(writer)
        except AlreadyPublishedError as error:
            self._note(f"{error} Checking what is derived from it.")
        index = open_index(self.out, check="sizes", derived=False)
        with self.watch.phase("derive"):
            derive(index, faiss=faiss, spectra=spectra, codes=codes, progress=self.progress)
        return self._report(index.revision, index.manifest.distortion)

    def _prepare(self) -> Prepared:
        if self.part is None:
            return prepare(self.settings)
        return prepare(self.settings, self.part.recipe, spec=self.part.spec, parameters=self.part.parameters)

    def _read_once(self, reader: ExampleReader) -> ReadOnce:
        self.progress.phase(f"reading the {reader.split} set", reader.num_rows)
        return reader.read_once(self.prepared.block_rows, on_rows=self.progress.advance)

    def _write(self, writer: IndexWriter) -> None:
        writer.log({"event": "start", "pending_blocks": len(writer.pending_blocks()), **host_facts()})
        self._write_blocks(writer)
        with self.watch.phase("examples"):
            self._write_examples(writer)
        if self.settings.weights and not writer.written("model.safetensors"):
            writer.write_model(self.prepared.model.state_dict())
        with self.watch.phase("queries"):
            self._write_queries(writer)
        with self.watch.phase("distortion"):
            distortion = self._distortion()
        self._pause()
        writer.log(
            {
                "event": "finish",
                "seconds": dict(self.watch.seconds),
                "query_sketch_seconds": self._query_seconds(),
                "accuracy": dict(accuracies(writer.content)),
                **self._rates(),
            }
        )
        self.progress.phase("publishing", 0)
        with self.watch.phase("publish"):
            writer.publish(distortion=distortion)

    # Blocks of training rows

    def _write_blocks(self, writer: IndexWriter) -> None:
        pending = writer.pending_blocks()
        total = self.prepared.train.num_rows
        self.progress.phase("sketching examples", total, done=total - sum(block.rows for block in pending))
        with self.watch.phase("blocks"):
            if self.settings.processes == 1 or len(pending) < 2:
                self._sketch_blocks(writer, pending)
            else:
                self._share_blocks(writer, pending)
        for note in self.prepared.featuriser.features.notes:
            self._note(note)

    def _sketch_blocks(self, writer: IndexWriter, pending: list[Block]) -> None:
        for block in pending:
            self._pause()
            begun = time.perf_counter()
            computed = self.blocks.block(block, self.train_rows.block_digests[block.number], self._labels_are_outputs)
            if writer.scales is None:
                # Block 0 comes first in every build, so the scale does not depend on where one was interrupted.
                writer.set_scales(scales_of(computed.sketches))
            writer.write_block(block, computed.sketches, computed.columns)
            self._finished(writer, block, time.perf_counter() - begun, computed.at_once)
        timed = self.prepared.featuriser.seconds
        self.sketch_seconds, self.gradient_seconds = timed.sketch_seconds, timed.gradient_seconds

    def _share_blocks(self, writer: IndexWriter, pending: list[Block]) -> None:
        job = WorkerJob(
            settings=self.settings,
            plan=writer.plan,
            content=writer.content,
            weights=writer.share_weights(self.prepared.model.state_dict()),
            labels_are_outputs=self._labels_are_outputs,
            chosen=None if self.part is None else self.part.recipe.chosen,
        )
        count = min(self.settings.processes, len(pending))
        with Workers(job, count, note=self._note, stop_requested=self.progress.stop_requested) as workers:
            for done in workers.sketch(pending, self.train_rows.block_digests, writer.scales):
                if writer.scales is None:
                    writer.set_scales(done.scales)
                writer.add_block(done.line)
                self._finished(writer, done.block, done.seconds, done.at_once, done.worker)
                self.sketch_seconds += done.sketch_seconds
                self.gradient_seconds += done.gradient_seconds
        self._pause()

    def _finished(
        self, writer: IndexWriter, block: Block, seconds: float, at_once: int, worker: int | None = None
    ) -> None:
        facts: dict[str, JsonValue] = {"block": block.number, "rows": block.rows, "seconds": round(seconds, 3)}
        if at_once != self.prepared.compute_rows:
            facts["rows_at_once"] = at_once
        if worker is not None:
            facts["worker"] = worker
        writer.log({"event": "block", **facts})
        self.built_rows += block.rows
        self.progress.advance(block.rows)

    @property
    def _views(self) -> list[str]:
        return self.prepared.views

    @property
    def _labels_are_outputs(self) -> bool:
        labels = self.train_rows.labels
        return bool((labels >= 0).all()) and int(labels.max()) < self.prepared.num_outputs

    # Everything else

    def _write_examples(self, writer: IndexWriter) -> None:
        if writer.written("examples.parquet"):
            return
        self._pause()
        reader, prepared = self.prepared.train, self.prepared
        predicted = writer.column("predicted_labels") if prepared.classifies else None
        writer.write_examples(self._example_rows(reader, self.train_rows, predicted))

    def _example_rows(
        self, reader: ExampleReader, once: ReadOnce, predicted: npt.NDArray[np.int64] | None
    ) -> Iterator[ExampleRow]:
        self.progress.phase(f"writing the {reader.split} table", reader.num_rows)
        for row in range(reader.num_rows):
            example = reader.example(row)
            yield ExampleRow(
                id=once.ids[row],
                label=int(once.labels[row]),
                predicted_label=None if predicted is None else int(predicted[row]),
                metadata=reader.metadata(example, row),
                preview=preview_of(reader, example, row) if self.settings.previews else None,
            )
            self.progress.advance(1)

    def _write_queries(self, writer: IndexWriter) -> None:
        reader, once = self.prepared.queries, self.query_rows
        if reader is None or once is None or self._queries_written(writer):
            return
        self._pause()
        prepared = self.prepared
        self.progress.phase("sketching queries", reader.num_rows * len(self._views))
        sketches: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {view: [] for view in self._views}
        predicted = np.full(reader.num_rows, UNLABELLED, dtype=np.int64)
        features: list[Tensor] = []
        for number, rows in enumerate(reader.blocks(self.prepared.block_rows)):
            stop = rows.start + len(rows.examples)
            self.blocks.check_unchanged(reader, rows, once.block_digests[number])
            outputs = self.blocks.outputs(reader, rows)
            guessed = outputs.argmax(1) if self.prepared.classifies else torch.full_like(rows.labels, UNLABELLED)
            predicted[rows.start : stop] = guessed.numpy()
            represented = self.blocks.representations(reader, rows)
            features += [] if represented is None else [represented]
            for view in self._views:
                positions, targets, stored = self._targets(view, rows.labels, guessed)
                chosen = [rows.examples[i] for i in positions]
                some = CollatedRows(rows.start, chosen, prepared.recipe.collate(chosen)[0], targets)
                values = self._sketch_queries(reader, some, positions, targets, view)
                sketches[view].append((values, positions + rows.start, stored))
                self.progress.advance(len(rows.examples))
                self._pause()
        joined = {view: _sorted_by_row(parts, self.prepared.spec.dim) for view, parts in sketches.items()}
        writer.write_queries(
            self._example_rows(reader, once, predicted if self.prepared.classifies else None),
            reader.num_rows,
            joined,
            torch.cat(features).numpy() if features else None,
        )

    def _queries_written(self, writer: IndexWriter) -> bool:
        return writer.written("queries/examples.parquet") and all(writer.written(query_file(v)) for v in self._views)

    def _targets(self, view: str, labels: Tensor, predicted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # Positions, targets to measure at, targets to store: the predicted label, and the true one where it differs.
        everyone = torch.arange(len(labels))
        if self.prepared.measurement.name == "custom":
            return everyone, labels, torch.full_like(labels, UNLABELLED)
        if self.prepared.measurement.name == "class_logit":
            return everyone, labels, self.prepared.measurement.targets(view, labels)
        differs = ((labels != predicted) & (labels >= 0) & (labels < self.prepared.num_outputs)).nonzero().squeeze(1)
        targets = torch.cat((predicted, labels[differs]))
        return torch.cat((everyone, differs)), targets, targets

    def _sketch_queries(
        self, reader: ExampleReader, rows: CollatedRows, positions: Tensor, targets: Tensor, view: str
    ) -> Tensor:
        try:
            return self.blocks.sketch(reader, rows, targets, view, pad=False, compare=True)[0]
        except ExampleError as error:  # its row counts within the chosen positions
            row = rows.start + int(positions[error.row - rows.start])
            raise ExampleError(reader.split, row, error.said) from error

    def _distortion(self) -> JsonValue:
        if self.part is not None:
            return None
        self._pause()
        prepared = self.prepared
        if prepared.spec.family == "identity":
            return {"exact": True, "reason": "identity keeps the gradients: the sketched kernel is the exact one"}
        self.progress.phase("measuring the distortion of the sketched kernel", 0)
        try:
            sample = sample_rows(self.train_rows.labels, prepared.measurement.comparable)
            examples = [prepared.train.example(row) for row in (*sample.pool, *sample.queries)]
            inputs, labels = prepared.recipe.collate(examples)
            view, rows = prepared.views[0], CollatedRows(0, examples, inputs, labels)
            sketches, _ = self.blocks.sketch(prepared.train, rows, labels, view, pad=False)
            return measure_distortion(prepared.featuriser, prepared.train.dataset, sample, view, sketches=sketches)
        except DistortionError as error:
            self._note(str(error))
            return None
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            self._note(
                f"the distortion was not measured: its {POOL_ROWS + QUERIES} exact gradients do not fit into memory"
            )
            return None

    def _pause(self) -> None:
        if self.progress.stop_requested():
            raise BuildInterruptedError(
                f"stopped as asked; finished blocks are kept in {self.out}.partial. Continue with the same command and "
                "--resume"
            )

    def _note(self, message: str) -> None:
        if message not in self.notes:
            self.notes.append(message)
            self.progress.note(message)

    def _query_seconds(self) -> float | None:
        # What a query by example will cost the service; for the index card.
        view, rows = self._views[0], self.prepared.train.collate(0, 1)
        begun = time.perf_counter()
        self.prepared.featuriser.sketch(rows.examples, rows.labels.clamp_min(0), view)
        return round(time.perf_counter() - begun, 6)

    def _rates(self) -> dict[str, float | None]:
        seconds = self.watch.seconds.get("blocks", 0.0)
        busy = self.sketch_seconds + self.gradient_seconds
        return {
            "examples_per_second": self.built_rows / seconds if seconds else None,
            "sketch_share": self.sketch_seconds / busy if busy else None,
        }

    def _report(self, revision: str, distortion: JsonValue) -> BuildReport:
        prepared, rates = self.prepared, self._rates()
        sizes = {path: path.stat().st_size for path in self.out.rglob("*") if path.is_file()}
        return BuildReport(
            path=self.out,
            name=self.out.name,
            revision=revision,
            num_rows=prepared.train.num_rows,
            num_queries=0 if prepared.queries is None else prepared.queries.num_rows,
            sketch_dim=prepared.spec.dim,
            num_parameters=prepared.parameters.num_parameters,
            views=prepared.views,
            dtype=self.settings.dtype,
            sketch_bytes=sum(size for path, size in sizes.items() if path.is_relative_to(self.out / "sketches")),
            total_bytes=sum(sizes.values()),
            built_rows=self.built_rows,
            examples_per_second=rates["examples_per_second"],
            sketch_share=rates["sketch_share"],
            seconds={name: round(seconds, 3) for name, seconds in self.watch.seconds.items()},
            peak_memory_bytes=peak_memory_bytes(),
            accuracy=accuracies(self.out),
            distortion=distortion,
            notes=self.notes,
        )


def _sorted_by_row(
    parts: list[tuple[Tensor, Tensor, Tensor]], dim: int
) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
    if not parts:
        empty = np.empty(0, dtype=np.int64)
        return np.empty((0, dim), dtype=np.float32), empty, empty
    values, rows, targets = (torch.cat(column) for column in zip(*parts, strict=True))
    order = rows.argsort(stable=True)  # the predicted label's sketch stays before the true one's
    return values[order].numpy(), rows[order].numpy(), targets[order].numpy()
