"""The journal keeps what is finished, and nothing that is not."""

import os

import pytest

from experiments.journal import DamagedFileError, Journal, OtherSettingsError, claim, unclaim


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


def test_a_claim_that_was_never_written_is_none(tmp_path):
    (tmp_path / "run.txt").touch()
    claim(tmp_path, "panels, size small")
    assert (tmp_path / "run.txt").read_text(encoding="utf-8") == "panels, size small\n"
    assert [file.name for file in tmp_path.iterdir()] == ["run.txt"]


def test_a_claim_is_taken_back_only_where_nothing_else_is(tmp_path):
    claim(tmp_path, "panels")
    unclaim(tmp_path)
    claim(tmp_path, "lds")
    (tmp_path / "network.safetensors").touch()
    unclaim(tmp_path)
    with pytest.raises(OtherSettingsError, match="a run of lds"):
        claim(tmp_path, "panels")


@pytest.mark.parametrize(
    ("number", "garbage", "cure"), [(1, b"\xff\xfe", "remove the file"), (2, b'["key"]', "remove the line")]
)
def test_a_line_that_is_none_of_a_journal_is_named(number, garbage, cure, tmp_path):
    path = tmp_path / "work.jsonl"
    Journal(path, {}).once("first", lambda: 1)
    lines = path.read_bytes().splitlines()
    lines[number - 1] = garbage
    path.write_bytes(b"\n".join(lines) + b"\n")
    with pytest.raises(DamagedFileError, match=rf"work\.jsonl, line {number}: .*{cure}"):
        Journal(path, {})


def test_a_cut_line_is_taken_away_in_a_new_file(tmp_path):
    path = tmp_path / "work.jsonl"
    Journal(path, {}).once("first", lambda: 1)
    path.write_bytes(path.read_bytes() + b'{"key": "sec')
    os.link(path, tmp_path / "before")
    Journal(path, {})
    assert path.read_bytes().endswith(b'"value": 1}\n')
    assert (tmp_path / "before").read_bytes().endswith(b'"sec'), "the old file was written over"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["before", "work.jsonl"]
