"""The command `indexer coreset`: the training rows that inform many stored queries at once, into a file."""

from __future__ import annotations

import csv
import io
import json
import os
from dataclasses import asdict, fields
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console

from indexer.attributor.coreset import Coreset, CoresetPick, CoresetQuestion
from indexer.build_settings import BuildSettingsError
from indexer.progress import Progress
from indexer.terminal import aligned, progress_on, size
from sketchstore.reader import open_index


def coreset(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="An index directory with stored queries.")],
    out: Annotated[Path, typer.Option(help="The file to write: .json or .csv.")],
    budget: Annotated[int, typer.Option(help="How many training rows to select.")],
    queries: Annotated[
        str, typer.Option(metavar="all|N", help="Stored queries to inform: all, or the first N.")
    ] = "all",
    rule: Annotated[str, typer.Option(help="infogain, infogain_approx or infoloss.")] = "infogain",
    weighting: Annotated[
        str, typer.Option(help="inverse_variance: what little is unknown counts as much as what much is; or uniform.")
    ] = "inverse_variance",
    noise_variance: Annotated[float | None, typer.Option(help="σ² in squared units of the measurement.")] = None,
    relative_noise: Annotated[
        float | None, typer.Option(help="σ² in units of the mean squared norm. Default: the index's, else 1.")
    ] = None,
    quota_per_label: Annotated[int | None, typer.Option(help="The most rows of each label.")] = None,
    label: Annotated[
        int | None,
        typer.Option(help="Only queries that the model gives this label; needed unless the index is of margins."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file at --out.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Select the training rows that together inform many stored queries most.

    The file has the rows in order, with the mean information about the queries after each. Ctrl-C ends the selection
    after the row in progress; the file then has what was selected so far, marked incomplete.

    Example: indexer coreset indexes/digits --queries all --budget 100 --out coreset.json
    """
    check_out(out, overwrite)
    num_queries = number_of_queries(queries)
    index = open_index(directory, check="use", derived=False)
    selection = Coreset(
        index,
        CoresetQuestion(
            budget=budget,
            rule=rule,
            weighting=weighting,
            num_queries=num_queries,
            label=label,
            quota_per_label=quota_per_label,
            noise_variance=noise_variance,
            relative_noise=relative_noise,
        ),
    )
    picks: list[CoresetPick] = []
    try:
        with progress_on(Console(stderr=True)) as progress:
            stopped = select(selection, picks, progress)
    except BaseException:  # a second Ctrl-C, or a failure after hours: what there is, is kept
        if picks:
            write(out, selection, picks, "interrupted")
        raise
    write(out, selection, picks, stopped)
    if stopped == "interrupted":
        leave(f"{len(picks)} of {budget} rows were selected; {out} has them, marked incomplete")
    table = summary(selection, picks, out)
    typer.echo(json.dumps(dict(table), indent=2) if as_json else aligned(table))


def number_of_queries(text: str) -> int | None:
    """Read --queries.

    Args:
        text: What was typed.

    Returns:
        How many queries; None for all.

    Raises:
        BuildSettingsError: If it is neither ``all`` nor one whole number.
    """
    if text == "all":
        return None
    if not text.isdecimal():
        raise BuildSettingsError(f"--queries {text!r} must be all, or one whole number")
    return int(text)


def leave(message: str) -> NoReturn:
    """End after Ctrl-C.

    Args:
        message: What was done until then.

    Raises:
        KeyboardInterrupt: Always.
    """
    typer.echo(message, err=True)
    raise KeyboardInterrupt


def check_out(out: Path, overwrite: bool) -> None:
    """Refuse, before any work, a file that could not be written.

    Args:
        out: The file.
        overwrite: Whether it may exist.

    Raises:
        BuildSettingsError: If its name does not end in .json or .csv, its folder does not exist, or it exists.
    """
    if out.suffix not in (".json", ".csv"):
        raise BuildSettingsError(f"--out {out}: the name must end in .json or .csv")
    if not out.absolute().parent.is_dir():
        raise BuildSettingsError(f"--out {out}: there is no folder {out.parent}")
    if out.exists() and not overwrite:
        raise BuildSettingsError(f"--out {out} exists. Give another name, or --overwrite.")


def select(selection: Coreset, picks: list[CoresetPick], progress: Progress) -> str:
    """Select until the budget is spent, nothing informs, or someone asks to stop.

    Args:
        selection: What to select.
        picks: Where picks go, one by one.
        progress: Receives each.

    Returns:
        ``budget``, ``uninformative`` or ``interrupted``.
    """
    progress.phase(f"multiplying {selection.candidates} rows with {selection.num_queries} queries", 0)
    for pick in selection.picks():
        if not picks:
            progress.phase("selecting rows", selection.question.budget)
        picks.append(pick)
        progress.advance(1)
        if progress.stop_requested() and len(picks) < selection.question.budget:
            return "interrupted"
    return "budget" if len(picks) == selection.question.budget else "uninformative"


def facts(selection: Coreset, stopped: str) -> dict[str, Any]:
    """Say what was asked of which index, and how it ended.

    Args:
        selection: The selection.
        stopped: ``budget``, ``uninformative`` or ``interrupted``.

    Returns:
        JSON values.
    """
    asked, noise = selection.question, selection.noise
    return {
        "index": {"name": selection.index.name, "revision": selection.index.revision},
        "view": selection.view.name,
        "label": asked.label,
        "rule": asked.rule,
        "weighting": asked.weighting,
        "noise_variance": noise.variance,
        "relative_noise": noise.relative,
        "queries": selection.num_queries,
        "candidates": selection.candidates,
        "budget": asked.budget,
        "quota_per_label": asked.quota_per_label,
        "nats_criterion": selection.nats_criterion,
        "table_bytes": selection.table_bytes,
        "complete": stopped != "interrupted",
        "stopped": stopped,
        "warnings": [] if noise.warning is None else [noise.warning],
    }


def write(out: Path, selection: Coreset, picks: list[CoresetPick], stopped: str) -> None:
    """Write the file, whole or not at all.

    Args:
        out: The file; its name says JSON or CSV.
        selection: The selection.
        picks: What was selected.
        stopped: How it ended.
    """
    known = facts(selection, stopped)
    if out.suffix == ".json":
        text = json.dumps({**known, "picks": [asdict(pick) for pick in picks]}, indent=2, ensure_ascii=False) + "\n"
    else:
        text = as_csv(known, picks)
    partial = out.with_name(out.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, out)


def as_csv(known: dict[str, Any], picks: list[CoresetPick]) -> str:
    """Write picks as CSV with a header; what holds for all of them is repeated in every line.

    Args:
        known: What :func:`facts` says.
        picks: The picks.

    Returns:
        The text.
    """
    shared = {
        "rule": known["rule"],
        "weighting": known["weighting"],
        "noise_variance": known["noise_variance"],
        "relative_noise": known["relative_noise"],
        "revision": known["index"]["revision"],
        "complete": "true" if known["complete"] else "false",
    }
    stream = io.StringIO()
    writer = csv.DictWriter(stream, [*(field.name for field in fields(CoresetPick)), *shared], lineterminator="\n")
    writer.writeheader()
    writer.writerows({**asdict(pick), **shared} for pick in picks)
    return stream.getvalue()


def summary(selection: Coreset, picks: list[CoresetPick], out: Path) -> list[tuple[str, str]]:
    """Describe a finished selection for a person.

    Args:
        selection: The selection.
        picks: What was selected.
        out: Where it was written.

    Returns:
        Names and what they are.
    """
    asked, noise = selection.question, selection.noise
    nats = picks[-1].mean_nats if picks else 0.0
    lines = [
        ("index", f"{selection.index.name}, revision {selection.index.revision}, view {selection.view.name}"),
        ("rule", f"{asked.rule}, weighting {asked.weighting}"),
        ("noise", f"relative {noise.relative:.4g}, σ² {noise.variance:.4g}"),
        ("queries", f"{selection.num_queries}, table {size(selection.table_bytes)}"),
        ("selected", f"{len(picks)} of {selection.candidates} rows"),
        ("nats", f"{nats:.4g} a query ({selection.nats_criterion}), mean of the queries"),
        ("written", str(out)),
    ]
    if len(picks) < asked.budget:
        lines.append(("stopped", "no other row informs any of the queries"))
    if noise.warning is not None:
        lines.append(("warning", noise.warning))
    return lines
