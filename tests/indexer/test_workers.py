"""Several processes write one index: the same bytes as one, whatever is killed or stopped on the way."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from indexer.build import build_index
from indexer.build_settings import BuildSettings, BuildSettingsError
from indexer.reading import ExampleError
from indexer.workers import WorkerDiedError
from sketchstore.reader import open_index
from tests.indexer.counting_recipe import SOURCE
from tests.indexer.small_recipes import ATTACHED_LATE, FROZEN_TRUNK
from tests.indexer.test_build import contents

#: Worker processes import everything anew.
pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 120.0
CHOICES = {"sketch": "rademacher", "dim": 32, "block_rows": 8, "dtype": "float16", "threads": 1}
FLAGS = [part for name, value in CHOICES.items() for part in (f"--{name.replace('_', '-')}", str(value))]


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "points.py"
    # A recipe is imported once for its content, so each test's own folder is part of it.
    path.write_text(f"{SOURCE}\n# {tmp_path}\n", encoding="utf-8")
    return path


@pytest.fixture
def whole(tmp_path: Path, recipe: Path) -> dict[str, bytes]:
    """What one process writes."""
    build_index(BuildSettings(str(recipe), **CHOICES), tmp_path / "one" / "points")
    return contents(tmp_path / "one" / "points")


def build(recipe: Path, *, resume: bool = False, processes: int = 2, **choices):
    settings = BuildSettings(str(recipe), **{**CHOICES, "processes": processes, **choices})
    return build_index(settings, recipe.with_name("points"), resume=resume)


def events(path: Path) -> list[dict]:
    return [json.loads(line) for line in (path / "build-log.jsonl").read_text().splitlines()]


def command(recipe: Path) -> subprocess.Popen:
    """`indexer build` with two workers in a session of its own, as a terminal would start it."""
    words = ["build", str(recipe), "--out", str(recipe.with_name("points")), "--processes", "2", *FLAGS]
    return subprocess.Popen(
        [sys.executable, "-m", "indexer", *words], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip


def until_blocks_are_done(recipe: Path, builder: subprocess.Popen, count: int = 2) -> None:
    journal = recipe.with_name("points.partial") / "journal.jsonl"
    deadline = time.monotonic() + SECONDS
    while not journal.exists() or journal.read_text().count('"block"') < count:
        assert builder.poll() is None, builder.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("sketch", ["sjlt", "rademacher", "kronecker"])
@pytest.mark.parametrize("source", [FROZEN_TRUNK, ATTACHED_LATE], ids=["frozen", "attached late"])
def test_coordinates_are_those_of_the_model_whatever_is_frozen_or_comes_first_in_its_architecture(
    tmp_path, source, sketch
):
    path = tmp_path / "points.py"
    path.write_text(f"{source}\n# {tmp_path}\n", encoding="utf-8")
    choices = {**CHOICES, "sketch": sketch, "dim": 64, "num_queries": 0}
    build_index(BuildSettings(str(path), **choices), tmp_path / "one" / "points")
    build_index(BuildSettings(str(path), **choices, processes=2), tmp_path / "points")
    assert contents(tmp_path / "points") == contents(tmp_path / "one" / "points")


def test_two_processes_give_the_bytes_of_one_whatever_the_model_would_train_to(tmp_path, recipe, whole):
    (tmp_path / "models").unlink()
    report = build(recipe)
    assert contents(tmp_path / "points") == whole
    workers = {event["worker"] for event in events(tmp_path / "points") if event["event"] == "block"}
    assert workers == {0, 1}
    assert (tmp_path / "models").read_text() == "model\n", "workers load weights and never train"
    assert len(list(tmp_path.glob("worker-*"))) == 2
    assert (report.built_rows, report.num_rows) == (60, 60)
    assert 0 < report.sketch_share < 1
    (tmp_path / "restless").touch()  # a model() that gives other weights every time
    build_index(BuildSettings(str(recipe), **CHOICES, processes=2, id_prefix="b/"), tmp_path / "restless-index")
    other = open_index(tmp_path / "restless-index")
    assert (other.num_rows, other.examples.id(59)) == (60, "b/train:59")


def test_a_killed_worker_ends_the_build_and_resuming_gives_the_same_bytes(tmp_path, recipe, whole):
    (tmp_path / "kill").touch()
    with pytest.raises(WorkerDiedError, match=r"worker indexer-\d was killed by signal 9 at rows 24 to 31.*--resume"):
        build(recipe)
    assert not (tmp_path / "points").exists()
    report = build(recipe, resume=True, processes=3)  # the number of processes decides no byte
    assert report.built_rows < 60
    assert contents(tmp_path / "points") == whole


def test_an_error_in_a_worker_is_the_builds_own(tmp_path, recipe):
    (tmp_path / "refuse").touch()
    with pytest.raises(ExampleError, match="train row 41: cannot be collated: _StrangeError: row 41"):
        build(recipe)


def test_ctrl_c_finishes_blocks_in_progress_and_resuming_gives_the_same_bytes(tmp_path, recipe, whole):
    (tmp_path / "slow").touch()
    builder = command(recipe)
    until_blocks_are_done(recipe, builder)
    os.killpg(builder.pid, signal.SIGINT)  # as a terminal does: the build and its workers
    _, said = builder.communicate(timeout=SECONDS)
    assert builder.returncode == 130, said
    assert "Traceback" not in said
    assert "--processes 2" in said.splitlines()[-1]
    assert "--resume" in said.splitlines()[-1]
    finished = len(json.loads(f"[{','.join((tmp_path / 'points.partial/journal.jsonl').read_text().splitlines())}]"))
    assert 2 <= finished < 8
    (tmp_path / "slow").unlink()
    assert build(recipe, resume=True, processes=1).built_rows < 60
    assert contents(tmp_path / "points") == whole


def test_workers_end_with_a_killed_build_and_resuming_gives_the_same_bytes(tmp_path, recipe, whole):
    (tmp_path / "slow").touch()
    builder = command(recipe)
    until_blocks_are_done(recipe, builder)
    workers = [child for child in psutil.Process(builder.pid).children() if "spawn_main" in " ".join(child.cmdline())]
    assert len(workers) == 2
    builder.kill()
    builder.communicate()
    _, alive = psutil.wait_procs(workers, timeout=SECONDS)
    assert alive == []
    (tmp_path / "slow").unlink()
    build(recipe, resume=True)
    assert contents(tmp_path / "points") == whole


def test_threads_are_shared_among_processes_unless_they_are_given():
    assert BuildSettings("digits", processes=10_000).num_threads == 1
    assert BuildSettings("digits", processes=3, threads=5).num_threads == 5
    with pytest.raises(BuildSettingsError, match="--processes 0 must be at least 1"):
        BuildSettings("digits", processes=0).check()
