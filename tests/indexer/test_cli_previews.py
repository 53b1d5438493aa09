"""Stored examples in the terminal: texts in full and harmless, pictures not at all."""

import json

from indexer.cli_previews import WIDTH, example_lines, preview_lines
from sketchstore.examples import ExampleTable
from sketchstore.first_use import PublishedFiles
from sketchstore.tables import ExampleRow, write_examples_table


def test_texts_stand_under_their_names_and_are_wrapped():
    long = "word " * 40
    lines = preview_lines(("application/json", json.dumps({"premise": long, "label": 3}).encode()))
    assert lines[0].startswith("   premise  word word")
    assert lines[1].startswith("            word")
    assert lines[-1] == "   label    3"
    assert max(map(len, lines)) <= WIDTH
    assert preview_lines(("text/plain; charset=utf-8", b"a review")) == ["   a review"]


def test_what_a_terminal_would_obey_is_shown_instead():
    (line,) = preview_lines(("text/plain", b"red \x1b[31m alert"))
    assert line == "   red \ufffd[31m alert"


def test_pictures_and_nothing_have_no_lines():
    assert preview_lines(("image/png", b"\x89PNG")) == []
    assert preview_lines(None) == []


def test_what_is_no_text_is_cut():
    numbers = json.dumps({"values": list(range(1000)), "note": "as it is"})
    lines = preview_lines(("application/json", numbers.encode()))
    assert lines[0].startswith("   values  [0, 1, 2,")
    assert f"({len(json.dumps(list(range(1000))))} characters)" in " ".join(lines)
    assert len(lines) < 8
    assert lines[-1] == "   note    as it is"


def test_metadata_come_before_the_preview(tmp_path):
    metadata = {"source": "web", "year": 2020, "old": False, "licence": None, "label_name": "cat"}
    rows = [ExampleRow(id="a", label=0, metadata=metadata, preview="a review"), ExampleRow(id="b", label=0)]
    write_examples_table(tmp_path / "examples.parquet", rows, len(rows))
    table = ExampleTable(PublishedFiles(tmp_path), "examples.parquet", len(rows), "train")
    assert example_lines(table, 0) == ["   old false, source web, year 2020", "   a review"]
    assert example_lines(table, 1) == []
