"""What the command `indexer` does with a recipe: `build` an index of it, `plan` one, `check` that it is sound."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from rich.console import Console

from indexer.build import build_index
from indexer.build_report import BuildReport
from indexer.build_settings import BuildSettings, BuildSettingsError
from indexer.check import check_recipe
from indexer.cli_directory import codes_choice
from indexer.cli_query import numbers
from indexer.derive import DEFAULT_CODES, DEFAULT_FACTORY
from indexer.featurise import COMPUTE_ROWS
from indexer.parameters import Layers
from indexer.plan import PlanReport, plan_build
from indexer.recipe_file import BUILTIN_RECIPES
from indexer.terminal import aligned, counted, duration, progress_on, size
from sketchstore.manifest import StorageDtype

RecipeArgument = Annotated[
    str, typer.Argument(metavar="RECIPE", help=f"{', '.join(BUILTIN_RECIPES)}, or the path of a recipe file.")
]
DataDir = Annotated[Path | None, typer.Option(help="Folder of the data files that the recipe reads.")]
Measurement = Annotated[
    str | None,
    typer.Option(help="label_logit, class_logit, margin or custom. Default: the recipe's own, else label_logit."),
]
Views = Annotated[
    str | None, typer.Option(metavar="0,3,…", help="Classes of class_logit that get a view. Default: all.")
]
Sketch = Annotated[
    str | None,
    typer.Option(
        help="identity, rademacher, gaussian, sjlt or kronecker. Default: identity where the model has at most 4096 "
        "parameters and --dim is not given, else rademacher."
    ),
]
Dim = Annotated[int | None, typer.Option(help="Numbers in a sketch. Default: 4096; for identity, all parameters.")]
Seed = Annotated[int | None, typer.Option(help="Seed of the sketch. Default: 0.")]
Buckets = Annotated[int | None, typer.Option(help="Signed buckets per parameter of an sjlt sketch. Default: 4.")]
SketchLike = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="An index whose sketch (family, dim, seed, parts) is taken, so that both can be merged.",
    ),
]
Dtype = Annotated[str, typer.Option(help="float32, or float16 for half the bytes.")]
Ntk = Annotated[
    bool | None,
    typer.Option(
        "--ntk/--no-ntk", help="Scale gradients as in NTK parameterisation. Default: if the recipe has a gain."
    ),
]
Include = Annotated[
    list[str] | None, typer.Option(metavar="GLOB", help="Only parameters of these modules. Repeatable.")
]
Exclude = Annotated[list[str] | None, typer.Option(metavar="GLOB", help="No parameters of these. Repeatable.")]
LayersOption = Annotated[
    str | None,
    typer.Option(
        "--layers", help="all, or linear for linear layers only. Default: the recipe's; linear for text, else all."
    ),
]
BlockRows = Annotated[int, typer.Option(help="Rows that are computed, written and, if interrupted, redone together.")]
Limit = Annotated[int | None, typer.Option(help="Only the first rows of the training set.")]
IdPrefix = Annotated[
    str,
    typer.Option(
        help="What the ids of the training rows begin with, so that two indexes with equal ids can be merged."
    ),
]
NumQueries = Annotated[int | None, typer.Option(help="Rows of the query set to sketch. Default: up to 1000.")]
Options = Annotated[
    list[str] | None, typer.Option("--option", metavar="KEY=VALUE", help="An option of the recipe. Repeatable.")
]
Device = Annotated[str, typer.Option(help="cpu or cuda.")]
Threads = Annotated[int | None, typer.Option(help="CPU threads. Default: torch's number.")]
Processes = Annotated[
    int, typer.Option(help="Worker processes that share the blocks, on GPUs of their own where several.")
]
ComputeDtypeOption = Annotated[
    str, typer.Option("--compute-dtype", help="float32, bfloat16 or float16 for passes and products; sums are float32.")
]
MemoryBudget = Annotated[
    int | None,
    typer.Option(
        metavar="MIB",
        help="What a batch's gradients and activations may take; decides how many rows go together. Default: 512, on a "
        "GPU a quarter of its memory.",
    ),
]
BatchRows = Annotated[int | None, typer.Option(help="Rows that go together, instead of what the memory budget allows.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def _settings(
    recipe: str, option: list[str] | None, views: str | None, dtype: str, layers: str | None, **chosen: Any
) -> BuildSettings:
    options = {}
    for text in option or []:
        key, separator, value = text.partition("=")
        if not separator or not key:
            raise BuildSettingsError(f"--option {text!r} must be KEY=VALUE")
        options[key] = value
    classes = None
    if views is not None:
        classes = tuple(numbers(views, "--views"))
    if dtype not in ("float16", "float32"):
        raise BuildSettingsError(f"--dtype {dtype!r} must be float16 or float32")
    if layers not in (None, "linear", "all"):
        raise BuildSettingsError(f"--layers {layers!r} must be linear or all")
    return BuildSettings(
        recipe=recipe,
        options=options,
        views=classes,
        dtype=cast(StorageDtype, dtype),
        layers=cast("Layers | None", layers),
        include=tuple(chosen.pop("include") or ()),
        exclude=tuple(chosen.pop("exclude") or ()),
        **chosen,
    )


def build(
    recipe: RecipeArgument,
    out: Annotated[Path, typer.Option(help="Where the index directory is published; its name is the index's name.")],
    data_dir: DataDir = None,
    measurement: Measurement = None,
    views: Views = None,
    sketch: Sketch = None,
    dim: Dim = None,
    seed: Seed = None,
    buckets: Buckets = None,
    sketch_like: SketchLike = None,
    dtype: Dtype = "float32",
    ntk: Ntk = None,
    include: Include = None,
    exclude: Exclude = None,
    layers: LayersOption = None,
    block_rows: BlockRows = COMPUTE_ROWS,
    limit: Limit = None,
    id_prefix: IdPrefix = "",
    num_queries: NumQueries = None,
    option: Options = None,
    faiss: Annotated[
        str, typer.Option(metavar="FACTORY", help="FAISS factory string of the search index, or none.")
    ] = (DEFAULT_FACTORY),
    spectra: Annotated[
        bool, typer.Option("--spectra/--no-spectra", help="Store what nats of whole pools need.")
    ] = True,
    codes: Annotated[
        str, typer.Option(help="int8: codes and heads for views with a partition of more rows than d. Or none.")
    ] = DEFAULT_CODES,
    no_weights: Annotated[bool, typer.Option("--no-weights", help="Do not copy the weights into the index.")] = False,
    no_previews: Annotated[bool, typer.Option("--no-previews", help="Do not store previews of examples.")] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue an interrupted build; with none, start one.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is at --out when done.")] = False,
    device: Device = "cpu",
    threads: Threads = None,
    processes: Processes = 1,
    compute_dtype: ComputeDtypeOption = "float32",
    memory_budget: MemoryBudget = None,
    batch_rows: BatchRows = None,
    as_json: Json = False,
) -> None:
    """Build an index directory from a recipe.

    Rows are computed in blocks. Interrupted by Ctrl-C, a kill or a crash, the same command with --resume continues and
    gives the same bytes as a build that was never interrupted. With --processes N, N worker processes compute blocks
    side by side and give the same bytes as one process with as many --threads as each of them. Both but for float32
    rounding where a model uses a layer otherwise in later rows than in the first ones (decision 51).

    Example: indexer build digits --out indexes/digits
    """
    settings = _settings(
        recipe, option, views, dtype, layers, data_dir=data_dir, measurement=measurement, sketch=sketch, dim=dim,
        seed=seed, buckets=buckets, sketch_like=sketch_like, ntk=ntk, include=include, exclude=exclude,
        block_rows=block_rows, limit=limit, id_prefix=id_prefix,
        num_queries=num_queries, weights=not no_weights, previews=not no_previews, device=device, threads=threads,
        processes=processes, compute_dtype=compute_dtype, memory_budget_mib=memory_budget, batch_rows=batch_rows,
    )  # fmt: skip
    choice = codes_choice(codes)
    with progress_on(Console(stderr=True)) as progress:
        report = build_index(
            settings,
            out,
            resume=resume,
            overwrite=overwrite,
            faiss=None if faiss == "none" else faiss,
            spectra=spectra,
            codes=choice,
            progress=progress,
        )
    if as_json:
        typer.echo(json.dumps(report.as_json(), indent=2))
    else:
        _print_build(report)


def plan(
    recipe: RecipeArgument,
    data_dir: DataDir = None,
    measurement: Measurement = None,
    views: Views = None,
    sketch: Sketch = None,
    dim: Dim = None,
    seed: Seed = None,
    buckets: Buckets = None,
    sketch_like: SketchLike = None,
    dtype: Dtype = "float32",
    ntk: Ntk = None,
    include: Include = None,
    exclude: Exclude = None,
    layers: LayersOption = None,
    block_rows: BlockRows = COMPUTE_ROWS,
    limit: Limit = None,
    num_queries: NumQueries = None,
    option: Options = None,
    device: Device = "cpu",
    threads: Threads = None,
    compute_dtype: ComputeDtypeOption = "float32",
    memory_budget: MemoryBudget = None,
    batch_rows: BatchRows = None,
    as_json: Json = False,
) -> None:
    """Say what a build would take: rows, bytes, time from a probe batch, the cost of a query, and advice on the sketch.

    Example: indexer plan digits --sketch rademacher --dim 1024
    """
    settings = _settings(
        recipe, option, views, dtype, layers, data_dir=data_dir, measurement=measurement, sketch=sketch, dim=dim,
        seed=seed, buckets=buckets, sketch_like=sketch_like, ntk=ntk, include=include, exclude=exclude,
        block_rows=block_rows, limit=limit,
        num_queries=num_queries, device=device, threads=threads, compute_dtype=compute_dtype,
        memory_budget_mib=memory_budget, batch_rows=batch_rows,
    )  # fmt: skip
    with progress_on(Console(stderr=True)) as progress:
        report = plan_build(settings, progress=progress)
    if as_json:
        typer.echo(json.dumps(report.as_json(), indent=2))
    else:
        _print_plan(report)


def check(
    recipe: RecipeArgument,
    data_dir: DataDir = None,
    measurement: Measurement = None,
    views: Views = None,
    sketch: Annotated[str | None, typer.Option(help="Family of the sketch that is tried. Default: sjlt.")] = None,
    dim: Annotated[int | None, typer.Option(help="Numbers in that sketch. Default: 1024.")] = None,
    ntk: Ntk = None,
    include: Include = None,
    exclude: Exclude = None,
    layers: LayersOption = None,
    option: Options = None,
    device: Device = "cpu",
    threads: Threads = None,
    compute_dtype: ComputeDtypeOption = "float32",
    as_json: Json = False,
) -> None:
    """Check that a recipe is sound: gradients finite, deterministic, independent of batch-mates.

    Exits with 1 where it is not, and says what to change.

    Example: indexer check digits
    """
    settings = _settings(
        recipe, option, views, "float32", layers, data_dir=data_dir, measurement=measurement, ntk=ntk,
        sketch=sketch or "sjlt", dim=dim if dim or sketch == "identity" else 1024, include=include, exclude=exclude,
        device=device, threads=threads, compute_dtype=compute_dtype,
    )  # fmt: skip
    with progress_on(Console(stderr=True)) as progress:
        findings = check_recipe(settings, progress=progress)
    sound = all(finding.ok for finding in findings)
    if as_json:
        typer.echo(json.dumps({"sound": sound, "findings": [asdict(finding) for finding in findings]}, indent=2))
    else:
        for finding in findings:
            typer.echo(f"{'ok  ' if finding.ok else 'FAIL'}  {finding.check}: {finding.detail}")
    if not sound:
        sys.exit(1)


def _print_build(report: BuildReport) -> None:
    table: list[tuple[str, str]] = []
    queries = counted(report.num_queries, "query", "queries")
    table.append(("index", f"{report.path}, revision {report.revision}"))
    table.append(("rows", f"{report.num_rows} training, {queries}, views {', '.join(report.views)}"))
    table.append(("sketch", f"{report.num_parameters} parameters to {report.sketch_dim} numbers, {report.dtype}"))
    if report.accuracy:
        names = {"train": "the training rows", "query": "the queries"}
        shares = [f"{share:.1%} of {names[split]}" for split, share in report.accuracy.items()]
        table.append(("accuracy", ", ".join(shares)))
    table.append(("bytes", f"{size(report.sketch_bytes)} sketches, {size(report.total_bytes)} in all"))
    if report.examples_per_second is not None and report.sketch_share is not None:
        rate = f"{report.examples_per_second:.4g} examples/s, {report.sketch_share:.0%} of the time in the sketch"
        table.append(("rate", rate))
    spent = ", ".join(f"{name} {duration(seconds)}" for name, seconds in report.seconds.items())
    table.append(("time", f"{duration(sum(report.seconds.values()))} ({spent})"))
    table.append(("memory", f"{size(report.peak_memory_bytes)} at the peak"))
    typer.echo(aligned(table))


_MODEL_SOURCES = {
    "cache": "loaded from the cache in {}; a build does the same",
    "training": "trained in {} and cached; a build loads it",
    "recipe": "model() took {}; a build calls it again",
}


def _print_plan(report: PlanReport) -> None:
    table: list[tuple[str, str]] = []
    queries = counted(report.num_queries, "query", "queries")
    table.append(("rows", f"{report.num_rows} training, {queries}, views {', '.join(report.views)}"))
    blocks = f"{report.num_blocks} of {report.block_rows} rows, {report.compute_rows} at once"
    table.append(("blocks", blocks))
    sketch = f"{report.family}, {report.num_parameters} parameters to {report.sketch_dim} numbers, {report.dtype}"
    table.append(("sketch", sketch))
    table.append(
        (
            "bytes",
            f"{size(report.total_bytes)}: sketches {size(report.sketch_bytes)}, queries {size(report.query_bytes)}, "
            f"FAISS {size(report.faiss_bytes)}, spectra {size(report.spectra_bytes)}, "
            f"codes {size(report.codes_bytes)}, heads {size(report.heads_bytes)}, weights {size(report.model_bytes)}",
        )
    )
    table.append(("model", _MODEL_SOURCES[report.model_source].format(duration(report.model_seconds))))
    times = f"about {duration(report.build_seconds)}, {duration(report.block_seconds)} a block"
    table.append(("build", f"{times}; the distortion and the derived files come on top"))
    table.append(("query", f"{report.query_sketch_seconds:.3g} s to sketch one by example; by row it costs nothing"))
    for line in report.parts:
        table.append(("part", line))
    for line in report.notes:
        table.append(("note", line))
    for line in report.advice or ["nothing better than what you asked for"]:
        table.append(("advice", line))
    typer.echo(aligned(table))
