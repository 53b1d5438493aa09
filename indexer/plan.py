"""Says what a build would take before it takes it: rows, bytes, time from a probe batch, and which sketch to choose."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

from indexer.build_settings import BuildSettings
from indexer.derive import codes_pay, heads_pay
from indexer.featurise import Featuriser
from indexer.preparation import DEFAULT_DIM, Prepared, prepare
from indexer.progress import Progress, Silent
from indexer.sketches import SketchSpec
from indexer.sketches.kronecker_plan import part_lines
from indexer.sketches.spec import DEFAULT_BUCKETS
from indexer.training import cpu_threads
from sketchstore.heads import heads_bytes

PROBE_ROWS = 128
SLOW_QUERY_SECONDS = 1.0


@dataclass(frozen=True)
class PlanReport:
    """What a build would take.

    Attributes:
        recipe: Name of the recipe.
        num_rows: Training rows.
        num_queries: Query rows.
        num_parameters: P.
        measurement: Name of the measurement.
        views: Names of the views.
        family: Sketch family.
        sketch_dim: d.
        dtype: Storage type.
        block_rows: Rows per block.
        compute_rows: Rows that go through model and sketch together, as the memory budget allows.
        num_blocks: Blocks.
        sketch_bytes: Bytes of ``sketches/``.
        query_bytes: Bytes of the query sketches.
        faiss_bytes: Bytes of a Flat FAISS index.
        spectra_bytes: Bytes of the spectra; labels that are unknown before the data are read count as equally frequent.
        codes_bytes: Bytes of the 8-bit codes; 0 where partitions have at most d rows, on average over the labels.
        heads_bytes: Bytes of the heads, which are written where the codes are and d is large enough.
        model_bytes: Bytes of the weights.
        model_source: Where the model came from: ``training``, which filled the cache, ``cache``, or the ``recipe``.
        model_seconds: What training or loading it took here.
        block_seconds: Estimated time of one block, all views.
        build_seconds: Estimated time of all blocks and queries, and of the model where a build has to make it again.
        query_sketch_seconds: What sketching one query by example costs.
        sjlt_query_sketch_seconds: The same with an sjlt sketch of this dimension; None where it was not asked.
        parts: What the d numbers of a kronecker sketch are made of, a line each; empty for other families.
        notes: Routes of the gradients.
        advice: What to choose instead, and why; empty where nothing is better.
    """

    recipe: str
    num_rows: int
    num_queries: int
    num_parameters: int
    measurement: str
    views: list[str]
    family: str
    sketch_dim: int
    dtype: str
    block_rows: int
    compute_rows: int
    num_blocks: int
    sketch_bytes: int
    query_bytes: int
    faiss_bytes: int
    spectra_bytes: int
    codes_bytes: int
    heads_bytes: int
    model_bytes: int
    model_source: str
    model_seconds: float
    block_seconds: float
    build_seconds: float
    query_sketch_seconds: float
    sjlt_query_sketch_seconds: float | None
    parts: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    advice: list[str] = field(default_factory=list)

    @property
    def total_bytes(self) -> int:
        """Bytes of the whole directory, without previews and columns."""
        derived_bytes = self.faiss_bytes + self.spectra_bytes + self.codes_bytes + self.heads_bytes
        return self.sketch_bytes + self.query_bytes + derived_bytes + self.model_bytes

    def as_json(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return {**asdict(self), "total_bytes": self.total_bytes}


def plan_build(settings: BuildSettings, *, progress: Progress | None = None) -> PlanReport:
    """Estimate a build from a probe batch. Trains the model if nothing is cached.

    Sketching b rows takes about s + b·t: s for the random numbers, which a batch shares, t for a row's gradient and
    products. One row and ``PROBE_ROWS`` rows give both.

    Args:
        settings: The choices the build would be made with.
        progress: Told what is being measured.

    Returns:
        The report.
    """
    progress = progress or Silent()
    with cpu_threads(settings.num_threads):
        progress.phase("loading the recipe, its model and its data", 0)
        prepared = prepare(settings)
        progress.phase("sketching a probe batch", 0)
        alone, per_row = probe(prepared, prepared.featuriser)
        sjlt_seconds = None
        if alone > SLOW_QUERY_SECONDS and prepared.spec.family in ("rademacher", "gaussian"):
            sjlt_seconds = _sjlt_seconds(prepared)
    return _report(prepared, alone, per_row, sjlt_seconds)


def probe(prepared: Prepared, featuriser: Featuriser) -> tuple[float, float]:
    """Measure what one row takes alone, and what each further row adds.

    Args:
        prepared: The recipe.
        featuriser: What sketches.

    Returns:
        Seconds of one row, and seconds per further row; one view.
    """
    view = prepared.views[0]
    count = min(PROBE_ROWS, prepared.train.num_rows)
    rows = prepared.train.collate(0, count)
    featuriser.sketch(rows.examples[:1], rows.labels[:1], view)  # compiles kernels, chooses routes
    alone = min(_seconds(lambda: featuriser.sketch(rows.examples[:1], rows.labels[:1], view)) for _ in range(2))
    if count == 1:
        return alone, alone
    together = _seconds(lambda: featuriser.sketch(rows.examples, rows.labels, view))
    return alone, max(0.0, together - alone) / (count - 1)


def _seconds(work: Any) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def _sjlt_seconds(prepared: Prepared) -> float | None:
    if prepared.spec.dim % DEFAULT_BUCKETS:
        return None
    spec = SketchSpec("sjlt", prepared.spec.dim, prepared.spec.seed)
    featuriser = Featuriser(
        prepared.recipe,
        prepared.model,
        spec,
        prepared.measurement,
        prepared.parameters,
        device=prepared.settings.device,
        num_threads=prepared.settings.num_threads,
    )
    rows, view = prepared.train.collate(0, 1), prepared.views[0]
    featuriser.sketch(rows.examples, rows.labels, view)
    return _seconds(lambda: featuriser.sketch(rows.examples, rows.labels, view))


def _report(prepared: Prepared, alone: float, per_row: float, sjlt_seconds: float | None) -> PlanReport:
    settings, spec, num_rows = prepared.settings, prepared.spec, prepared.train.num_rows
    views = len(prepared.views)
    num_blocks = -(-num_rows // prepared.block_rows)
    batches = -(-prepared.block_rows // prepared.compute_rows)
    block_seconds = views * (batches * alone + prepared.block_rows * per_row)
    num_queries = 0 if prepared.queries is None else prepared.queries.num_rows
    query_batches = -(-num_queries // prepared.compute_rows)
    # A query is sketched at the label the model gives it and, where that is wrong, at the true one.
    query_seconds = views * query_batches * (alone + prepared.compute_rows * per_row)
    classes = prepared.num_outputs if prepared.measurement.comparable == "label" else 1
    side = min(num_rows // classes, spec.dim)
    itemsize = np.dtype(settings.dtype).itemsize
    model_bytes = sum(tensor.numel() * tensor.element_size() for tensor in prepared.model.state_dict().values())
    return PlanReport(
        recipe=prepared.recipe.name,
        num_rows=num_rows,
        num_queries=num_queries,
        num_parameters=prepared.parameters.num_parameters,
        measurement=prepared.measurement.name,
        views=prepared.views,
        family=spec.family,
        sketch_dim=spec.dim,
        dtype=settings.dtype,
        block_rows=prepared.block_rows,
        compute_rows=prepared.compute_rows,
        num_blocks=num_blocks,
        sketch_bytes=views * num_rows * spec.dim * itemsize,
        query_bytes=views * num_queries * spec.dim * 4,
        faiss_bytes=views * num_rows * spec.dim * 4,
        spectra_bytes=views * classes * (2 * side * side + side) * 8,
        codes_bytes=views * num_rows * (spec.dim + 16) if codes_pay(num_rows // classes, spec.dim) else 0,
        heads_bytes=views * heads_bytes(num_rows, spec.dim) if heads_pay(num_rows // classes, spec.dim) else 0,
        model_bytes=model_bytes if settings.weights else 0,
        model_source=prepared.recipe.model_source,
        model_seconds=prepared.model_seconds,
        block_seconds=block_seconds,
        build_seconds=num_blocks * block_seconds
        + query_seconds
        + (0.0 if prepared.recipe.model_source == "training" else prepared.model_seconds),
        query_sketch_seconds=alone,
        sjlt_query_sketch_seconds=sjlt_seconds,
        parts=part_lines(spec, prepared.parameters) if spec.family == "kronecker" else [],
        notes=list(prepared.featuriser.features.notes),
        advice=_advice(prepared, alone, sjlt_seconds),
    )


def _advice(prepared: Prepared, alone: float, sjlt_seconds: float | None) -> list[str]:
    spec, num_parameters = prepared.spec, prepared.parameters.num_parameters
    advice = []
    if num_parameters <= spec.dim and spec.family != "identity":
        advice.append(
            f"--sketch identity: the model has {num_parameters} parameters, no more than a sketch has numbers, so the "
            "gradients themselves take less room and are exact"
        )
    elif num_parameters <= 2 * spec.dim and spec.family != "identity":
        advice.append(
            f"--sketch identity: the gradients themselves have {num_parameters} numbers, "
            f"{num_parameters / spec.dim:.2g} times a sketch's, and are exact"
        )
    elif alone > SLOW_QUERY_SECONDS and spec.family in ("rademacher", "gaussian"):
        cheaper = "is much cheaper" if sjlt_seconds is None else f"takes {sjlt_seconds:.2g} s"
        advice.append(
            f"--sketch sjlt: sketching one query by example takes {alone:.2g} s with {spec.family}; with sjlt of the "
            f"same dimension it {cheaper}, for kernel values of about the same spread. Queries by row cost nothing"
        )
    if spec.family == "identity" and spec.dim > 4 * DEFAULT_DIM:
        advice.append(
            f"--sketch rademacher --dim {DEFAULT_DIM}: identity keeps all {spec.dim} coordinates of every gradient; a "
            f"sketch takes {spec.dim / DEFAULT_DIM:.0f} times less room and time in every search"
        )
    if prepared.settings.device == "cpu" and torch.cuda.is_available():
        advice.append("--device cuda: there is a GPU here")
    return advice
