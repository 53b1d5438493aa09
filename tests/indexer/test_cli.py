"""The command line, as typed: what it prints, where, and how it exits."""

import csv
import io
import json
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from indexer.cli import app, main
from indexer.cli_reference import reference
from sketchstore.reader import open_index
from tests.index_factory import make_index
from tests.indexer.small_recipes import CLASSIFIER, REGRESSION, write_recipe

ROOT = Path(__file__).resolve().parents[2]


def run(*words: object) -> int:
    """Exit code of a command line."""
    try:
        main([str(word) for word in words])
    except SystemExit as stopped:
        return int(stopped.code or 0)
    return 0


@pytest.fixture(scope="module")
def points(tmp_path_factory, weights_cache):
    """A built index, and the recipe it was built from."""
    folder = tmp_path_factory.mktemp("cli")
    recipe = write_recipe(folder)
    assert (
        run("build", recipe, "--out", folder / "points", "--sketch", "rademacher", "--dim", "32", "--num-queries", "5")
        == 0
    )
    return folder / "points"


def test_build_prints_the_result_on_the_output_and_progress_on_the_error(tmp_path, capsys):
    recipe = write_recipe(tmp_path)
    assert run("build", recipe, "--out", tmp_path / "a", "--sketch", "sjlt", "--dim", "16", "--dtype", "float16") == 0
    printed = capsys.readouterr()
    assert "examples/s" in printed.out
    assert "% of the time in the sketch" in printed.out
    assert "sketching examples: 60 to do" in printed.err
    assert run("build", recipe, "--out", tmp_path / "b", "--sketch", "identity", "--json", "--option", "count=30") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["num_rows"], report["sketch_dim"], report["views"]) == (30, 57, ["own"])


def test_info_describes_the_index(points, capsys):
    assert run("info", points) == 0
    printed = capsys.readouterr().out
    for word in (
        "rademacher",
        "60 training, 5 queries",
        "red",
        "distortion",
        "3 faiss, 3 spectrum",
        "to sketch one by example",
    ):
        assert word in printed
    assert run("info", points, "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["revision"] == open_index(points).revision
    assert facts["bytes"]["sketches"] > 60 * 32 * 4


def test_verify_is_0_for_a_sound_index_and_1_with_the_file_for_a_damaged_one(points, tmp_path, capsys):
    import shutil

    assert run("verify", points) == 0
    assert "is sound" in capsys.readouterr().out
    copy = shutil.copytree(points, tmp_path / "points")
    shard = copy / "sketches" / "own" / "00000.safetensors"
    content = bytearray(shard.read_bytes())
    content[-3] ^= 16
    shard.write_bytes(content)
    assert run("verify", copy) == 1
    assert "sketches/own/00000.safetensors" in capsys.readouterr().out
    assert run("verify", copy, "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert found["sound"] is False
    assert found["damage"][0]["file"] == "sketches/own/00000.safetensors"


def test_query_prints_hits_nats_and_the_sentence(points, capsys):
    assert run("query", points, "--row", "1", "--budget", "3", "--relative-noise", "1") == 0
    printed = capsys.readouterr().out
    assert "These 3 examples carry" in printed
    assert "faiss Flat, exact" in printed
    assert run("query", points, "--row", "1", "--budget", "3", "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert [hit["rank"] for hit in answer["hits"]] == [1, 2, 3]
    assert set(answer) >= {"index", "method", "noise_variance", "query", "hits", "information", "search", "stopped"}
    assert run("query", points, "--row", "1", "--budget", "5000", "--clip-budget", "--method", "random", "--json") == 0
    assert 3 < len(json.loads(capsys.readouterr().out)["hits"]) <= 60
    assert run("query", points, "--row", "1", "--budget", "3", "--csv") == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [int(row["row"]) for row in rows] == [hit["row"] for hit in answer["hits"]]
    assert [float(row["step_nats"]) for row in rows] == [hit["step_nats"] for hit in answer["hits"]]


@pytest.mark.parametrize("method", ["infogain_approx", "infogain", "infoloss", "relatif", "random"])
def test_query_takes_every_method_and_every_kind_of_query(points, tmp_path, capsys, method):
    index = open_index(points)
    label = int(index.labels[4])
    np.save(tmp_path / "sketch.npy", index.view("own").sketches(slice(4, 5))[0].numpy())
    words = ["query", points, "--method", method, "--budget", "2", "--relative-noise", "1", "--json"]
    assert run(*words, "--train-id", "train:4", "--include-self") == 0
    by_id = json.loads(capsys.readouterr().out)
    for target in (label, ["red", "green", "blue"][label]):
        assert run(*words, "--sketch", tmp_path / "sketch.npy", "--target", target) == 0
        by_sketch = json.loads(capsys.readouterr().out)
        assert by_id["hits"] == by_sketch["hits"]
    assert run(*words, "--train-id", "train:4") == 0
    assert 4 not in [hit["row"] for hit in json.loads(capsys.readouterr().out)["hits"]]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["query", "POINTS"], "exactly one of --row, --train-id and --sketch"),
        (["query", "POINTS", "--row", "1", "--train-id", "x"], "exactly one"),
        (["query", "POINTS", "--row", "99"], "error: --row: query row 99 does not exist"),
        (["query", "POINTS", "--train-id", "train:600"], "its ids are train:0 to train:59"),
        (["query", "POINTS", "--row", "1", "--engine", "magic"], "--engine: engine is 'magic'; allowed are"),
        (["query", "POINTS", "--row", "1", "--strategy", "fast"], "--strategy: strategy is 'fast'; allowed are"),
        (["query", "POINTS", "--row", "1", "--target", "9"], "--target: "),
        (
            ["query", "POINTS", "--row", "1", "--target", "pink"],
            "--target 'pink' must be predicted, true, the number of a class, or one of the names red, green, blue",
        ),
        (["query", "POINTS", "--row", "1", "--labels", "9"], "--labels: "),
        (["query", "POINTS", "--row", "1", "--exclude-id", "x"], "--exclude-id: "),
        (["query", "POINTS", "--row", "1", "--budget", "0"], "--budget: "),
        (["query", "POINTS", "--row", "1", "--budget", "500"], "or set clip_budget"),
        (["query", "POINTS", "--row", "1", "--method", "magic"], "infogain_approx"),
        (["query", "POINTS", "--row", "1", "--noise-variance", "1", "--relative-noise", "1"], "both given"),
        (["query", "POINTS", "--row", "1", "--noise-variance", "nan"], "positive finite"),
        (["query", "POINTS", "--row", "1", "--json", "--csv"], "both given"),
        (["query", "POINTS", "--row", "1", "--labels", "red"], "whole numbers"),
        (["query", "POINTS", "--sketch", "RECIPE"], "not a .npy file"),
        (["query", "POINTS", "--row", "1", "--include-self"], "belongs to --train-id"),
        (["build", "RECIPE", "--out", "POINTS"], "exists"),
        (["build", "RECIPE", "--out", "NEW", "--resume", "--overwrite"], "give one of them"),
        (["build", "RECIPE", "--out", "RECIPE/new"], "no folder that can be written to"),
        (["build", "RECIPE", "--out", "NEW", "--option", "count"], "KEY=VALUE"),
        (["build", "RECIPE", "--out", "NEW", "--option", "cuont=1"], "has no option 'cuont'"),
        (["build", "RECIPE", "--out", "NEW", "--dtype", "bfloat16"], "float16 or float32"),
        (["build", "RECIPE", "--out", "NEW", "--views", "a,b"], "--views"),
        (["build", "RECIPE", "--out", "NEW", "--views", "0"], "class_logit only"),
        (["build", "RECIPE", "--out", "NEW", "--layers", "conv"], "linear or all"),
        (["build", "RECIPE", "--out", "NEW", "--sketch", "fourier"], "families are"),
        (["build", "RECIPE", "--out", "NEW", "--measurement", "loss"], "choose from"),
        (["build", "RECIPE", "--out", "NEW", "--include", "encoder*"], "matches no module"),
        (["build", "digts", "--out", "NEW"], "did you mean 'digits'"),
        (["build", "RECIPE"], "--out"),
        (["build", "RECIPE", "--out", "NEW", "--dims", "3"], "--dims"),
        (["verify", "NEW"], "no index directory"),
        (["info", "NEW"], "no index directory"),
        (["derive", "POINTS", "--faiss", "Nonsense7"], "Nonsense7"),
        (["derive", "POINTS", "--codes", "int4"], "int8 or none"),
        (["build", "RECIPE", "--out", "NEW", "--codes", "int4"], "int8 or none"),
    ],
)
def test_wrong_usage_exits_with_2_and_says_what_is_allowed(points, tmp_path, capsys, words, message):
    places = {"POINTS": points, "RECIPE": points.parent / "points.py", "NEW": tmp_path / "new"}
    places["RECIPE/new"] = places["RECIPE"] / "new"
    assert run(*[places.get(word, word) for word in words]) == 2
    printed = capsys.readouterr()
    assert message in " ".join((printed.err + printed.out).split())
    assert "Traceback" not in printed.err


def test_failures_of_the_work_exit_with_1(tmp_path, capsys):
    source = CLASSIFIER.replace("int(x[:3].argmax())", "7")
    assert run("build", write_recipe(tmp_path, source), "--out", tmp_path / "new") == 1
    assert "train row 0: label 7" in capsys.readouterr().err
    assert run("build", "fashion-mnist", "--out", tmp_path / "new", "--data-dir", tmp_path) == 1
    assert "no such file" in capsys.readouterr().err
    assert run("check", write_recipe(tmp_path, source, "bad.py")) == 1
    assert "FAIL  examples can be read: train row 0: label 7 is not an output" in capsys.readouterr().out


def test_check_and_plan_print_and_give_json(tmp_path, capsys):
    recipe = write_recipe(tmp_path)
    assert run("check", recipe) == 0
    assert capsys.readouterr().out.count("ok    ") == 8
    assert run("check", recipe, "--json") == 0
    assert json.loads(capsys.readouterr().out)["sound"] is True
    assert run("plan", recipe) == 0
    assert "to sketch one by example" in capsys.readouterr().out
    assert run("plan", recipe, "--json", "--sketch", "gaussian", "--dim", "8") == 0
    assert json.loads(capsys.readouterr().out)["sketch_bytes"] == 60 * 8 * 4


def test_derive_rebuilds_what_was_deleted_and_keeps_what_is_sound(points, capsys):
    entries = sorted(open_index(points).derived.entries())
    (points / "derived" / entries[0]).unlink()
    assert run("derive", points, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["written"] == [entries[0]]
    assert sorted([*report["kept"], entries[0]]) == entries
    assert run("derive", points, "--faiss", "none", "--no-spectra") == 0
    assert open_index(points).derived.entries() == {}
    assert run("derive", points, "--faiss", "HNSW8") == 0
    measured = open_index(points).derived.entry("faiss", "own", 0).measured
    assert measured is not None
    assert 0 <= measured["recall"] <= 1
    assert run("derive", points) == 0


def test_codes_are_written_where_a_partition_has_more_rows_than_numbers_in_a_sketch(tmp_path, capsys):
    recipe = write_recipe(tmp_path)  # 60 rows, so at least 20 of the commonest of three labels
    for dim, there in ((16, True), (64, False)):
        out = tmp_path / f"d{dim}"
        assert run("build", recipe, "--out", out, "--sketch", "gaussian", "--dim", dim) == 0
        assert ("codes/own/all.safetensors" in open_index(out).derived.entries()) is there
    capsys.readouterr()
    out = tmp_path / "d16"
    assert run("derive", out, "--codes", "none", "--json") == 0
    assert json.loads(capsys.readouterr().out)["removed"] == ["codes/own/all.safetensors"]
    assert run("derive", out, "--json") == 0
    assert json.loads(capsys.readouterr().out)["written"] == ["codes/own/all.safetensors"]
    assert run("info", out) == 0
    assert "1 codes, 3 faiss, 3 leverages, 3 spectrum" in capsys.readouterr().out


def test_an_interrupted_build_says_how_to_continue(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("indexer.terminal.LineProgress.stop_requested", lambda progress: True)
    recipe = write_recipe(tmp_path)
    assert run("build", recipe, "--out", tmp_path / "new", "--overwrite") == 130
    said = capsys.readouterr().err
    assert f"indexer build {recipe} --out {tmp_path / 'new'} --resume" in said


def test_a_build_whose_place_is_taken_does_not_even_load_the_recipe(tmp_path, capsys):
    recipe = write_recipe(tmp_path, CLASSIFIER + "\nraise SystemExit('the recipe was loaded')\n")
    (tmp_path / "taken").mkdir()
    assert run("build", recipe, "--out", tmp_path / "taken") == 2
    assert "taken exists" in capsys.readouterr().err
    (tmp_path / "half.partial").mkdir()
    (tmp_path / "half.partial" / "plan.json").write_text("{}")
    assert run("build", recipe, "--out", tmp_path / "half") == 2
    assert "--resume" in capsys.readouterr().err


def test_resuming_where_nothing_was_begun_says_so_and_builds(tmp_path, capsys):
    recipe = write_recipe(tmp_path)
    assert (
        run("build", recipe, "--out", tmp_path / "new", "--resume", "--option", "count=20", "--num-queries", "0") == 0
    )
    assert f"nothing to resume: {tmp_path / 'new.partial'} does not exist" in capsys.readouterr().err


def test_an_interrupted_replacement_is_resumed_by_the_command_that_is_suggested(tmp_path, capsys, monkeypatch):
    words = ["build", write_recipe(tmp_path), "--out", tmp_path / "new", "--option", "count=20", "--num-queries", "0"]
    assert run(*words) == 0
    first = open_index(tmp_path / "new").revision
    with monkeypatch.context() as patch:
        patch.setattr("indexer.terminal.LineProgress.stop_requested", lambda progress: True)
        assert run(*words, "--seed", "1", "--sketch", "sjlt", "--dim", "8", "--overwrite") == 130
    assert open_index(tmp_path / "new").revision == first
    suggested = capsys.readouterr().err.splitlines()[-1].split()[1:]
    assert "--overwrite" not in suggested
    assert run(*suggested) == 0
    assert open_index(tmp_path / "new").revision != first


def test_the_version_is_printed(capsys):
    from indexer import __version__

    assert run("--version") == 0
    assert capsys.readouterr().out == f"indexer {__version__} (index format 2)\n"


def test_one_of_something_is_not_plural(points, tmp_path, capsys):
    assert run("check", write_recipe(tmp_path, REGRESSION)) == 0
    assert "1 output," in capsys.readouterr().out
    assert run("query", points, "--row", "1", "--budget", "1", "--relative-noise", "1") == 0
    printed = capsys.readouterr().out
    assert "1 index query," in printed
    assert "This example carries" in printed


def test_a_noise_below_rounding_is_refused_by_its_flag(tmp_path, capsys):
    index = make_index(tmp_path, dim=16)
    assert run("query", index.path, "--row", "1", "--budget", "20", "--relative-noise", "1e-30") == 2
    assert "error: --relative-noise: relative_noise is so small" in capsys.readouterr().err


def test_the_reference_in_docs_is_that_of_the_commands():
    written = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert written == reference(), "docs/cli.md is stale: python -m indexer.cli_reference > docs/cli.md"


def test_every_command_has_help_with_an_example_and_every_option_says_what_it_does():
    from typer.main import get_command

    commands = get_command(app).commands
    made = {"build", "plan", "check", "info", "verify", "query", "derive", "coreset"}
    assert set(commands) == made | {"append", "merge", "remove", "tune"}
    for name, command in commands.items():
        assert f"Example: indexer {name} " in command.help
        assert all(parameter.help for parameter in command.params if parameter.name != "help")
        assert any(parameter.name == "as_json" for parameter in command.params)


def test_python_m_runs_the_same_program(points, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["indexer", "verify", str(points)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("indexer", run_name="__main__")
    assert ended.value.code == 0
    assert capsys.readouterr().out.strip() == f"{points} is sound"


@pytest.mark.slow
def test_the_program_runs_as_a_process_of_its_own(points):
    done = subprocess.run(
        [sys.executable, "-m", "indexer", "verify", str(points)], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, f"{points} is sound")
