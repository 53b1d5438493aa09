"""An interrupted and resumed build publishes the bytes of an uninterrupted one, wherever it was interrupted."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import sketchstore.layout
from sketchstore.errors import (
    AlreadyPublishedError,
    BuildInProgressError,
    IncompleteBuildError,
    IndexExistsError,
    ResumeMismatchError,
    UnfinishedBuildError,
)
from sketchstore.layout import files_below
from sketchstore.manifest import SourceDigests
from sketchstore.reader import open_index, verify_index
from sketchstore.writer import IndexWriter
from tests.index_factory import make_contents, make_index, make_plan, write_contents
from tests.reliability.interrupted_build import build


class Killed(BaseException):
    """Stands for a kill: nothing in the writer may catch it."""


def content(path: Path) -> dict[str, bytes]:
    return {file: (path / file).read_bytes() for file in files_below(path) if file != "build-log.jsonl"}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "small"
    build(path)
    return content(path)


def kill_at(monkeypatch, moment: int) -> None:
    """Raise at the moment-th step that changes the disk: a sync, a rename, an exchange or a positioned write."""
    steps = 0

    def stepping(function):
        def step(*arguments, **named):
            nonlocal steps
            steps += 1
            if steps == moment:
                raise Killed
            return function(*arguments, **named)

        return step

    for name in ("fsync", "replace", "rename", "pwrite", "ftruncate"):
        monkeypatch.setattr(os, name, stepping(getattr(os, name)))
    monkeypatch.setattr("sketchstore.publish.exchange", stepping(sketchstore.layout.exchange))


@pytest.mark.slow
@pytest.mark.parametrize("overwrite", [False, True], ids=["fresh", "overwrite"])
def test_a_build_killed_at_any_step_resumes_to_the_same_bytes(tmp_path, uninterrupted, overwrite):
    moment = 1
    while True:
        path = tmp_path / f"{moment}" / "small"
        path.parent.mkdir()
        if overwrite:
            make_index(path.parent)
        before = content(path) if overwrite else None
        with pytest.MonkeyPatch.context() as patch:
            kill_at(patch, moment)
            try:
                build(path, overwrite=overwrite)
                finished = True
            except Killed:
                finished = False
        if overwrite:
            assert content(path) in (before, uninterrupted), "a reader finds the old index or the new, whole"
        elif path.exists():
            assert content(path) == uninterrupted, "a reader finds nothing or the whole index"
        build(path, overwrite=overwrite)
        assert content(path) == uninterrupted, f"interrupted at step {moment}"
        assert not path.with_name("small.partial").exists()
        if finished:
            break
        moment += 11 if overwrite else 4
    assert moment > 60


def test_a_build_killed_twice_resumes_to_the_same_bytes(tmp_path, uninterrupted):
    path = tmp_path / "small"
    for moment in (20, 20, 31):
        with pytest.MonkeyPatch.context() as patch:
            kill_at(patch, moment)
            with pytest.raises(Killed):
                build(path)
    build(path)
    assert content(path) == uninterrupted
    assert verify_index(path) == []


@pytest.mark.slow
def test_kill_9_at_twenty_random_moments_then_resume(tmp_path, uninterrupted):
    rng = random.Random(0)
    path = tmp_path / "small"
    command = [sys.executable, "-m", "tests.reliability.interrupted_build"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as builder:
        assert builder.stdin is not None
        assert builder.stdout is not None
        for kill in range(20):
            builder.stdin.write(f"{path}\n")
            builder.stdin.flush()
            process = int(builder.stdout.readline())
            time.sleep(rng.uniform(0.0, 0.4))
            os.kill(process, signal.SIGKILL)
            assert builder.stdout.readline() == "ended\n"
            if path.exists():
                assert content(path) == uninterrupted
                path = tmp_path / f"after{kill}" / "small"
                path.parent.mkdir()
    build(path)
    assert content(path) == uninterrupted


def test_a_block_damaged_after_it_was_journaled_is_redone(tmp_path, uninterrupted):
    path = tmp_path / "small"
    plan = make_plan(num_rows=200, dtype="float16", block_rows=16, shard_rows=64)
    contents = make_contents(plan)
    with IndexWriter.create(path, plan) as writer:
        writer.set_scales({"own": -6})
        for block in writer.pending_blocks()[:4]:
            writer.write_block(block, {"own": contents.sketches["own"][block.start : block.stop]})
    shard = tmp_path / "small.partial/index/sketches/own/00000.safetensors"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    with IndexWriter.create(path, plan, resume=True) as writer:
        assert [block.number for block in writer.pending_blocks()] == list(range(3, 13))
    shard.unlink()
    with IndexWriter.create(path, plan, resume=True) as writer:
        assert writer.pending_blocks() == list(plan.blocks())


def test_a_torn_journal_line_is_cut_off(tmp_path):
    path, plan = tmp_path / "small", make_plan()
    values = make_contents(plan).sketches["own"]
    with IndexWriter.create(path, plan) as writer:
        for block in writer.pending_blocks()[:2]:
            writer.write_block(block, {"own": values[block.start : block.stop]})
    journal = tmp_path / "small.partial/journal.jsonl"
    journal.write_bytes(journal.read_bytes()[:-5])
    with IndexWriter.create(path, plan, resume=True) as writer:
        assert [block.number for block in writer.pending_blocks()] == [1, 2, 3]
        writer.write_block(writer.pending_blocks()[0], {"own": values[16:32]})
    assert len(journal.read_text().splitlines()) == 2


def test_columns_written_with_blocks_survive_a_resume(tmp_path):
    path, plan = tmp_path / "small", make_plan()
    contents = make_contents(plan)
    p = {"one_minus_p": np_linspace(plan.num_rows)}
    for stop in (2, 4):
        with IndexWriter.create(path, plan, resume=True) as writer:
            for block in writer.pending_blocks()[: stop - (0 if stop == 2 else 2)]:
                rows = slice(block.start, block.stop)
                writer.write_block(
                    block, {"own": contents.sketches["own"][rows]}, {name: values[rows] for name, values in p.items()}
                )
    with IndexWriter.create(path, plan, resume=True) as writer:
        write_contents(writer, contents)
        writer.publish()
    assert open_index(path).column("one_minus_p").tolist() == p["one_minus_p"].tolist()


def np_linspace(n: int):
    import numpy as np

    return np.linspace(0.0, 1.0, n)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"digests": SourceDigests(weights="c" * 64, data_order="b" * 64)}, "digests.weights was 'aaa.*now 'ccc"),
        ({"digests": SourceDigests(weights="a" * 64, data_order="c" * 64)}, "digests.data_order"),
        ({"seed": 1}, "sketch.seed was 0, now 1"),
        ({"dim": 8}, "sketch.dim was 16, now 8"),
        ({"view": "margin"}, "measurement.name was 'label_logit', now 'margin'"),
        ({"dtype": "float16"}, "dtype was 'float32', now 'float16'"),
        ({"block_rows": 8}, "build.block_rows was 16, now 8"),
        ({"num_rows": 61}, "num_rows was 60, now 61"),
    ],
    ids=lambda value: "" if isinstance(value, dict) else value.split()[0],
)
def test_resuming_another_build_is_refused_and_says_what_differs(tmp_path, changes, named):
    with IndexWriter.create(tmp_path / "small", make_plan()):
        pass
    with pytest.raises(ResumeMismatchError, match=named):
        IndexWriter.create(tmp_path / "small", make_plan(**changes), resume=True)
    with IndexWriter.create(tmp_path / "small", make_plan(**changes), overwrite=True) as writer:
        assert len(writer.pending_blocks()) == writer.plan.num_blocks


def test_an_unfinished_build_is_neither_resumed_nor_discarded_unasked(tmp_path):
    with IndexWriter.create(tmp_path / "small", make_plan()):
        pass
    with pytest.raises(UnfinishedBuildError, match=r"--resume.*--overwrite"):
        IndexWriter.create(tmp_path / "small", make_plan())


def test_only_one_process_builds_an_index(tmp_path):
    with IndexWriter.create(tmp_path / "small", make_plan()):
        for options in ({"resume": True}, {"overwrite": True}):
            with pytest.raises(BuildInProgressError):
                IndexWriter.create(tmp_path / "small", make_plan(), **options)
    IndexWriter.create(tmp_path / "small", make_plan(), resume=True).close()


def test_a_published_index_is_not_overwritten_unasked(tmp_path):
    index = make_index(tmp_path)
    before = content(index.path)
    with pytest.raises(IndexExistsError, match="--overwrite"):
        IndexWriter.create(index.path, make_plan())
    with pytest.raises(IndexExistsError, match="--overwrite"):
        IndexWriter.create(index.path, make_plan(seed=1), resume=True)
    with pytest.raises(AlreadyPublishedError, match="nothing is left"):
        IndexWriter.create(index.path, make_plan(), resume=True)
    assert content(index.path) == before
    assert list(tmp_path.iterdir()) == [index.path]


def test_overwriting_replaces_the_whole_directory_and_open_readers_keep_the_old_one(tmp_path):
    old = make_index(tmp_path, seed=0, num_rows=60)
    sketches = old.view("own").sketches(slice(None))
    plan = make_plan(num_rows=40, seed=1)
    with IndexWriter.create(old.path, plan, overwrite=True) as writer:
        write_contents(writer, make_contents(plan, seed=1))
        assert open_index(old.path).revision == old.revision, "the old index stays until the new one is whole"
        writer.publish()
    assert open_index(old.path).num_rows == 40
    assert list(tmp_path.iterdir()) == [old.path]
    assert sketches.equal(old.view("own").sketches(slice(None)))


def test_without_an_exchange_call_overwriting_still_replaces(tmp_path, monkeypatch):
    old = make_index(tmp_path)
    monkeypatch.setattr("sketchstore.publish.exchange", lambda first, second: False)
    plan = make_plan(num_rows=40)
    with IndexWriter.create(old.path, plan, overwrite=True) as writer:
        write_contents(writer, make_contents(plan))
        writer.publish()
    assert open_index(old.path).num_rows == 40
    assert list(tmp_path.iterdir()) == [old.path]


def test_an_index_that_appears_during_the_build_is_not_overwritten(tmp_path):
    plan = make_plan()
    with IndexWriter.create(tmp_path / "small", plan) as writer:
        write_contents(writer, make_contents(plan))
        (tmp_path / "small").mkdir()
        with pytest.raises(IndexExistsError):
            writer.publish()


def test_publishing_too_early_is_refused(tmp_path):
    plan = make_plan()
    contents = make_contents(plan)
    with IndexWriter.create(tmp_path / "small", plan) as writer:
        with pytest.raises(IncompleteBuildError, match="4 of 4 blocks"):
            writer.publish()
        for block in writer.pending_blocks():
            writer.write_block(block, {"own": contents.sketches["own"][block.start : block.stop]})
        with pytest.raises(IncompleteBuildError, match=r"examples\.parquet"):
            writer.publish()
    assert not (tmp_path / "small").exists()


def test_leftovers_of_an_earlier_attempt_are_not_published(tmp_path):
    plan = make_plan()
    with IndexWriter.create(tmp_path / "small", plan) as writer:
        write_contents(writer, make_contents(plan))
        (tmp_path / "small.partial/index/stray").write_bytes(b"x")
        path = writer.publish()
    assert verify_index(path) == []


def test_the_manifest_says_nothing_about_time_host_or_place(tmp_path):
    first = make_index(tmp_path / "a").path / "manifest.json"
    second = make_index(tmp_path / "b").path / "manifest.json"
    assert first.read_bytes() == second.read_bytes()
