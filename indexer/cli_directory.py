"""The commands of `indexer` that work on a published index directory: info, verify, derive."""

from __future__ import annotations

import json
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from indexer.build_settings import BuildSettingsError
from indexer.cli_query import fail
from indexer.cli_stability import print_stability
from indexer.derive import DEFAULT_CODES, DEFAULT_FACTORY, CodesChoice, derive
from indexer.stability import PICKS, QUERIES, ROWS
from indexer.terminal import aligned, counted, progress_on, size
from sketchstore.earlier_rows import OTHER_ROWS, is_of_other_rows
from sketchstore.reader import Index, open_index, verify_index

Directory = Annotated[Path, typer.Argument(metavar="DIR", help="An index directory.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def index_facts(index: Index) -> dict[str, Any]:
    """Return what an index says about itself: its manifest, its derived entries, its sizes, its last build's rates.

    Args:
        index: The open index.

    Returns:
        JSON values.
    """
    manifest = index.manifest.model_dump(mode="json")
    files = manifest.pop("files")
    derived = {file: entry.model_dump(mode="json") for file, entry in index.derived.entries().items()}
    return {
        **manifest,
        "path": str(index.path),
        "bytes": {
            "sketches": sum(entry["bytes"] for file, entry in files.items() if file.startswith("sketches/")),
            "files": sum(entry["bytes"] for entry in files.values()),
            "derived": sum(entry["bytes"] for entry in derived.values()),
        },
        "num_files": len(files),
        "derived": derived,
        "last_build": last_build(index),
    }


def last_build(index: Index) -> dict[str, Any] | None:
    """Return the last line that a finished build wrote into build-log.jsonl, or None.

    Args:
        index: The open index.

    Returns:
        Times, rates and what sketching one query took; covered by no digest.
    """
    try:
        lines = (index.path / "build-log.jsonl").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return None
    for line in reversed(lines):
        try:
            event = json.loads(line)
        except ValueError:  # a kill in the middle of a line; nothing depends on this file
            continue
        if isinstance(event, dict) and event.get("event") == "finish":
            return event
    return None


def info(directory: Directory, as_json: Json = False) -> None:
    """Describe an index: rows, sketch, measurement, views, labels, recipe, derived files, measured distortion.

    Example: indexer info indexes/digits
    """
    index = open_index(directory, check="sizes", derived=False)
    facts = index_facts(index)
    if as_json:
        typer.echo(json.dumps(facts, indent=2, ensure_ascii=False))
        return
    sketch, manifest = index.manifest.sketch, index.manifest
    table: list[tuple[str, str]] = []
    table.append(("index", f"{index.name}, revision {index.revision}, format {manifest.format_version}"))
    table.append(
        ("recipe", f"{manifest.recipe.name}{'' if manifest.recipe.builtin else ' (a file)'} {_options(facts)}".rstrip())
    )
    queries = 0 if manifest.queries is None else manifest.queries.count
    table.append(("rows", f"{index.num_rows} training, {counted(queries, 'query', 'queries')}"))
    table += _upkeep_lines(index)
    table.append(("measurement", manifest.measurement.name))
    scaled = "NTK scaling" if manifest.build.options.get("ntk_gain") else "no NTK scaling"
    table.append(
        (
            "sketch",
            f"{sketch.family}, seed {sketch.seed}, {sketch.num_parameters} parameters to {sketch.dim} numbers, "
            f"{scaled}",
        )
    )
    for name, view in manifest.views.items():
        compares = "rows of one label" if view.comparable == "label" else "all rows"
        line = f"{name}: {compares} compare, mean ‖φ‖² {view.mean_squared_norm:.4g}, {manifest.dtype}"
        table.append(("view", line + (f" × 2^{view.scale_exponent}" if view.scale_exponent else "")))
    names = manifest.labels.names or {}
    counts = ", ".join(f"{names.get(label, label)} {count}" for label, count in manifest.labels.counts.items())
    table.append(("labels", counts or "none"))
    table.append(("bytes", ", ".join(f"{kind} {size(count)}" for kind, count in facts["bytes"].items())))
    kinds = Counter(entry["kind"] for entry in facts["derived"].values())
    listed = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    table.append(("derived", f"{kinds.total()} files: {listed}" if kinds else "nothing"))
    noise = manifest.default_relative_noise
    table.append(("noise", "not tuned" if noise is None else f"relative {noise:g} by default{_tuned(index)}"))
    for line in _distortion_lines(manifest.distortion):
        table.append(("distortion", line))
    build = facts["last_build"]
    if build and build.get("query_sketch_seconds") is not None:
        table.append(("query", f"{build['query_sketch_seconds']:.3g} s to sketch one by example where it was built"))
    typer.echo(aligned(table))


def _upkeep_lines(index: Index) -> list[tuple[str, str]]:
    manifest, lines = index.manifest, []
    if withdrawn := manifest.num_places - manifest.num_rows:
        rows = counted(withdrawn, "row is", "rows are")
        lines.append(("withdrawn", f"{rows} in no answer and still in the files; indexer remove --purge"))
    for source in manifest.sources if len(manifest.sources) > 1 else ():
        options = ", ".join(f"{key}={value}" for key, value in source.recipe.options.items())
        rows = f"rows {source.first_row} to {source.first_row + source.rows - 1} of {source.recipe.name}"
        behind = f", ids behind {source.id_prefix!r}" if source.id_prefix else ""
        lines.append(("source", f"{rows}{f' ({options})' if options else ''}{behind}"))
    return lines


def _tuned(index: Index) -> str:
    tuning = index.manifest.noise_tuning
    if not isinstance(tuning, dict):
        return ""
    method, rows, since = tuning.get("method"), tuning.get("num_rows"), ""
    if is_of_other_rows(tuning, index.num_rows):
        now = "others" if rows == index.num_rows else str(index.num_rows)
        since = f", tuned on {rows} rows where there are {now} now: indexer tune again"
    edge = f", at the {tuning['at_edge']} end of its grid" if tuning.get("at_edge") else ""
    return f" ({method}{edge}{since})"


def _options(facts: dict[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in facts["recipe"]["options"].items())


def _distortion_lines(distortion: Any) -> list[str]:
    if not isinstance(distortion, dict):
        return ["not measured"]
    if distortion.get("exact"):
        return [f"none: {distortion['reason']}"]
    if "kernel" not in distortion or "nats" not in distortion:  # free JSON by the format: others may measure otherwise
        return ["measured; --json shows it"]
    kernel = distortion["kernel"]
    since = ", measured before rows came or went" if distortion.get(OTHER_ROWS) else ""
    lines = [f"view {distortion['view']}{since}: kernel values spread by {kernel['relative_spread']:.2%} of ‖g‖‖g′‖"]
    bias, ratio = (
        kernel.get("bias_in_standard_errors"),
        kernel.get("squared_norm_ratio"),
    )  # indexes of before have no ratio
    if bias is not None and ratio is not None:
        lines.append(f"mean error {bias:+.1f} of its standard errors (right: within ±3), squared norms × {ratio:.3f}")
    size = f" of {distortion['pool_rows']} rows" if "pool_rows" in distortion else ""
    for nats in distortion["nats"]:
        pool, chosen = nats["pool_ratio"], nats["set_ratio"]
        if pool is not None and chosen is not None:
            lines.append(
                f"at relative noise {nats['relative_noise']:g}: nats of a pool{size} × {pool:.3f}, of a selected set × "
                f"{chosen:.3f}, picks shared {nats['shared_picks_fraction']:.0%}"
            )
    return lines


def verify(
    directory: Directory,
    stability: Annotated[
        bool,
        typer.Option(
            "--stability",
            help="Instead, sketch a sample again under another seed, and say how stable nats and picks are.",
        ),
    ] = False,
    recipe: Annotated[
        Path | None, typer.Option(help="With --stability: the recipe's file, where it is a user's.")
    ] = None,
    data_dir: Annotated[Path | None, typer.Option(help="With --stability: folder of the recipe's data files.")] = None,
    seed: Annotated[
        int | None, typer.Option(help="With --stability: the other seed. Default: the index's plus 1.")
    ] = None,
    rows: Annotated[int, typer.Option(min=2, help="With --stability: rows of the sample.")] = ROWS,
    queries: Annotated[int, typer.Option(min=1, help="With --stability: queries of the sample.")] = QUERIES,
    picks: Annotated[int, typer.Option(min=1, help="With --stability: picks for each query.")] = PICKS,
    as_json: Json = False,
) -> None:
    """Read everything in an index and name all damage. Exits with 0 if it is sound, with 1 if it is damaged.

    Example: indexer verify indexes/digits
    """
    if stability:
        print_stability(directory, recipe, data_dir, seed, rows, queries, picks, as_json)
        return
    given = {"--recipe": recipe, "--data-dir": data_dir, "--seed": seed}
    if alone := [flag for flag, value in given.items() if value is not None]:
        fail(f"{', '.join(alone)}: only with --stability; verify alone reads what is stored and needs no recipe")
    damage = verify_index(directory)
    if as_json:
        found = {"path": str(directory), "sound": not damage, "damage": [asdict(entry) for entry in damage]}
        typer.echo(json.dumps(found, indent=2))
    elif damage:
        for entry in damage:
            typer.echo(f"{entry.file}: {entry.message} [{entry.kind}]")
    else:
        typer.echo(f"{directory} is sound")
    if damage:
        sys.exit(1)


def codes_choice(text: str) -> CodesChoice:
    """Read the option ``--codes``.

    Args:
        text: What was typed.

    Returns:
        The choice.

    Raises:
        BuildSettingsError: If it is not int8 or none.
    """
    match text:
        case "int8" | "none":
            return text
        case _:
            raise BuildSettingsError(f"--codes {text!r} must be int8 or none")


def derive_command(
    directory: Directory,
    faiss: Annotated[str, typer.Option(metavar="FACTORY", help="FAISS factory string, or none to remove.")] = (
        DEFAULT_FACTORY
    ),
    spectra: Annotated[bool, typer.Option("--spectra/--no-spectra", help="Spectra for nats of whole pools.")] = True,
    codes: Annotated[
        str, typer.Option(help="int8: codes and heads for views with a partition of more rows than d. Or none.")
    ] = DEFAULT_CODES,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Build even what is there and sound.")] = False,
    as_json: Json = False,
) -> None:
    """Write the derived part of an index: FAISS search indexes, spectra, codes and heads. Nothing else is touched.

    Example: indexer derive indexes/digits --faiss HNSW32
    """
    choice = codes_choice(codes)
    index = open_index(directory, derived=False)
    with progress_on(Console(stderr=True)) as progress:
        report = derive(
            index,
            faiss=None if faiss == "none" else faiss,
            spectra=spectra,
            codes=choice,
            rebuild=rebuild,
            progress=progress,
        )
    if as_json:
        typer.echo(json.dumps(asdict(report), indent=2))
        return
    for what, files in asdict(report).items():
        for file in files:
            typer.echo(f"{what}  derived/{file}")
