"""Publication is atomic: killed or refused by the system at any call that changes the disk, old or new, never a mix."""

import itertools
import os
import random
import shutil
import signal
import time
from contextlib import suppress

import pytest

from tests.reliability.commands import Order
from tests.reliability.lengths import rounds
from tests.reliability.publications import OPERATIONS, copied
from tests.reliability.published_states import States
from tests.reliability.system_calls import FAILURES, Point, interrupted, last_call, missing_strace, points, traced

needs_strace = pytest.mark.skipif(missing_strace() is not None, reason=str(missing_strace()))
EVERY = 10**9
pytestmark = pytest.mark.slow


def different(found: list[Point]) -> list[Point]:
    """All points, but of a run of writes to one temporary file, hundreds for Parquet, the first, middle and last."""
    chosen = list[Point]()
    for _, group in itertools.groupby(
        found, lambda point: point.line.split(",")[0] if point.name == "write" else point
    ):
        run = list(group)
        chosen += dict.fromkeys((run[0], run[len(run) // 2], run[-1]))
    return chosen


def sample(found: list[Point], count: int) -> list[Point]:
    """Some of the points, the last ones among them: there the name changes hands."""
    if len(found) <= count:
        return found
    return [found[round(place * (len(found) - 1) / (count - 1))] for place in range(count)]


@needs_strace
@pytest.mark.parametrize("name", OPERATIONS)
def test_killed_before_any_call_that_changes_the_disk_it_leaves_old_or_new(commands, base, work, name):
    states, folder = States(name, base), work / "here"
    copied(base, folder)
    order = Order(operation=name, folder=str(folder))
    found = points(commands, order, work / "log", folder)
    chosen = sample(different(found), rounds(2, EVERY))
    for point in chosen:
        shutil.rmtree(folder)
        copied(base, folder)
        ended = interrupted(commands, order, work / "log", point, "signal=KILL")
        assert ended.status == -signal.SIGKILL, (point, ended)
        assert last_call(work / "log", folder).startswith(point.name), point
        state = states.look(folder)
        states.again(folder, *vars(commands.run(order)).values(), before=state)
    print(f"\n{name}: killed at {len(chosen)} of {len(found)} calls: {states.found}")


@needs_strace
@pytest.mark.parametrize("name", OPERATIONS)
def test_a_call_that_fails_is_reported_and_leaves_old_or_new(commands, base, work, name):
    states, folder = States(name, base), work / "here"
    copied(base, folder)
    order = Order(operation=name, folder=str(folder))
    found = [point for point in points(commands, order, work / "log", folder) if point.name in FAILURES]
    chosen, reported = sample(different(found), rounds(2, EVERY)), 0
    for point in chosen:
        shutil.rmtree(folder)
        copied(base, folder)
        ended = interrupted(commands, order, work / "log", point, f"error={FAILURES[point.name]}")
        assert last_call(work / "log", folder).startswith(point.name), point
        state = states.look(folder)
        if ended.status == 0:  # a link that fails is a copy; what cannot be cleared away is cleared away next time
            assert state == "new" or OPERATIONS[name].derives, point
        else:
            reported += 1
            assert ended.status == 1, (point, ended)
            assert ended.said.startswith("error: "), (point, ended)
            assert str(folder) in ended.said, (point, ended)
        states.again(folder, *vars(commands.run(order)).values(), before=state)
    print(f"\n{name}: {len(chosen)} of {len(found)} calls failed, {reported} reported: {states.found}")


@needs_strace
@pytest.mark.parametrize("name", ["overwrite", "join", "remove"])
def test_where_directories_cannot_be_exchanged_a_kill_leaves_an_index_that_can_be_had_back(commands, base, work, name):
    folder = work / "here"
    copied(base, folder)
    order = Order(operation=name, folder=str(folder))
    renames = points(commands, order, work / "log", folder)
    (swap,) = [point for point in renames if point.name == "renameat2"]
    states = States(name, base)
    second = sum(point.name == "rename" for point in renames) + 2  # after those of a whole run, the two in its place
    for ordinal, state in ((second - 1, "old"), (second, "between")):
        shutil.rmtree(folder)
        copied(base, folder)
        flags = ["-e", "trace=rename,renameat2", "-e", f"inject=renameat2:error=EINVAL:when={swap.ordinal}"]
        flags += ["-e", f"inject=rename:signal=KILL:when={ordinal}"]
        ended = traced(commands, order, work / "log", *flags)
        assert ended.status == -signal.SIGKILL, ended
        if state == "between":
            assert not (folder / "points").exists()
            ended = commands.run(order)
            if ended.status:
                assert "move it back" in ended.said, ended
                (folder / "points.partial/replaced").rename(folder / "points")
        states.again(folder, *vars(commands.run(order)).values(), before=states.look(folder))


def test_kill_9_at_random_moments_leaves_old_or_new(commands, base, work):
    rng, wanted, killed, tries = random.Random(0), rounds(4, 200), 0, 0
    states = {name: States(name, base) for name in OPERATIONS}
    lasts = dict.fromkeys(OPERATIONS, 0.1)
    while killed < wanted:
        tries += 1
        assert tries < 5 * wanted + 40, "most commands end before they are killed"
        name = list(OPERATIONS)[tries % len(OPERATIONS)]
        folder = copied(base, work / f"{tries}")
        order = Order(operation=name, folder=str(folder))
        process = commands.start(order)
        os.kill(process, signal.SIGCONT)
        time.sleep(rng.uniform(0.0, lasts[name]))
        with suppress(ProcessLookupError):  # it has ended by now
            os.kill(process, signal.SIGKILL)
        status = commands.ended().status
        assert status in (0, -signal.SIGKILL)
        killed += status != 0
        state = states[name].look(folder)
        begun = time.monotonic()
        again = commands.run(order)
        lasts[name] = time.monotonic() - begun if again.status == 0 and status else 0.7 * lasts[name]
        states[name].again(folder, again.status, again.said, before=state)
        shutil.rmtree(folder)
    found = {name: each.found for name, each in states.items()}
    print(f"\n{killed} kills in {tries} commands: {found}")
