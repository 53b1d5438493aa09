"""The journal keeps what is finished, and nothing that is not."""

import pytest

from experiments.journal import Journal, OtherSettingsError, claim


def refused():
    raise AssertionError("computed twice")


def test_a_value_is_computed_once_and_found_again(tmp_path):
    path = tmp_path / "folder" / "work.jsonl"
    assert Journal(path, {"a": 1}).once("key", lambda: [1.5, True]) == [1.5, True]
    again = Journal(path, {"a": 1})
    assert "key" in again
    assert again.once("key", refused) == [1.5, True]
    assert list(again) == ["key"]


def test_a_line_that_was_cut_off_is_done_again(tmp_path):
    path = tmp_path / "work.jsonl"
    journal = Journal(path, {})
    journal.once("first", lambda: 1)
    journal.once("second", lambda: 2)
    path.write_bytes(path.read_bytes()[:-4])
    again = Journal(path, {})
    assert again.once("first", refused) == 1
    assert "second" not in again
    assert again.once("second", lambda: 3) == 3
    assert Journal(path, {})["second"] == 3


def test_other_settings_are_refused_by_name(tmp_path):
    Journal(tmp_path / "work.jsonl", {"epochs": 3, "dim": 4})
    with pytest.raises(OtherSettingsError, match=r"epochs differ.*--out"):
        Journal(tmp_path / "work.jsonl", {"epochs": 5, "dim": 4})


def test_a_folder_belongs_to_one_run(tmp_path):
    claim(tmp_path / "out", "panels, size small")
    claim(tmp_path / "out", "panels, size small")
    with pytest.raises(OtherSettingsError, match="holds a run of panels, size small; this is panels-text"):
        claim(tmp_path / "out", "panels-text, size small")
