"""Stored examples in the terminal: texts in full and harmless, pictures not at all."""

import json

from indexer.cli_previews import WIDTH, preview_lines


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
