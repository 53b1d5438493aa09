"""`indexer append`, `merge`, `remove`, `tune` and `verify --stability`, as typed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from sketchstore.reader import open_index, verify_index
from tests.index_factory import make_index
from tests.indexer.small_recipes import write_recipe
from tests.indexer.test_cli import run
from tests.indexer.test_tune import index_with_metadata

SKETCH = [
    "--measurement",
    "margin",
    "--sketch",
    "rademacher",
    "--dim",
    "32",
    "--num-queries",
    "8",
    "--block-rows",
    "16",
]


@pytest.fixture(scope="module")
def built(tmp_path_factory, weights_cache) -> Path:
    folder = tmp_path_factory.mktemp("upkeep")
    assert run("build", write_recipe(folder), "--out", folder / "points", "--limit", "40", *SKETCH) == 0
    return folder


@pytest.fixture
def points(built, tmp_path) -> Path:
    write_recipe(tmp_path)
    return Path(shutil.copytree(built / "points", tmp_path / "points"))


def test_append_adds_what_the_index_has_not_read(points, capsys):
    recipe = points.parent / "points.py"
    assert run("append", points, "--recipe", recipe) == 0
    printed = capsys.readouterr()
    assert "rows 40 to 59 of the training set" in printed.out
    assert "60 now" in printed.out
    assert "sketching examples: 20 to do" in printed.err
    assert run("append", points, "--recipe", recipe) == 1
    assert "nothing to append" in capsys.readouterr().err
    assert run("append", points, "--recipe", recipe, "--rows", ":5", "--id-prefix", "b/", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["first_row"], report["appended_rows"], report["num_rows"]) == (0, 5, 65)
    assert run("info", points) == 0
    assert "rows 0 to 4 of points (count=60, seed=0, width=6), ids behind 'b/'" in capsys.readouterr().out
    assert verify_index(points) == []
    assert run("append", points) == 2
    assert "--recipe FILE" in capsys.readouterr().err
    assert run("append", points, "--recipe", recipe, "--rows", "five") == 2
    assert run("append", points, "--recipe", recipe, "--option", "count") == 2
    assert run("append", points.parent / "nowhere", "--recipe", recipe) == 2


def test_remove_takes_ids_from_flags_and_from_a_file(points, tmp_path, capsys):
    (tmp_path / "ids").write_text("train:3\n\ntrain:39\n")
    assert run("remove", points, "--ids", "train:0", "--ids-file", tmp_path / "ids") == 0
    printed = capsys.readouterr().out
    assert "3 rows" in printed
    assert "37 are left" in printed
    assert run("info", points) == 0
    printed = capsys.readouterr().out
    assert "37 training, 8 queries" in printed
    assert "3 rows are in no answer and still in the files" in printed
    assert {"faiss", "spectrum"} <= {entry.kind for entry in open_index(points).derived.entries().values()}
    revision = open_index(points).revision
    assert run("remove", points, "--ids", "train:0", "--ids", "train:3") == 0
    assert "withdrawn before: 'train:0', 'train:3'" in capsys.readouterr().out
    assert (open_index(points).num_rows, open_index(points).revision) == (37, revision)
    assert run("remove", points, "--purge", "--no-derive", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["removed_rows"], report["purged_rows"], report["num_rows"], report["derived"]) == (0, 3, 37, [])
    assert "examples.parquet" in report["rewritten"]
    assert run("remove", points) == 1
    assert "no id is given" in capsys.readouterr().err
    assert run("remove", points, "--ids-file", tmp_path / "nothing") == 2
    assert verify_index(points) == []


def test_merge_makes_one_index_of_several(points, capsys):
    recipe = points.parent / "points.py"
    other = points.parent / "other"
    assert run("build", recipe, "--out", other, "--limit", "16", *SKETCH) == 0
    assert run("merge", points, other, "--out", points.parent / "both") == 1
    refused = capsys.readouterr().err
    assert "'train:0'" in refused
    assert "indexer build … --id-prefix PREFIX" in refused
    assert run("build", recipe, "--out", other, "--limit", "16", "--id-prefix", "b/", "--overwrite", *SKETCH) == 0
    assert run("merge", points, other, "--out", points.parent / "both") == 0
    assert "56: 40 + 16" in capsys.readouterr().out
    merged = open_index(points.parent / "both")
    assert [merged.examples.id(row) for row in (39, 40, 55)] == ["train:39", "b/train:0", "b/train:15"]
    assert verify_index(points.parent / "both") == []
    assert run("merge", points, other, "--out", points.parent / "both") == 2
    assert run("merge", points, "--out", points.parent / "one") == 2
    assert run("query", points.parent / "both", "--row", "1", "--budget", "3") == 0


def test_tune_stores_the_noise_draws_the_curve_and_ends_the_warning(points, tmp_path, capsys):
    assert run("query", points, "--row", "1") == 0
    assert "noise is untuned" in capsys.readouterr().out
    assert run("tune", points, "--dry-run", "--json") == 0
    dry = json.loads(capsys.readouterr().out)
    assert (dry["stored"], dry["revision"]) == (False, open_index(points).revision)
    assert len(dry["grid"]) == len(dry["log_evidence"]) == 65
    assert run("tune", points, "--plot", tmp_path / "noise.svg", "--accept-edge") == 0
    printed = capsys.readouterr().out
    assert f"relative {dry['relative_noise']:g}" in printed
    assert "stored as the default" in printed
    assert ("ask by --method infogain" in printed) == (dry["relative_noise"] < 1)
    assert (tmp_path / "noise.svg").read_text().startswith("<svg")
    assert run("tune", points, "--plot", tmp_path / "nowhere" / "noise.svg") == 2
    assert "there is no folder" in capsys.readouterr().err
    index = open_index(points)
    assert index.manifest.default_relative_noise == dry["relative_noise"]
    assert index.manifest.noise_tuning["method"] == "gp_evidence"
    assert run("query", points, "--row", "1") == 0
    printed = capsys.readouterr().out
    assert "untuned" not in printed
    assert f"relative {dry['relative_noise']:.4g}" in printed
    assert run("info", points) == 0
    assert "by default (gp_evidence" in capsys.readouterr().out
    noise = f"{dry['relative_noise']:g}"
    assert run("remove", points, "--ids", "train:3", "--no-derive") == 0
    stale = f"default_relative_noise {noise} was tuned on 40 rows, the index now has 39: `indexer tune` again"
    assert stale in capsys.readouterr().out
    assert run("info", points) == 0
    printed = capsys.readouterr().out
    assert f"relative {noise} by default (gp_evidence" in printed
    assert "tuned on 40 rows where there are 39 now: indexer tune again" in printed
    assert "view margin, measured before rows came or went: kernel values" in printed
    assert run("remove", points, "--purge", "--no-derive") == 0
    printed = capsys.readouterr().out
    assert stale in printed
    assert "dropped: the curve that the default noise was tuned by, the distortion's figures of single rows" in printed
    recipe = points.parent / "points.py"
    assert run("append", points, "--recipe", recipe, "--rows", "40:41", "--no-derive") == 0
    assert "was tuned on 40 rows, the index now has other rows: `indexer tune` again" in capsys.readouterr().out
    for words in (
        ["--plot", "noise.gif"],
        ["--amplitude", "two"],
        ["--lowest", "5", "--highest", "1"],
        ["--targets", "x"],
    ):
        assert run("tune", points, *words) == 2


def test_a_noise_at_the_end_of_the_grid_is_said_and_not_stored(points, capsys):
    assert run("tune", points, "--json", "--dry-run") == 0
    best = json.loads(capsys.readouterr().out)["relative_noise"]
    before = open_index(points).revision
    assert run("tune", points, "--lowest", best * 3, "--highest", best * 300) == 0
    printed = capsys.readouterr().out
    assert "at the low end of the grid: the best may lie beyond it. Widen it with --lowest" in printed
    assert "nothing is stored" in printed
    assert open_index(points).revision == before
    assert run("tune", points, "--lowest", best * 3, "--highest", best * 300, "--accept-edge") == 0
    assert "stored as the default" in capsys.readouterr().out
    assert open_index(points).manifest.noise_tuning["at_edge"] == "low"


def test_targets_without_noise_do_not_send_the_user_to_lower_and_lower_noises(tmp_path, capsys):
    rng = np.random.default_rng(0)
    sketches = rng.standard_normal((60, 8))
    sketches = (sketches - sketches.mean(0)).astype(np.float32)  # targets are centred, and so stay within their reach
    values = sketches @ rng.standard_normal(8)  # a model that fits its targets exactly
    index = index_with_metadata(tmp_path, sketches, [{"value": float(value)} for value in values])
    words = ["tune", index.path, "--targets", "metadata.value", "--highest", "1", "--lowest"]
    assert run(*words, "1e-4") == 0
    assert "Widen it with --lowest" in capsys.readouterr().out
    assert run(*words, "1e-7") == 0
    printed = capsys.readouterr().out
    assert "Widen" not in printed
    assert "metadata.value targets are explained with next to no noise, as where the model fits its labels" in printed
    assert all(word in printed for word in ("--targets", "--accept-edge", "stay with the default", "nothing is stored"))


def test_noises_of_the_labels_alone_are_said_as_such(tmp_path, capsys):
    assert run("tune", make_index(tmp_path).path, "--dry-run") == 0
    assert "sets of rows that compare (one a label or view), each tuned by itself, would" in capsys.readouterr().out


def test_stability_is_told_in_words_and_in_json(points, tmp_path, capsys):
    words = ["verify", points, "--stability", "--recipe", tmp_path / "points.py", "--picks", "4"]
    assert run(*words) == 0
    printed = capsys.readouterr().out
    assert "seed 0 against seed 1" in printed
    assert "of the picks in common" in printed
    assert run(*words, "--json", "--seed", "5", "--queries", "3") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["other_seed"], report["queries"], len(report["nats"])) == (5, 3, 5)
    assert run("verify", points, "--stability") == 2
    assert "--recipe FILE" in capsys.readouterr().err
    exact = make_index(tmp_path, name="exact")
    assert run("verify", exact.path) == 0
    assert run("verify", exact.path, "--seed", "3") == 2
    assert "--seed: only with --stability" in capsys.readouterr().err


@pytest.mark.slow
def test_stopped_by_ctrl_c_an_append_says_how_to_go_on(points, tmp_path):
    program = (
        "import time, indexer.featurise as f, indexer.cli as c, sys\n"
        "was = f.Featuriser.sketch_and_keep\n"
        "def late(*a, **k):\n    time.sleep(1.5)\n    return was(*a, **k)\n"
        "f.Featuriser.sketch_and_keep = late\n"
        "c.main(sys.argv[1:])\n"
    )
    words = ["append", str(points), "--recipe", str(tmp_path / "points.py")]
    before = open_index(points).revision
    with subprocess.Popen([sys.executable, "-c", program, *words], stderr=subprocess.PIPE, text=True) as process:
        said = ""
        while "sketching examples" not in said:
            said += process.stderr.readline()
        time.sleep(0.5)
        os.kill(process.pid, signal.SIGINT)
        said += process.stderr.read()
    assert process.returncode == 130
    assert f"indexer append {points}" in said
    assert "--resume" in said
    assert open_index(points).revision == before
    assert run(*words, "--resume") == 0
    assert open_index(points).num_rows == 60
