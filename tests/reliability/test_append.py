"""A whole `indexer append`, killed anywhere: the old rows are there or all of them, and it can be resumed."""

import shutil
import signal
from pathlib import Path

import pytest

from sketchstore.reader import open_index, verify_index
from tests.indexer.small_recipes import write_recipe
from tests.reliability.commands import Commands, Order
from tests.reliability.lengths import rounds
from tests.reliability.published_states import content
from tests.reliability.system_calls import interrupted, last_call, missing_strace, points
from tests.reliability.test_publication import EVERY, different, sample

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(missing_strace() is not None, reason=str(missing_strace())),
]
BUILD = ["--measurement", "margin", "--sketch", "rademacher", "--dim", "32", "--num-queries", "2", "--block-rows", "8"]


def append(folder: Path, *more: str) -> Order:
    """The command, for the index and the recipe in a folder."""
    return Order(words=["append", str(folder / "points"), "--recipe", str(folder / "points.py"), *more])


@pytest.fixture(scope="module")
def start(commands: Commands, memory: Path) -> Path:
    """An index of 40 of its recipe's 60 rows."""
    folder = memory / "append"
    folder.mkdir()
    recipe = write_recipe(folder)
    words = ["build", str(recipe), "--out", str(folder / "points"), "--limit", "40", *BUILD]
    ended = commands.run(Order(words=words))
    assert ended.status == 0, ended.said
    return folder


def assert_sound(path: Path, *, derived: bool) -> None:
    """Nothing is wrong, but with what was being derived of the new rows when they were there already."""
    assert not [damage for damage in verify_index(path) if derived or not damage.file.startswith("derived/")]


def test_killed_before_any_call_that_changes_the_disk_the_old_rows_or_all_are_there(commands, start, work):
    folder = work / "here"
    shutil.copytree(start, folder)
    old = content(folder / "points")
    found = points(commands, append(folder), work / "log", folder)  # the one that nothing disturbs
    new = content(folder / "points")
    assert open_index(folder / "points").num_rows == 60
    states = {"old": 0, "new": 0}
    chosen = sample(different(found), rounds(4, EVERY))
    for point in chosen:
        shutil.rmtree(folder)
        shutil.copytree(start, folder)
        ended = interrupted(commands, append(folder), work / "log", point, "signal=KILL")
        assert ended.status == -signal.SIGKILL, (point, ended)
        assert last_call(work / "log", folder).startswith(point.name), point
        here = content(folder / "points")
        assert here in (old, new), f"neither the old rows nor all: {point}"
        state = "old" if here == old else "new"
        states[state] += 1
        assert_sound(folder / "points", derived=state == "old")
        again = commands.run(append(folder, "--resume"))
        assert again.status == 0 or (state == "new" and "nothing to append" in again.said), (point, again)
        assert content(folder / "points") == new, point
        assert_sound(folder / "points", derived=state == "old")
        assert sorted(path.name for path in folder.iterdir()) == ["points", "points.py"], point
    print(f"\nappend: killed at {len(chosen)} of {len(found)} calls: {states}")
    assert states["old"] > 0
