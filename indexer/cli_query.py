"""The command `indexer query`: one attribution on an index directory, without a server."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, NoReturn

import numpy as np
import torch
import typer

from indexer.attributor import Answer, Attributor, CandidateFilter, QuerySketch, Question
from indexer.attributor.noise import naming_the_noise
from indexer.build_settings import BuildSettingsError
from indexer.cli_previews import example_lines
from indexer.terminal import aligned, counted
from sketchstore.examples import ExampleTable
from sketchstore.manifest import NO_LABEL
from sketchstore.reader import Index, open_index

# Where a mistake stands in a request of the API → the flag that says the same here.
FLAGS = {
    "/query/row": "--row",
    "/query/id": "--train-id",
    "/query/values": "--sketch",
    "/query/label": "--target",
    "/target/label": "--target",
    "/method": "--method",
    "/budget": "--budget",
    "/noise_variance": "--noise-variance",
    "/relative_noise": "--relative-noise",
    "/filter": "--labels or --exclude-id",
    "/filter/labels": "--labels",
    "/filter/exclude_ids": "--exclude-id",
    "/engine": "--engine",
    "/strategy": "--strategy",
}
COLUMNS = ("rank", "row", "id", "label", "score", "covariance", "step_nats", "cumulative_nats", "represents")


def query(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="An index directory.")],
    row: Annotated[int | None, typer.Option(help="A row of the query set.")] = None,
    train_id: Annotated[
        str | None, typer.Option(help="The id of a training example, which then is no candidate.")
    ] = None,
    include_self: Annotated[bool, typer.Option("--include-self", help="With --train-id: keep it a candidate.")] = False,
    sketch: Annotated[Path | None, typer.Option(help="A .npy file with a sketch of this index's kind.")] = None,
    target: Annotated[
        str | None,
        typer.Option(
            help="The class to explain: predicted, true, its number or its name. Default: what the model predicts."
        ),
    ] = None,
    method: Annotated[
        str, typer.Option(help="infogain_approx, infogain, infoloss, trak, graddot, repsim, relatif or random.")
    ] = "infogain_approx",
    budget: Annotated[int, typer.Option(help="How many examples to select.")] = 10,
    noise_variance: Annotated[float | None, typer.Option(help="σ² in squared units of the measurement.")] = None,
    relative_noise: Annotated[
        float | None, typer.Option(help="σ² in units of the mean squared norm. Default: the index's, else 1.")
    ] = None,
    labels: Annotated[str | None, typer.Option(metavar="0,3,…", help="Only candidates with these labels.")] = None,
    exclude_id: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="Leave out an example. Repeatable.")
    ] = None,
    clip_budget: Annotated[
        bool, typer.Option("--clip-budget", help="Take a budget above the number of candidates as all of them.")
    ] = False,
    engine: Annotated[str, typer.Option(help="faiss or brute_force.")] = "faiss",
    strategy: Annotated[str | None, typer.Option(help="certified or literal; the picks are the same.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the method random.")] = 0,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the answer as JSON, with the fields of the API.")
    ] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print the hits as CSV.")] = False,
) -> None:
    """Ask which training examples inform a prediction, and by how much, in nats.

    Example: indexer query indexes/digits --row 12 --budget 10
    """
    if as_json and as_csv:
        fail("--json and --csv are both given; choose one")
    index = open_index(directory, check="use", derived=False)
    attributor = Attributor(index, engine=engine)
    asked = resolve(attributor, row=row, train_id=train_id, include_self=include_self, sketch=sketch, target=target)
    chosen = CandidateFilter(
        labels=None if labels is None else numbers(labels, "--labels"), exclude_ids=exclude_id or None
    )
    question = Question(
        query=asked,
        method=method,
        budget=budget,
        noise_variance=noise_variance,
        relative_noise=relative_noise,
        filter=chosen,
        clip_budget=clip_budget,
        strategy=strategy,
        seed=seed,
    )
    with naming_the_noise(index, asked, noise_variance):
        answer = attributor.answer(question)
    if as_json:
        typer.echo(json.dumps(asdict(answer), indent=2, ensure_ascii=False))
    elif as_csv:
        typer.echo(hits_csv(answer), nl=False)
    else:
        typer.echo(readable(index, answer, asked_example(index, row=row, train_id=train_id)))


def flag_of(pointer: str) -> str | None:
    """Name the flag that a mistake is about.

    Args:
        pointer: JSON pointer into the API's request.

    Returns:
        The flag; None where no flag says it.
    """
    while pointer and pointer not in FLAGS:
        pointer = pointer.rpartition("/")[0]
    return FLAGS.get(pointer)


def fail(message: str) -> NoReturn:
    """Refuse flags that contradict each other.

    Args:
        message: What is wrong.

    Raises:
        BuildSettingsError: Always.
    """
    raise BuildSettingsError(message)


def resolve(
    attributor: Attributor,
    *,
    row: int | None,
    train_id: str | None,
    include_self: bool,
    sketch: Path | None,
    target: str | None,
) -> QuerySketch:
    """Turn the flags that name a query into one.

    Args:
        attributor: The index.
        row: A row of the query set.
        train_id: Id of a training example.
        include_self: Whether that example stays a candidate.
        sketch: A .npy file.
        target: ``predicted``, ``true`` or a label, as text.

    Returns:
        The query.

    Raises:
        BuildSettingsError: If not exactly one of the three is given, or one cannot be read.
    """
    if sum(given is not None for given in (row, train_id, sketch)) != 1:
        raise BuildSettingsError("give exactly one of --row, --train-id and --sketch")
    if include_self and train_id is None:
        raise BuildSettingsError("--include-self belongs to --train-id")
    wanted = None if target is None else _target(attributor, target)
    if row is not None:
        return attributor.resolve_query_row(row, wanted)  # type: ignore[arg-type]
    if train_id is not None:
        return attributor.resolve_train_id(train_id, wanted, include_self=include_self)  # type: ignore[arg-type]
    assert sketch is not None
    try:
        values = np.load(sketch, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise BuildSettingsError(f"--sketch {sketch}: not a .npy file that can be read ({error})") from error
    if values.dtype.kind not in "fiu":
        raise BuildSettingsError(f"--sketch {sketch}: holds {values.dtype}, must hold numbers")
    label = wanted if isinstance(wanted, int) else None
    return attributor.resolve_sketch(torch.from_numpy(values.astype(np.float64)), label)


def _target(attributor: Attributor, given: str) -> str | int:
    names = attributor.index.manifest.labels.names or {}
    if given in ("predicted", "true"):
        return given
    if given.isdecimal():
        return int(given)
    if given in names.values():
        return next(int(label) for label, name in names.items() if name == given)
    known = (
        f", or one of the names {', '.join(list(names.values())[:12])}{' …' if len(names) > 12 else ''}"
        if names
        else ""
    )
    raise BuildSettingsError(f"--target {given!r} must be predicted, true, the number of a class{known}")


def numbers(text: str, flag: str) -> list[int]:
    """Read whole numbers separated by commas.

    Args:
        text: What was typed.
        flag: Where, for the message.

    Returns:
        The numbers.

    Raises:
        BuildSettingsError: If a part is not a whole number from 0.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise BuildSettingsError(f"{flag} {text!r} must be whole numbers separated by commas, such as 0,3")
    return [int(part) for part in parts]


def hits_csv(answer: Answer) -> str:
    """Write the hits as CSV with a header; ``represents`` is the count.

    Args:
        answer: The answer.

    Returns:
        The text.
    """
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    for hit in answer.hits:
        values = asdict(hit) | {"represents": hit.represents.count}
        writer.writerow([values[name] for name in COLUMNS])
    return stream.getvalue()


def asked_example(index: Index, *, row: int | None, train_id: str | None) -> tuple[ExampleTable, int] | None:
    """Find the stored example that was asked about.

    Args:
        index: The index.
        row: A row of the query set, or None.
        train_id: The id of a training example, or None.

    Returns:
        Its table and row; None for a sketch.
    """
    if row is not None and index.queries is not None:
        return index.queries.examples, row
    return None if train_id is None else (index.examples, index.examples.row(train_id))


def readable(index: Index, answer: Answer, asked_about: tuple[ExampleTable, int] | None = None) -> str:
    """Write an answer for a person; hits with metadata, or with previews that are text, follow the table.

    Args:
        index: The index, for the names of labels, metadata and previews.
        answer: The answer.
        asked_about: Table and row of the query's example.

    Returns:
        Several lines.
    """
    names = index.manifest.labels.names or {}

    def named(label: int | None) -> str:
        return "-" if label is None else names.get(str(label), str(label))

    asked, told, search = answer.query, answer.information, answer.search
    true = None if asked_about is None else asked_about[0].label(asked_about[1])
    truly = "" if true is None or true == NO_LABEL else f", truly {named(true)}"
    lines = [
        ("index", f"{answer.index.name}, revision {answer.index.revision}"),
        ("query", f"explained as {named(asked.label)}, predicted {named(asked.predicted_label)}{truly}"),
        ("noise", f"relative {answer.relative_noise:.4g}, σ² {answer.noise_variance:.4g}"),
        ("variance", f"{asked.prior_variance:.4g} before, {asked.posterior_variance:.4g} after"),
    ]
    exact = "exact" if search.exact else "not exact"
    factory = "" if search.factory is None else f" {search.factory}"
    asked_index = counted(search.index_queries, "index query", "index queries")
    lines.append(("search", f"{search.engine}{factory}, {exact}, {asked_index}, by {answer.method}"))
    table = _columns(
        [
            ("rank", "id", "label", f"step nats ({answer.nats_criterion})", "cumulative", "sign", "stands for"),
            *(
                (
                    str(hit.rank),
                    hit.id,
                    named(hit.label),
                    f"{hit.step_nats:.4f}",
                    f"{hit.cumulative_nats:.4f}",
                    "+" if hit.covariance >= 0 else "-",
                    str(hit.represents.count),
                )
                for hit in answer.hits
            ),
        ]
    )
    said = [aligned(lines), *([] if asked_about is None else example_lines(*asked_about)), "", table, ""]
    for hit in answer.hits:
        shown = example_lines(index.examples, hit.row)
        if shown:
            sign = "+" if hit.covariance >= 0 else "-"
            said += [f"{hit.rank}. {hit.id}, {named(hit.label)}, {hit.step_nats:.4f} nats, {sign}", *shown, ""]
    these = "This example carries" if len(answer.hits) == 1 else f"These {len(answer.hits)} examples carry"
    if told.available_nats is not None and told.fraction is not None:
        said.append(
            f"{these} {told.fraction:.0%} of what the comparable training examples "
            f"know about this prediction ({told.infogain_nats:.4g} of {told.available_nats:.4g} nats)."
        )
    else:
        reason = f" ({told.available_reason})" if told.available_reason else ""
        said.append(f"{these} {told.infogain_nats:.4g} nats{reason}.")
    if told.infoloss_nats is not None:
        said.append(f"Without them, the rest would leave {told.infoloss_nats:.4g} nats more uncertainty.")
    said += [f"warning: {warning}" for warning in answer.warnings]
    return "\n".join(said)


def _columns(rows: Iterable[tuple[str, ...]]) -> str:
    rows = list(rows)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
