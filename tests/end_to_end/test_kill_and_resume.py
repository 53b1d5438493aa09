"""kill -9 at random moments of a build, then --resume: the bytes are those of a build that nothing interrupted."""

import multiprocessing
import random
import time
from pathlib import Path

import pytest

from indexer.build import build_index
from indexer.build_settings import BuildSettings

KILLS = 20
SECONDS = 240.0
STRIDE = 12  # journal entries between kills at most; a whole build writes about thirty
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
    kills, finished, number, moments = 0, 0, 0, set()
    out = tmp_path / "0" / "wine"
    while kills < KILLS and time.monotonic() - started < SECONDS:
        out.parent.mkdir(exist_ok=True)
        # A random distance in work done and a random instant after it: as random on a busy machine as on an idle one.
        target = max(_progress(out), 0) + chance.randint(0, STRIDE)
        process = context.Process(target=build, args=(str(out),))
        process.start()
        while process.is_alive() and 0 <= _progress(out) + 1 <= target:
            time.sleep(0.001)
        process.join(chance.uniform(0.0, 0.03))
        if process.is_alive():
            process.kill()
            process.join()
            kills += 1
            moments.add(_progress(out))
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
    assert kills == KILLS, f"{kills} kills in {SECONDS} s"
    # The kills fell at different points of the build, not all before it began or at one place.
    assert len(moments) >= 3, moments


def _progress(out: Path) -> int:
    """How many things the killed build had journalled as done; -1 before the journal, -2 once published."""
    if out.exists():
        return -2
    journal = out.with_name(out.name + ".partial") / "journal.jsonl"
    return len(journal.read_text().splitlines()) if journal.exists() else -1
