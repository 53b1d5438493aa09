"""Every program from the command line to the table and the plot, on an index of 300 rows; no figure is judged."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from benchmarks import concurrency, growth, report, selection
from sketchstore.reader import Index
from tests.index_factory import make_index

ENVELOPE = {"program", "arguments", "measured_at", "machine", "load"}
BUDGET = 6


def printed(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """Standard output, which holds one JSON document and nothing else."""
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def is_picture(path: Path) -> bool:
    with Image.open(path) as image:
        return image.format == "PNG" and min(image.size) > 300


def test_selection_reports_every_noise_with_identical_picks(
    small_index: Index, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plot = tmp_path / "passes.png"
    arguments = ["--index", str(small_index.path), "--queries", "2", "--budget", str(BUDGET), "--noise", "1000", "0.01"]
    selection.main([*arguments, "--json", "--plot", str(plot)])
    found = printed(capsys)
    assert set(found) == ENVELOPE | {
        "index",
        "engine",
        "budget",
        "read_only_pass_ms",
        "plain_product_ms",
        "by_noise",
        "turns",
    }
    assert [line["relative_noise"] for line in found["by_noise"]] == [1000.0, 0.01]
    for line in found["by_noise"]:
        assert set(line) == {
            "relative_noise",
            "queries",
            "answer_ms",
            "selection_ms",
            "rest_ms",
            "literal_faiss_ms",
            "literal_strategy_ms",
            "speed_up",
            "speed_up_over_literal_strategy",
            "speed_up_of_answer",
            "plain_products",
            "plain_products_of_answer",
            "plain_products_of_literal_faiss",
            "plain_products_of_a_read",
            "read_only_passes",
            "rows_scored",
            "bytes_read",
            "scans_by_bytes",
            "index_queries",
            "all_exact",
            "selections_unlike_literal_faiss",
            "selections_unlike_literal_strategy",
            "rounding_ties",
        }
        assert line["queries"] == 2
        assert line["all_exact"]
        assert line["selections_unlike_literal_faiss"] == line["selections_unlike_literal_strategy"] == 0
        assert line["speed_up"] > 0
        assert line["answer_ms"] > line["selection_ms"] > 0
    assert all(turn["picks"] == BUDGET for turn in found["turns"])
    assert is_picture(plot)
    assert selection.table(found).count("identical") == 2


def test_selection_shows_picks_that_are_not_the_literal_loops(
    small_index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(answer: Any) -> list[int]:
        return [hit.row for hit in answer.hits][::-1]

    monkeypatch.setattr(selection, "rows_of_hits", wrong)
    found = selection.measure(small_index, num_queries=1, budget=BUDGET, relative_noises=[1.0])
    assert found["by_noise"][0]["selections_unlike_literal_faiss"] == 1
    assert "unlike" in selection.table(found)


def test_selection_refuses_an_index_that_compares_within_labels(tmp_path: Path) -> None:
    index = make_index(tmp_path, view="own")
    with pytest.raises(SystemExit, match="compares rows within a label"):
        selection.measure(index, num_queries=1)


def test_concurrency_finds_every_answer_as_it_was_alone(small_index: Index) -> None:
    found = concurrency.measure(
        small_index, clients=[1, 4], num_questions=8, rounds=1, budget=BUDGET, batched=4, server_flags=None
    )
    assert found["http"] == []
    assert [line["clients"] for line in found["threads"]] == [1, 4]
    for line in found["threads"]:
        assert (line["answers"], line["answers_unlike_alone"], line["fields_unlike_alone"]) == (8, 0, [])
    assert (found["literal_batched"]["rows_a_search"], found["literal_batched"]["selections_unlike"]) == (8, 0)
    assert set(found["speed_up_over_literal_batched"]) == {"threads"}


@pytest.mark.slow
def test_concurrency_over_http(small_index: Index, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plot = tmp_path / "throughput.png"
    arguments = ["--index", str(small_index.path), "--clients", "1", "4", "--questions", "8", "--rounds", "1"]
    concurrency.main([*arguments, "--budget", str(BUDGET), "--batched", "4", "--json", "--plot", str(plot)])
    found = printed(capsys)
    assert set(found) == ENVELOPE | {
        "index",
        "engine",
        "budget",
        "relative_noise",
        "questions",
        "rounds",
        "plain_product_ms",
        "threads",
        "http",
        "literal_batched",
        "speed_up_over_literal_batched",
    }
    for line in [*found["threads"], *found["http"]]:
        assert set(line) == {
            "clients",
            "attributions_per_second",
            "passes_per_attribution",
            "p50_ms",
            "p99_ms",
            "p99_over_p50",
            "answers",
            "answers_unlike_alone",
            "fields_unlike_alone",
        }
        assert line["fields_unlike_alone"] == []
        assert line["p99_over_p50"] >= 1
    assert is_picture(plot)
    assert "over HTTP, 4" in concurrency.table(found)


def test_growth_builds_and_measures_every_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--sizes", "900", "300", "--dim", "16", "--queries", "2", "--checked", "2", "--budget", str(BUDGET)]
    growth.main([*arguments, "--dtype", "float16", "--folder", str(tmp_path), "--json"])
    found = printed(capsys)
    assert set(found) == ENVELOPE | {
        "sketch_dim",
        "decay",
        "dtype",
        "budget",
        "relative_noise",
        "engine",
        "by_size",
        "growth",
    }
    assert [line["rows"] for line in found["by_size"]] == [300, 900]
    for line in found["by_size"]:
        assert set(line) == {
            "rows",
            "queries",
            "float32_bytes",
            "read_only_pass_ms",
            "plain_product_ms",
            "selection_ms",
            "answer_ms",
            "scans_by_time",
            "scans_by_time_of_answer",
            "bytes_read",
            "scans_by_bytes",
            "rows_scored",
            "index_queries",
            "all_exact",
            "compared_with_literal",
            "selections_unlike_literal",
        }
        assert line["all_exact"]
        assert (line["compared_with_literal"], line["selections_unlike_literal"]) == (2, 0)
    assert found["growth"]["rows"] == 3.0
    assert set(found["growth"]) == {"rows", "scans_by_time", "scans_by_time_of_answer", "scans_by_bytes"}
    assert list(tmp_path.iterdir()) == []


def test_report_puts_the_table_into_the_page_and_the_plot_beside_it(
    small_index: Index, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    selection.main(["--index", str(small_index.path), "--queries", "1", "--budget", "3", "--noise", "1", "--json"])
    written, page = tmp_path / "selection.json", tmp_path / "benchmarks.md"
    written.write_text(capsys.readouterr().out, "utf-8")
    table = selection.table(json.loads(written.read_text("utf-8")))
    report.main([str(written)])
    assert table in capsys.readouterr().out
    page.write_text("# Before\n\n<!-- benchmarks.selection -->\n\nstale\n\n<!-- end -->\n\nAfter\n", "utf-8")
    report.main([str(written), "--docs", str(tmp_path)])
    text = page.read_text("utf-8")
    assert table in text
    assert "stale" not in text
    assert text.startswith("# Before\n\n<!-- benchmarks.selection -->\n\n3 picks from 300 rows of d = 24 (float32)")
    assert text.endswith("<!-- end -->\n\nAfter\n")
    assert is_picture(tmp_path / "selection-passes.png")


def test_report_refuses_a_page_without_a_place_for_the_table() -> None:
    with pytest.raises(SystemExit, match=r"no place for benchmarks\.growth"):
        report.insert("# Nothing\n", "benchmarks.growth", "table")


def test_the_documentation_has_a_place_for_every_program() -> None:
    page = (Path(__file__).parents[2] / "docs" / report.PAGE).read_text("utf-8")
    for program in report.PROGRAMS:
        assert "| --- |" in page.partition(f"<!-- {program} -->")[2].partition("<!-- end -->")[0], program
