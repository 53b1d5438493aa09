"""The commands of `indexer` that publish a new revision of an index: append, merge, remove, tune."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, cast

import typer
from rich.console import Console

from attribution.evidence import Amplitude
from indexer.append import append_rows
from indexer.build_settings import BuildSettingsError
from indexer.cli_query import fail
from indexer.curve_plot import curve_svg
from indexer.derive import derive
from indexer.rebuilding import DerivedChoices, derived_choices
from indexer.terminal import aligned, counted, progress_on
from indexer.tune import NoiseTuning, log_grid, tune_noise
from sketchstore.default_noise import store_default_noise
from sketchstore.merge import merge_indexes
from sketchstore.reader import Index, open_index
from sketchstore.remove import remove_rows

Directory = Annotated[Path, typer.Argument(metavar="DIR", help="An index directory.")]
RecipeFile = Annotated[Path | None, typer.Option("--recipe", help="The recipe's file, where it is a user's.")]
DataDir = Annotated[Path | None, typer.Option(help="Folder of the data files that the recipe reads.")]
NEXT_TO_NO_NOISE = 1e-6
"""A grid that begins below this relative noise, and has its best there, is not begun lower still."""
NoDerive = Annotated[
    bool, typer.Option("--no-derive", help="Do not derive of the new revision what was derived of the old one.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def append(
    directory: Directory,
    recipe: RecipeFile = None,
    data_dir: DataDir = None,
    option: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="An option of the recipe that names another data source. Repeatable."),
    ] = None,
    rows: Annotated[
        str | None,
        typer.Option(
            metavar="FIRST:STOP", help="Rows of the training set. Default: those behind what the index has read."
        ),
    ] = None,
    id_prefix: Annotated[
        str | None,
        typer.Option(help="What the ids of the new rows begin with. Default: what the index was built with."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted append of the same rows.")] = False,
    no_derive: NoDerive = False,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    threads: Annotated[int | None, typer.Option(help="CPU threads. Default: torch's number.")] = None,
    processes: Annotated[int, typer.Option(help="Worker processes that share the blocks, as for build.")] = 1,
    as_json: Json = False,
) -> None:
    """Add rows to an index: new ones of its training set, or of another data source of its recipe.

    They are sketched with the index's own weights, sketch and measurement. Until the new revision is published in one
    step, the old one is whole, whatever interrupts.

    Example: indexer append indexes/digits
    """
    with progress_on(Console(stderr=True)) as progress:
        report = append_rows(
            directory,
            recipe=None if recipe is None else str(recipe),
            data_dir=data_dir,
            options=_options(option),
            rows=None if rows is None else _rows(rows),
            id_prefix=id_prefix,
            resume=resume,
            derived=not no_derive,
            device=device,
            threads=threads,
            processes=processes,
            progress=progress,
        )
    if as_json:
        typer.echo(json.dumps({"path": str(directory), **report.as_json()}, indent=2))
        return
    last = report.first_row + report.appended_rows - 1
    table = [
        ("index", f"{directory}, revision {report.revision}"),
        ("appended", f"rows {report.first_row} to {last} of the training set"),
        ("rows", f"{report.num_rows} now"),
        ("derived", counted(len(report.derived), "file", "files")),
        *(("note", note) for note in report.notes),
    ]
    typer.echo(aligned(table))


def merge(
    directories: Annotated[list[Path], typer.Argument(metavar="DIR DIR…", help="Two index directories or more.")],
    out: Annotated[Path, typer.Option(help="Where the merged index is published.")],
    no_derive: NoDerive = False,
    as_json: Json = False,
) -> None:
    """Make one index of several that have the same sketch, model and measurement. The parts stay as they are.

    Example: indexer merge indexes/one indexes/two --out indexes/both
    """
    if len(directories) < 2:
        fail("merge takes two index directories or more")
    indexes = [open_index(directory, check="use", derived=False) for directory in directories]
    choices = derived_choices(indexes[0])
    report = merge_indexes(indexes, out)
    written = [] if no_derive else _derive(out, choices)
    if as_json:
        typer.echo(json.dumps({"path": str(out), **asdict(report), "derived": written}, indent=2))
        return
    table = [
        ("index", f"{out}, revision {report.revision}"),
        ("rows", f"{report.num_rows}: {' + '.join(map(str, report.rows))}"),
        ("derived", counted(len(written), "file", "files")),
    ]
    if report.dropped_columns:
        table.append(("note", f"columns that not every index has are left out: {', '.join(report.dropped_columns)}"))
    typer.echo(aligned([*table, *(("note", note) for note in report.notes)]))


def remove(
    directory: Directory,
    ids: Annotated[list[str] | None, typer.Option("--ids", metavar="ID", help="The id of a row. Repeatable.")] = None,
    ids_file: Annotated[Path | None, typer.Option(help="A file with one id a line.")] = None,
    purge: Annotated[
        bool,
        typer.Option("--purge", help="Also write every file anew that holds bytes of a removed row, now or earlier."),
    ] = False,
    no_derive: NoDerive = False,
    as_json: Json = False,
) -> None:
    """Withdraw rows: the next revision has them in no answer. With --purge their bytes leave the directory too.

    The weights stay as they are: a model that was trained on a row has learnt from it.

    Example: indexer remove indexes/digits --ids train:17
    """
    wanted = [*(ids or ()), *(() if ids_file is None else _lines(ids_file))]
    index = open_index(directory, check="use", derived=False)
    choices = derived_choices(index)
    report = remove_rows(index, wanted, purge=purge)
    del index
    written = [] if no_derive else _derive(directory, choices)
    if as_json:
        typer.echo(json.dumps({"path": str(directory), **asdict(report), "derived": written}, indent=2))
        return
    gone = counted(report.removed_rows, "row", "rows")
    if report.removed_queries:
        gone += f", {counted(report.removed_queries, 'query', 'queries')} of the same id"
    table = [("index", f"{directory}, revision {report.revision}"), ("removed", gone)]
    if purge:
        files = counted(len(report.rewritten), "file", "files")
        table.append(("purged", f"{counted(report.purged_rows, 'row', 'rows')} out of {files} that were written anew"))
    table += [("rows", f"{report.num_rows} are left"), ("derived", counted(len(written), "file", "files"))]
    typer.echo(aligned([*table, *(("note", note) for note in report.notes)]))


def tune(
    directory: Directory,
    lowest: Annotated[float | None, typer.Option(help="First relative noise of the grid. Default: 1e-4.")] = None,
    highest: Annotated[float | None, typer.Option(help="Last relative noise of the grid. Default: 1e4.")] = None,
    per_decade: Annotated[
        int | None, typer.Option(help="Noises from one power of ten to the next. Default: 8.")
    ] = None,
    amplitude: Annotated[
        str,
        typer.Option(
            help="profiled: the amplitude of the kernel is the best for every noise. one: it is taken as it is."
        ),
    ] = "profiled",
    targets: Annotated[
        str | None,
        typer.Option(
            help="What is explained: one-hot (the labels, mean-centred), residual (1 - p of the row's label) or "
            "metadata.NAME. Default: residual where rows compare within a label only, else one-hot."
        ),
    ] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw the curve into this .svg file.")] = None,
    accept_edge: Annotated[
        bool, typer.Option("--accept-edge", help="Store the best noise even where it is an end of the grid.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Store nothing in the index.")] = False,
    as_json: Json = False,
) -> None:
    """Tune the noise σ² without retraining: the one under which the Gaussian process explains its targets best.

    The log evidence is computed from the spectra on a grid of relative noises. The best becomes the index's default in
    its next revision, with method, grid and curve; a best that is an end of the grid is said and not stored.

    Example: indexer tune indexes/digits --plot noise.svg
    """
    if amplitude not in ("profiled", "one"):
        fail(f"--amplitude {amplitude!r} must be profiled or one")
    if plot is not None and plot.suffix != ".svg":
        fail(f"--plot {plot}: its name must end in .svg")
    if plot is not None and not plot.parent.is_dir():
        fail(f"--plot {plot}: there is no folder {plot.parent}; make it first")
    given = {"lowest": lowest, "highest": highest, "per_decade": per_decade}
    grid = log_grid(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
    index = open_index(directory, check="use", derived=False)
    with progress_on(Console(stderr=True)) as progress:
        tuning = tune_noise(index, grid=grid, amplitude=cast(Amplitude, amplitude), targets=targets, progress=progress)
    if plot is not None:
        plot.write_text(_plot(index, tuning), encoding="utf-8")
    revision, written = index.revision, list[str]()
    stores = not dry_run and (tuning.at_edge is None or accept_edge)
    if stores:
        choices = derived_choices(index)
        revision = store_default_noise(index, tuning.relative_noise, tuning.as_json())
        written = _derive(directory, choices)  # leverages are stored at the default noise
    if as_json:
        told = {"path": str(directory), "revision": revision, "stored": stores, **tuning.as_json()}
        typer.echo(json.dumps({**told, "derived": written}, indent=2))
        return
    typer.echo(_readable(index, tuning, revision, stores))


def _readable(index: Index, tuning: NoiseTuning, revision: str, stored: bool) -> str:
    edge = "" if tuning.at_edge is None else f", at the {tuning.at_edge} end of the grid: {_advice(tuning)}"
    spread = sorted(each.relative_noise for each in tuning.partitions)
    said = f"stored as the default, revision {revision}" if stored else "nothing is stored"
    table = [
        ("index", f"{index.path}, {said}"),
        ("noise", f"relative {tuning.relative_noise:g}{edge}"),
        ("evidence", f"{max(tuning.log_evidence):.6g} nats, targets {tuning.targets}, amplitude {tuning.amplitude}"),
        ("grid", f"{len(tuning.grid)} noises from {tuning.grid[0]:g} to {tuning.grid[-1]:g}"),
    ]
    if len(spread) > 1:
        parts = f"{len(spread)} sets of rows that compare (one a label or view)"
        table.append(
            ("each alone", f"{parts}, each tuned by itself, would take noises from {spread[0]:g} to {spread[-1]:g}")
        )
    if tuning.relative_noise < 1.0:
        said = (
            "below 1 the default method, an approximation, shares fewer picks with infogain: ask by --method infogain"
        )
        table.append(("advice", said))
    return aligned(table)


def _advice(tuning: NoiseTuning) -> str:
    # What a best noise at an end of the grid means, and what to do about it.
    if tuning.at_edge == "low" and tuning.grid[0] < NEXT_TO_NO_NOISE:
        return (
            f"the {tuning.targets} targets are explained with next to no noise, as where the model fits its labels "
            "exactly, and a still lower --lowest will hardly end that. Tune to other targets (--targets), store this "
            "noise all the same (--accept-edge), or stay with the default"
        )
    wider = "--lowest" if tuning.at_edge == "low" else "--highest"
    return f"the best may lie beyond it. Widen it with {wider}"


def _plot(index: Index, tuning: NoiseTuning) -> str:
    return curve_svg(
        tuning.grid,
        tuning.log_evidence,
        title=f"{index.name}: evidence of the noise",
        x_label="relative noise σ² / mean ‖φ‖²",
        y_label=f"log evidence, nats (targets: {tuning.targets})",
        marked=tuning.grid.index(tuning.relative_noise),
    )


def _derive(directory: Path, choices: DerivedChoices) -> list[str]:
    index = open_index(directory, check="use", derived=False)
    with progress_on(Console(stderr=True)) as progress:
        return derive(index, **asdict(choices), progress=progress).written


def _options(given: list[str] | None) -> dict[str, str | int | float | bool]:
    """Read KEY=VALUE pairs.

    Returns:
        Values by option.

    Raises:
        BuildSettingsError: If one is no such pair.
    """
    options: dict[str, str | int | float | bool] = {}
    for text in given or []:
        key, separator, value = text.partition("=")
        if not separator or not key:
            raise BuildSettingsError(f"--option {text!r} must be KEY=VALUE")
        options[key] = value
    return options


def _rows(text: str) -> tuple[int, int | None]:
    """Read FIRST:STOP.

    Returns:
        The first row, and the row after the last; None for all.

    Raises:
        BuildSettingsError: If it is no such range.
    """
    first, separator, stop = text.partition(":")
    if not separator or not (first or "0").isdecimal() or not (stop or "0").isdecimal():
        raise BuildSettingsError(f"--rows {text!r} must be FIRST:STOP, FIRST: or :STOP, such as 1000:2000")
    return int(first or 0), int(stop) if stop else None


def _lines(path: Path) -> list[str]:
    """Read a file of ids.

    Returns:
        Its lines that are not empty.

    Raises:
        BuildSettingsError: If it cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BuildSettingsError(f"--ids-file {path}: cannot be read as text ({error})") from error
    return [line for line in lines if line]
