"""Printed tables: every number can be read, however narrow the console."""

import io
import re

import pytest
from rich.console import Console

from experiments.report import Report, print_report

TEXT = "class logit, NTK scales, gain 1 in the last layer"
ROWS = [
    {"kernel": TEXT, "ranked_by": "inner product without 6.weight", "recall": 0.123, "recall_standard_error": 0.045},
    {"kernel": TEXT, "ranked_by": "cosine", "recall": 1234.5, "recall_standard_error": 0.046},
]
MANY = [{"method": "infogain_approx", "count": 12345} | {f"measure_{n}_of_it": 0.125 + n for n in range(9)}]


def printed(rows: list[dict], width: int, seeds: int = 1, errors_over: str = "2 queries") -> str:
    file = io.StringIO()
    report = Report("Title", rows, {"seeds": seeds, "errors_over": errors_over}, lambda path: None)
    print_report(report, Console(file=file, width=width))
    return file.getvalue()


@pytest.mark.parametrize("width", [20, 40, 80, 200])
def test_texts_fold_and_numbers_do_not(width):
    shown = printed(ROWS, width)
    assert "0.123 ± 0.045" in shown
    assert "1234 ± 0.046" in shown or "1235 ± 0.046" in shown
    # Nothing of a text is cut: its letters are there, line by line.
    column = "".join(line.split("│")[1].strip() for line in shown.splitlines() if line.startswith("│"))
    assert column.replace(" ", "") == (TEXT * 2).replace(" ", "")


@pytest.mark.parametrize("width", [40, 80, 200])
def test_many_numbers_make_long_lines_before_one_is_cut(width):
    shown = printed(MANY, width)
    for value in ("12345", *(f"{0.125 + n:.3f}" for n in range(9))):
        assert re.search(rf"\b{value}\b", shown), value
    assert "…" not in shown


def test_errors_are_explained_only_where_there_are_some():
    assert "± is one standard error over 2 queries" in printed(ROWS, 200)
    without = [row | {"recall_standard_error": None} for row in ROWS]
    for rows in (without, MANY):
        assert printed(rows, 200).rstrip().endswith("seeds: 1")


def test_a_table_that_fits_is_no_wider_than_the_console():
    assert max(map(len, printed(ROWS, 80).splitlines())) <= 80


@pytest.mark.parametrize(("seeds", "errors_over"), [(1, "25 queries"), (3, "3 seeds")])
def test_what_is_printed_last_says_how_many_seeds_there_are_and_what_the_errors_are_over(seeds: int, errors_over: str):
    *_, last = printed(ROWS, 80, seeds, errors_over).splitlines()
    assert last == f"seeds: {seeds}; ± is one standard error over {errors_over}"
