"""The choices that an index was built with, read back from its manifest: what is built later compares with its rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from indexer.build_settings import MIB, BuildSettings
from indexer.derive import CodesChoice
from indexer.sketches import SketchSpec, sketch_spec
from sketchstore.errors import DerivedError
from sketchstore.manifest import Sketch
from sketchstore.reader import Index


def settings_of(
    index: Index, *, device: str = "cpu", threads: int | None = None, data_dir: Path | None = None
) -> BuildSettings:
    """Read back what decides the sketches of an index.

    Args:
        index: The open index.
        device: Where to compute now.
        threads: CPU threads now; None means torch's number.
        data_dir: Folder of the data files.

    Returns:
        Settings that sketch further rows as those of the index were sketched; no queries, no weights.
    """
    manifest = index.manifest
    options: dict[str, Any] = dict(manifest.build.options)
    views = cast("list[int] | None", manifest.measurement.options.get("views"))
    buckets = cast("int | None", manifest.sketch.options.get("buckets"))
    budget_bytes = cast("int | None", options.get("memory_budget_bytes"))
    return BuildSettings(
        recipe=manifest.recipe.name,
        data_dir=data_dir,
        measurement=manifest.measurement.name,
        views=None if views is None else tuple(views),
        sketch=manifest.sketch.family,
        dim=manifest.sketch.dim,
        seed=manifest.sketch.seed,
        buckets=buckets,
        dtype=manifest.dtype,
        ntk=options.get("ntk_gain") is not None,
        include=tuple(options.get("include", ())),
        exclude=tuple(options.get("exclude", ())),
        layers=options.get("layers", "all"),
        block_rows=manifest.build.block_rows,
        num_queries=0,
        weights=False,
        previews=bool(options.get("previews", True)),
        device=device,
        threads=threads,
        compute_dtype=options.get("compute_dtype", "float32"),
        memory_budget_mib=budget_bytes // MIB if budget_bytes else None,
        batch_rows=min(manifest.build.compute_rows, manifest.build.block_rows),
    )


def sketch_of(sketch: Sketch) -> SketchSpec:
    """Read back a sketch from what a manifest, or the plan of a build, says of it.

    Args:
        sketch: Its entry.

    Returns:
        Its family, dimension, seed and options.
    """
    options = cast(Mapping[str, Any], sketch.options)
    return sketch_spec(sketch.family, sketch.dim, sketch.num_parameters, sketch.seed, options)


@dataclass(frozen=True)
class DerivedChoices:
    """What of an index was derived.

    Attributes:
        faiss: FAISS factory string, None for no FAISS indexes.
        spectra: Whether there are spectra.
        codes: "int8" where there are codes of some view, or too few rows for any.
    """

    faiss: str | None
    spectra: bool
    codes: CodesChoice


def derived_choices(index: Index) -> DerivedChoices:
    """Say what of an index was derived, so that as much is derived of its next revision.

    Args:
        index: The open index.

    Returns:
        The choices; nothing where derived/ cannot be read.
    """
    try:
        entries = index.derived.entries().values()
    except DerivedError:
        return DerivedChoices(None, False, "none")
    factories = [str(entry.options["factory"]) for entry in entries if entry.kind == "faiss"]
    kinds = {entry.kind for entry in entries}
    # An index too small for codes has none; it may have grown beyond that.
    return DerivedChoices(
        faiss=factories[0] if factories else None,
        spectra="spectrum" in kinds,
        codes="int8" if "codes" in kinds or kinds & {"spectrum", "faiss"} else "none",
    )
