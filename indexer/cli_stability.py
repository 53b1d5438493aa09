"""What `indexer verify --stability` prints: how an index's answers change with the seed of its sketch."""

from __future__ import annotations

import json
from pathlib import Path

import typer
from rich.console import Console

from indexer.stability import StabilityReport, measure_stability
from indexer.terminal import aligned, progress_on
from sketchstore.reader import open_index


def print_stability(
    directory: Path,
    recipe: Path | None,
    data_dir: Path | None,
    seed: int | None,
    rows: int,
    queries: int,
    picks: int,
    as_json: bool,
) -> None:
    """Measure how stable an index is, and print it.

    Args:
        directory: The index directory.
        recipe: The recipe's file, or None.
        data_dir: Folder of the data files.
        seed: The other seed.
        rows: Rows of the sample.
        queries: Its queries.
        picks: Picks for each.
        as_json: Whether to print JSON.
    """
    index = open_index(directory, check="use", derived=False)
    with progress_on(Console(stderr=True)) as progress:
        report = measure_stability(
            index,
            recipe=None if recipe is None else str(recipe),
            data_dir=data_dir,
            seed=seed,
            rows=rows,
            queries=queries,
            picks=picks,
            progress=progress,
        )
    if as_json:
        typer.echo(json.dumps({"path": str(directory), **report.as_json()}, indent=2))
    else:
        typer.echo(_readable(report))


def _readable(report: StabilityReport) -> str:
    rows = "" if report.label is None else f" of label {report.label}"
    asked = "of the query set" if report.query_split == "query" else "held out of the training set"
    table = [
        ("sample", f"view {report.view}, {report.pool_rows} rows{rows}, {report.queries} queries {asked}"),
        (
            "sketch",
            f"{report.family} to {report.sketch_dim} numbers, seed {report.seed} against seed {report.other_seed}",
        ),
        ("rebuilt", f"at the index's own seed, to {report.rebuilt_difference:.1e} of a sketch's length"),
        ("kernel", f"values differ by {report.kernel_spread:.2%} of ‖φ‖‖φ′‖, mean ‖φ‖² × {report.norm_ratio:.3f}"),
    ]
    for nats in report.nats:
        pool, chosen = (_times(nats[f"{name}_ratio"]) for name in ("pool", "set"))
        table.append(
            (
                f"noise {nats['relative_noise']:g}",
                f"{nats['shared_picks_fraction']:.0%} of the picks in common, nats of a selected set {chosen}, of the "
                f"pool {pool}",
            )
        )
    return aligned(table)


def _times(ratio: float | None) -> str:
    return "none" if ratio is None else f"× {ratio:.3f}"
