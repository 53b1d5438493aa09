"""What an experiment hands over, and how it is written: JSON with everything, CSV with the table, PNG with the plot."""

import csv
import json
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

Row = Mapping[str, Any]
ERROR = "_standard_error"
#: Letters of a text that a narrow console leaves in a line.
_LEAST_TEXT = 8


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
    """Print the table, each mean with its standard error where there is one, and over how many seeds.

    Where the console is too narrow, texts fold and numbers stay whole; where that is not enough, lines are longer than
    the console is wide.
    """
    columns = [name for name in report.rows[0] if not name.endswith(ERROR)]
    table = Table(title=report.title, title_justify="left", header_style="none")
    cells = {name: [_cell(row[name], row.get(name + ERROR)) for row in report.rows] for name in columns}
    needed = 1
    for name in columns:
        title, longest = name.replace("_", " "), max(map(len, cells[name]))
        if any(isinstance(row[name], str) for row in report.rows):
            table.add_column(title, overflow="fold")
            needed += min(longest, _LEAST_TEXT) + 3
        else:
            # A title is broken here, because a column that may not fold has its title's width.
            title = textwrap.fill(title, max(longest, _LEAST_TEXT), break_long_words=False)
            table.add_column(title, justify="right", no_wrap=True)
            needed += max(longest, *map(len, title.split("\n"))) + 3
    for line in zip(*cells.values(), strict=True):
        table.add_row(*line)
    if needed > console.width:
        table.width = needed
    console.print(table, crop=False, overflow="ignore")
    has_errors = any(value is not None for row in report.rows for name, value in row.items() if name.endswith(ERROR))
    over = f"; ± is one standard error over {report.facts['errors_over']}" if has_errors else ""
    console.print(f"seeds: {report.facts['seeds']}{over}")


def _cell(value: Any, error: float | None) -> str:
    if value is None:
        return "–"
    if not isinstance(value, float):
        return str(value)
    shown = f"{value:.3f}" if abs(value) < 100 else f"{value:.4g}"
    return shown if error is None else f"{shown} ± {error:.3f}"
