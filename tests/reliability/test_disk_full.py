"""A disk that is full, or a file that may not grow: said with the file's name, nothing lost, and done when repeated."""

import contextlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.reliability.commands import Order
from tests.reliability.lengths import rounds
from tests.reliability.publications import OPERATIONS, copied
from tests.reliability.published_states import States

PAGE = 4096
pytestmark = pytest.mark.slow


def some(values: list[int], count: int) -> list[int]:
    """Values spread over all of them, the first and the last among them."""
    count = min(count, len(values))
    return [values[round(place * (len(values) - 1) / max(1, count - 1))] for place in range(count)]


def sizes_below(folder: Path) -> list[int]:
    return [path.stat().st_size for path in folder.rglob("*") if path.is_file()]


def check(states: States, commands, order: Order, folder: Path, advice: str) -> bool:
    """Run an operation where something is too small, then where it is not: whether it failed at first."""
    failed = commands.run(order)
    state = states.look(folder)
    if failed.status:
        assert failed.status == 1, failed
        assert failed.said.startswith(f"error: {folder}"), failed
        assert advice in failed.said, failed
    else:
        assert state == "new" or states.operation.derives
    return failed.status != 0


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_file_that_may_not_grow_further_is_named_and_leaves_the_old_revision(commands, base, work, name):
    states, folder, failed = States(name, base), work / "here", 0
    lengths = sorted(
        {0, 1, 63, 64, *sizes_below(states.done), *(size - 1 for size in sizes_below(states.done) if size)}
    )
    chosen = some(lengths[:-1], rounds(2, 40))
    for length in chosen:
        copied(base, folder)
        limited = Order(operation=name, folder=str(folder), file_bytes=length)
        failed += check(states, commands, limited, folder, "ulimit -f")
        state = states.look(folder)
        again = commands.run(Order(operation=name, folder=str(folder)))
        states.again(folder, again.status, again.said, before=state)
        shutil.rmtree(folder)
    assert failed, "no limit was below what has to be written"
    print(f"\n{name}: files of at most {chosen[0]} to {chosen[-1]} bytes, {len(chosen)} limits, {failed} failed")


def mounted(folder: Path, size: int) -> str | None:
    """Mount a small file system in memory; why not, where that is refused."""
    folder.mkdir()
    if shutil.which("mount") is None:
        return "there is no mount"
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stderr.strip() if done.returncode else None


def fill(filler: Path, left: int) -> None:
    """Take what is free on a small file system, but for so many bytes."""
    with filler.open("wb", buffering=0) as file:
        with contextlib.suppress(OSError):
            while file.write(bytes(PAGE)):
                pass
        file.truncate(max(file.seek(0, os.SEEK_END) - left, 0))


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_full_disk_is_said_and_leaves_the_old_revision(commands, base, work, name):
    states, disk, failed = States(name, base), work / "disk", 0
    used = sum(-(-size // PAGE) * PAGE for size in sizes_below(base))
    free = [PAGE * pages for pages in range(24)]
    chosen = some(free, rounds(2, 24))
    for left in chosen:
        if (refused := mounted(disk, used + left + 8 * PAGE)) is not None:
            disk.rmdir()
            pytest.skip(f"a small file system cannot be mounted: {refused}")
        try:
            folder = copied(base, disk / "here")
            fill(disk / "filler", left)
            order = Order(operation=name, folder=str(folder))
            failed += check(states, commands, order, folder, "Free some space")
            state = states.look(folder)
            subprocess.run(["mount", "-o", "remount,size=16m", str(disk)], check=True)
            again = commands.run(order)
            states.again(folder, again.status, again.said, before=state)
        finally:
            subprocess.run(["umount", "--lazy", str(disk)], check=True)
            disk.rmdir()
    assert failed, "every disk was large enough"
    print(f"\n{name}: {len(chosen)} disks with 0 to {chosen[-1]} bytes left, {failed} were full")
