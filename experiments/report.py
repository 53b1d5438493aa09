"""What an experiment hands over, and how it is written: JSON with everything, CSV with the table, PNG with the plot."""

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

Row = Mapping[str, Any]
ERROR = "_standard_error"


@dataclass(frozen=True)
class Report:
    """An experiment's outcome.

    Attributes:
        title: What it shows.
        rows: The table; every row has the same columns. A column ``x_standard_error`` belongs to ``x``.
        facts: Settings and everything else worth keeping; ``seeds`` says over how many trainings the errors are.
        draw: Draws the plot into a file.
    """

    title: str
    rows: Sequence[Row]
    facts: Mapping[str, Any]
    draw: Callable[[Path], None]


def write_report(report: Report, out: Path, name: str) -> list[Path]:
    """Write ``name.json``, ``name.csv`` and ``name.png``.

    Args:
        report: The outcome.
        out: The folder; made when absent.
        name: Name of the experiment.

    Returns:
        The files.
    """
    out.mkdir(parents=True, exist_ok=True)
    files = [out / f"{name}.{ending}" for ending in ("json", "csv", "png")]
    whole = {"title": report.title, "facts": report.facts, "rows": list(report.rows)}
    files[0].write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")
    with files[1].open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(report.rows[0]))
        writer.writeheader()
        writer.writerows(report.rows)
    report.draw(files[2])
    return files


def print_report(report: Report, console: Console) -> None:
    """Print the table, each mean with its standard error, and over how many seeds."""
    columns = [name for name in report.rows[0] if not name.endswith(ERROR)]
    table = Table(title=report.title, title_justify="left", header_style="none")
    for name in columns:
        text = isinstance(report.rows[0][name], str)
        table.add_column(name.replace("_", " "), justify="left" if text else "right", no_wrap=text)
    for row in report.rows:
        table.add_row(*(_cell(row[name], row.get(name + ERROR)) for name in columns))
    console.print(table)
    console.print(f"seeds: {report.facts['seeds']}; ± is one standard error over {report.facts['errors_over']}")


def _cell(value: Any, error: float | None) -> str:
    if value is None:
        return "–"
    if not isinstance(value, float):
        return str(value)
    shown = f"{value:.3f}" if abs(value) < 100 else f"{value:.4g}"
    return shown if error is None else f"{shown} ± {error:.3f}"
