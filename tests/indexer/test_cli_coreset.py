"""`indexer coreset`, as typed: the file it writes, what it refuses, and what Ctrl-C leaves."""

import csv
import io
import json
import os
import signal

import pytest

from indexer.attributor import coreset as library
from sketchstore.reader import open_index
from tests.index_factory import make_index
from tests.indexer.small_recipes import write_recipe
from tests.indexer.test_cli import run


@pytest.fixture(scope="module")
def points(tmp_path_factory, weights_cache):
    """An index of margins, built from a recipe."""
    folder = tmp_path_factory.mktemp("coreset")
    words = ["--measurement", "margin", "--sketch", "rademacher", "--dim", "32", "--num-queries", "8"]
    assert run("build", write_recipe(folder), "--out", folder / "points", *words) == 0
    return folder / "points"


@pytest.mark.parametrize("rule", ["infogain", "infogain_approx", "infoloss"])
def test_the_file_holds_rows_in_order_with_ids_labels_scores_and_nats(points, tmp_path, capsys, rule):
    words = ["coreset", points, "--budget", "5", "--rule", rule, "--relative-noise", "1"]
    assert run(*words, "--out", tmp_path / "a.json") == 0
    printed = capsys.readouterr()
    assert "5 of 60 rows" in printed.out
    assert "selecting rows: 5 to do" in printed.err
    answer = json.loads((tmp_path / "a.json").read_text("utf-8"))
    index = open_index(points)
    assert answer["index"] == {"name": "points", "revision": index.revision}
    assert answer["complete"] is True
    assert (answer["stopped"], answer["weighting"], answer["relative_noise"]) == ("budget", "inverse_variance", 1.0)
    assert (answer["queries"], answer["table_bytes"]) == (8, 4 * 60 * 8)
    assert answer["nats_criterion"] == ("infoloss" if rule == "infoloss" else "infogain")
    picks = answer["picks"]
    assert [pick["rank"] for pick in picks] == [1, 2, 3, 4, 5]
    assert [pick["id"] for pick in picks] == [index.examples.id(pick["row"]) for pick in picks]
    nats = [pick["mean_nats"] for pick in picks]
    assert nats == sorted(nats)
    assert run(*words, "--out", tmp_path / "a.csv") == 0
    rows = list(csv.DictReader(io.StringIO((tmp_path / "a.csv").read_text("utf-8"))))
    assert [int(row["row"]) for row in rows] == [pick["row"] for pick in picks]
    assert [float(row["mean_nats"]) for row in rows] == nats
    assert {(row["complete"], row["revision"], row["weighting"]) for row in rows} == {
        ("true", index.revision, "inverse_variance")
    }


def test_an_untuned_noise_is_said(points, tmp_path, capsys):
    assert run("coreset", points, "--budget", "2", "--queries", "3", "--out", tmp_path / "a.json") == 0
    assert "untuned" in capsys.readouterr().out
    assert "untuned" in json.loads((tmp_path / "a.json").read_text("utf-8"))["warnings"][0]


@pytest.mark.parametrize("presses", [1, 2])
def test_ctrl_c_leaves_what_was_selected_so_far_marked_incomplete(points, tmp_path, capsys, monkeypatch, presses):
    picks = library.Coreset.picks

    def interrupted(self):
        for pick in picks(self):
            if pick.rank == 3:
                for _ in range(presses):
                    os.kill(os.getpid(), signal.SIGINT)
            yield pick

    monkeypatch.setattr(library.Coreset, "picks", interrupted)
    out = tmp_path / "a.json"
    assert run("coreset", points, "--budget", "9", "--relative-noise", "1", "--out", out) == 130
    assert presses == 2 or "3 of 9 rows were selected" in capsys.readouterr().err
    answer = json.loads(out.read_text("utf-8"))
    assert (answer["complete"], answer["stopped"]) == (False, "interrupted")
    # The second Ctrl-C does not wait for the third row.
    assert [pick["rank"] for pick in answer["picks"]] == [1, 2, 3][: 4 - presses]
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out", "a.txt"], "must end in .json or .csv"),
        (["--out", "nowhere/a.json"], "there is no folder"),
        (["--out", "there.json"], "--overwrite"),
        (["--queries", "many"], "all, or one whole number"),
        (["--queries", "9"], "stores 8"),
        (["--budget", "61"], "exceeds the 60 rows"),
        (["--rule", "joint"], "infogain_approx"),
    ],
)
def test_wrong_words_exit_with_2_before_any_work(points, tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.json").write_text("{}", "utf-8")
    assert run("coreset", points, "--budget", "2", "--out", "a.json", *words) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "a.json").exists()
    assert (tmp_path / "there.json").read_text("utf-8") == "{}"


def test_an_own_label_index_asks_for_a_label(tmp_path, capsys):
    path = make_index(tmp_path, view="own").path
    words = ["coreset", path, "--budget", "2", "--relative-noise", "1", "--out", tmp_path / "a.json"]
    assert run(*words) == 2
    assert "--label" in capsys.readouterr().err
    assert run(*words, "--label", "1") == 0
    assert {pick["label"] for pick in json.loads((tmp_path / "a.json").read_text("utf-8"))["picks"]} == {1}
