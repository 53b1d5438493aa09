"""Puts what the programs wrote with --json into docs/benchmarks.md, so that no figure there is typed by hand.

A table goes between ``<!-- benchmarks.selection -->`` and ``<!-- end -->``, and its plot beside the page. Without
--docs the tables are printed.

    python -m benchmarks.report results/selection.json results/concurrency.json results/growth.json --docs docs
"""

import argparse
import json
import re
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import concurrency, growth, selection
from benchmarks.plots import plot_concurrency, plot_selection

PAGE = "benchmarks.md"
LINE_WIDTH = 140
PROGRAMS = {
    "benchmarks.selection": selection,
    "benchmarks.concurrency": concurrency,
    "benchmarks.growth": growth,
}
PLOTS: dict[str, tuple[Callable[[dict[str, Any], Path], None], str]] = {
    "benchmarks.selection": (plot_selection, "selection-passes.png"),
    "benchmarks.concurrency": (plot_concurrency, "throughput.png"),
}


def circumstances(report: dict[str, Any]) -> str:
    """Say in a line when, on what and beside what was measured."""
    machine, load = report["machine"], report["load"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return (
        f"Measured on {report['measured_at'][:10]}: {machine['processor']}, {machine['cores']} cores, "
        f"{machine['memory_bytes'] / 2**30:.0f} GiB, {machine['threads']['torch']} threads; load {load['before']:g} "
        f"before and {load['after']:g} after; {versions}."
    )


def section(report: dict[str, Any]) -> str:
    """Lay out a report: what was measured, how, and the table."""
    program = PROGRAMS[report["program"]]
    words = textwrap.fill(f"{program.settings(report)} {circumstances(report)}", LINE_WIDTH)
    return f"{words}\n\n{program.table(report)}"


def insert(page: str, program: str, text: str) -> str:
    """Replace what stands between a program's mark and the end mark.

    Args:
        page: The page.
        program: The program.
        text: What shall stand there.

    Returns:
        The page with it.

    Raises:
        SystemExit: If the page has no such marks.
    """
    begin, end = f"<!-- {program} -->", "<!-- end -->"
    marked = re.compile(f"{re.escape(begin)}.*?{end}", re.DOTALL)
    if not marked.search(page):
        raise SystemExit(f"{PAGE} has no place for {program}: put {begin} and {end} where its table shall stand")
    return marked.sub(lambda _: f"{begin}\n\n{text}\n\n{end}", page, count=1)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, print the tables or put them into the page.

    Args:
        arguments: Command line; None takes the process's.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reports", type=Path, nargs="+", help="JSON files of the programs")
    parser.add_argument("--docs", type=Path, help=f"folder of {PAGE}, which gets the tables and plots")
    options = parser.parse_args(arguments)
    for path in options.reports:
        report = json.loads(path.read_text("utf-8"))
        program = report["program"]
        if options.docs is None:
            print(section(report), end="\n\n")
            continue
        page = options.docs / PAGE
        page.write_text(insert(page.read_text("utf-8"), program, section(report)), "utf-8")
        if program in PLOTS:
            plot, name = PLOTS[program]
            plot(report, options.docs / name)


if __name__ == "__main__":
    main()
