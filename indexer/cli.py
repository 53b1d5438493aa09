"""The command `indexer`: builds index directories, checks and describes them, answers a question without a server.

Results go to the standard output, everything else to the standard error.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from rich.console import Console

from attribution.errors import AttributionError
from indexer import __version__
from indexer.attributor import QuestionError
from indexer.batches import BatchError
from indexer.build import BuildInterruptedError, build_index
from indexer.build_report import BuildReport
from indexer.check import check_recipe
from indexer.cli_coreset import coreset
from indexer.cli_directory import codes_choice, derive_command, info, verify
from indexer.cli_query import flag_of, numbers, query
from indexer.cli_upkeep import append, merge, remove, tune
from indexer.derive import DEFAULT_CODES, DEFAULT_FACTORY
from indexer.featurise import COMPUTE_ROWS
from indexer.jacobians import JacobianError
from indexer.measurement import MeasurementError
from indexer.out_of_memory import BlockMemoryError
from indexer.parameters import Layers, ParameterSelectionError
from indexer.plan import PlanReport, plan_build
from indexer.preparation import BuildSettings, BuildSettingsError
from indexer.reading import ExampleError, UnstableDataError
from indexer.recipe import RecipeDataError, RecipeError
from indexer.recipe_file import BUILTIN_RECIPES
from indexer.sketches.spec import SketchSpecError
from indexer.targets import TargetError
from indexer.terminal import aligned, counted, duration, progress_on, size
from indexer.workers import WorkerDiedError
from sketchstore.errors import CorruptIndexError, FaissFactoryError, IndexDirectoryError
from sketchstore.manifest import FORMAT_VERSION, StorageDtype

app = typer.Typer(
    name="indexer",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"indexer {__version__} (index format {FORMAT_VERSION})")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and stop.")
    ] = False,
) -> None:
    """Turn a trained model and its training set into an index directory of gradient sketches."""


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
Seed = Annotated[int, typer.Option(help="Seed of the sketch.")]
Buckets = Annotated[int | None, typer.Option(help="Signed buckets per parameter of an sjlt sketch. Default: 4.")]
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


@app.command()
def build(
    recipe: RecipeArgument,
    out: Annotated[Path, typer.Option(help="Where the index directory is published; its name is the index's name.")],
    data_dir: DataDir = None,
    measurement: Measurement = None,
    views: Views = None,
    sketch: Sketch = None,
    dim: Dim = None,
    seed: Seed = 0,
    buckets: Buckets = None,
    dtype: Dtype = "float32",
    ntk: Ntk = None,
    include: Include = None,
    exclude: Exclude = None,
    layers: LayersOption = None,
    block_rows: BlockRows = COMPUTE_ROWS,
    limit: Limit = None,
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
    side by side and give the same bytes as one process with as many --threads as each of them.

    Example: indexer build digits --out indexes/digits
    """
    settings = _settings(
        recipe, option, views, dtype, layers, data_dir=data_dir, measurement=measurement, sketch=sketch, dim=dim,
        seed=seed, buckets=buckets, ntk=ntk, include=include, exclude=exclude, block_rows=block_rows, limit=limit,
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


@app.command()
def plan(
    recipe: RecipeArgument,
    data_dir: DataDir = None,
    measurement: Measurement = None,
    views: Views = None,
    sketch: Sketch = None,
    dim: Dim = None,
    seed: Seed = 0,
    buckets: Buckets = None,
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
        seed=seed, buckets=buckets, ntk=ntk, include=include, exclude=exclude, block_rows=block_rows, limit=limit,
        num_queries=num_queries, device=device, threads=threads, compute_dtype=compute_dtype,
        memory_budget_mib=memory_budget, batch_rows=batch_rows,
    )  # fmt: skip
    with progress_on(Console(stderr=True)) as progress:
        report = plan_build(settings, progress=progress)
    if as_json:
        typer.echo(json.dumps(report.as_json(), indent=2))
    else:
        _print_plan(report)


@app.command()
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
    as_json: Json = False,
) -> None:
    """Check on two batches that a recipe is sound: gradients finite, deterministic, independent of batch-mates.

    Exits with 1 where it is not, and says what to change.

    Example: indexer check digits
    """
    settings = _settings(
        recipe, option, views, "float32", layers, data_dir=data_dir, measurement=measurement, ntk=ntk,
        sketch=sketch or "sjlt", dim=dim if dim or sketch == "identity" else 1024, include=include, exclude=exclude,
        device=device, threads=threads,
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


app.command()(info)
app.command()(verify)
app.command()(query)
app.command()(coreset)
app.command("derive")(derive_command)
app.command()(append)
app.command()(merge)
app.command()(remove)
app.command()(tune)


def _print_build(report: BuildReport) -> None:
    table: list[tuple[str, str]] = []
    queries = counted(report.num_queries, "query", "queries")
    table.append(("index", f"{report.path}, revision {report.revision}"))
    table.append(("rows", f"{report.num_rows} training, {queries}, views {', '.join(report.views)}"))
    table.append(("sketch", f"{report.num_parameters} parameters to {report.sketch_dim} numbers, {report.dtype}"))
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
    table.append(("build", f"about {duration(report.build_seconds)}, {duration(report.block_seconds)} a block"))
    table.append(("query", f"{report.query_sketch_seconds:.3g} s to sketch one by example; by row it costs nothing"))
    for line in report.parts:
        table.append(("part", line))
    for line in report.notes:
        table.append(("note", line))
    for line in report.advice or ["nothing better than what you asked for"]:
        table.append(("advice", line))
    typer.echo(aligned(table))


USAGE_ERRORS: tuple[type[Exception], ...] = (
    BuildSettingsError,
    FaissFactoryError,
    MeasurementError,
    ParameterSelectionError,
    SketchSpecError,
    QuestionError,
    RecipeError,
    TargetError,
)
WORK_ERRORS: tuple[type[Exception], ...] = (
    AttributionError,
    BatchError,
    ExampleError,
    IndexDirectoryError,
    JacobianError,
    BlockMemoryError,
    UnstableDataError,
    WorkerDiedError,
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line: exit 0 done, 1 failed or damaged, 2 wrong usage, 130 stopped by Ctrl-C.

    Args:
        arguments: Words after the program's name; None takes the process's own.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        app(words, prog_name="indexer")
    except (BuildInterruptedError, KeyboardInterrupt) as error:
        resumed = [word for word in words if word != "--overwrite"]
        again = shlex.join(["indexer", *resumed, *([] if "--resume" in words else ["--resume"])])
        said = str(error) or "stopped at once; finished blocks are kept"
        typer.echo(f"{said}:\n  {again}" if words[:1] in (["build"], ["append"]) else "stopped", err=True)
        sys.exit(130)
    except (*USAGE_ERRORS, *WORK_ERRORS) as error:
        flag = flag_of(error.pointer) if isinstance(error, QuestionError) else None
        typer.echo(f"error: {'' if flag is None else f'{flag}: '}{error}", err=True)
        usage = isinstance(error, USAGE_ERRORS) and not isinstance(error, RecipeDataError)
        missing = isinstance(error, FileNotFoundError | FileExistsError) and not isinstance(error, CorruptIndexError)
        sys.exit(2 if usage or missing else 1)


if __name__ == "__main__":
    main()
