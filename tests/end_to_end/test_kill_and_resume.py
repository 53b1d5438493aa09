"""kill -9 at random moments of a build, then --resume: the bytes are those of a build that nothing interrupted."""

import multiprocessing
import random
import time
from pathlib import Path

import pytest

from indexer.build import build_index
from indexer.preparation import BuildSettings

KILLS = 20
SECONDS = 240.0
RECIPE = Path(__file__).resolve().parents[2] / "examples" / "wine.py"
SETTINGS = BuildSettings(str(RECIPE), sketch="rademacher", dim=128, dtype="float16", block_rows=6, threads=1)


def build(out: str) -> None:
    """What a killed process runs."""
    build_index(SETTINGS, out, resume=True)


def contents(path: Path) -> dict[str, bytes]:
    """Every file that a digest covers, and the manifests that hold the digests."""
    files = (file for file in path.rglob("*") if file.is_file() and file.name not in ("build-log.jsonl", ".lock"))
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


@pytest.mark.slow
def test_twenty_kills_at_random_moments_leave_no_trace_in_any_byte(tmp_path):
    build(str(tmp_path / "whole" / "wine"))
    expected = contents(tmp_path / "whole" / "wine")
    assert len(expected) > 10
    # A server process that has imported everything and run nothing forks each build, so that a kill falls into the
    # build's work and not into its imports.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["indexer.build", "sklearn.datasets", "sketchstore.faiss_build"])
    chance = random.Random(0)
    started = time.monotonic()
    duration = _seconds_of(context, tmp_path / "timed" / "wine")
    kills, finished, number, phases = 0, 0, 0, set()
    out = tmp_path / "0" / "wine"
    while kills < KILLS and time.monotonic() - started < SECONDS:
        out.parent.mkdir(exist_ok=True)
        process = context.Process(target=build, args=(str(out),))
        process.start()
        # Shorter than a build more often than not, so that kills fall early, late, and in builds resumed many times.
        process.join(chance.uniform(0.0, 0.9) * duration)
        if process.is_alive():
            process.kill()
            process.join()
            kills += 1
            phases.add(_phase(out))
            continue
        assert process.exitcode == 0
        finished += 1
        assert contents(out) == expected
        number += 1
        out = tmp_path / str(number) / "wine"
    process = context.Process(target=build, args=(str(out),))
    out.parent.mkdir(exist_ok=True)
    process.start()
    process.join()
    assert process.exitcode == 0
    assert contents(out) == expected
    assert kills == KILLS, f"{kills} kills in {SECONDS} s; a build takes {duration:.1f} s"
    assert len(phases) > 1, phases  # not all in the same phase


def _seconds_of(context: multiprocessing.context.ForkServerContext, out: Path) -> float:
    out.parent.mkdir()
    durations = []
    for _ in range(2):  # the first also starts the server
        process = context.Process(target=build, args=(str(out.with_name(f"wine{len(durations)}")),))
        begun = time.monotonic()
        process.start()
        process.join()
        assert process.exitcode == 0
        durations.append(time.monotonic() - begun)
    return durations[-1]


def _phase(out: Path) -> str:
    if out.exists():
        return "published"
    journal = out.with_name(out.name + ".partial") / "journal.jsonl"
    if not journal.exists():
        return "before the first block"
    return "after the blocks" if "examples.parquet" in journal.read_text() else "in the blocks"
