import threading
import time

import anyio
import pytest

from service.errors import DeadlineExceededError, QueueFullError
from service.workplace import Deadline, Workplace

pytestmark = pytest.mark.anyio


async def test_work_beyond_the_queue_is_refused_and_the_rest_is_done():
    workplace = Workplace(workers=1, queue=1)
    go = threading.Event()
    outcomes: list[str] = []

    async def ask() -> None:
        try:
            await workplace.run(lambda: go.wait(10), Deadline(10))
            outcomes.append("done")
        except QueueFullError as error:
            outcomes.append(f"refused, {error.headers}")
            go.set()

    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(ask)
    assert sorted(outcomes) == ["done", "done", "refused, {'Retry-After': '1'}"]
    assert (workplace.busy, workplace.waiting) == (0, 0)


async def test_waiting_ends_at_the_deadline():
    workplace = Workplace(workers=1, queue=5)
    async with workplace.desk(Deadline(10)):
        begun = time.monotonic()
        with pytest.raises(DeadlineExceededError):
            await workplace.run(lambda: None, Deadline(0.05))
        assert time.monotonic() - begun < 5
    assert await workplace.run(lambda: 7, Deadline(10)) == 7


async def test_at_most_as_many_compute_as_there_are_workers():
    workplace = Workplace(workers=2, queue=10)
    lock = threading.Lock()
    now, most = 0, 0

    def work() -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.01)
        with lock:
            now -= 1

    async with anyio.create_task_group() as tasks:
        for _ in range(8):
            tasks.start_soon(workplace.run, work, Deadline(10))
    assert most == 2


async def test_a_failing_computation_gives_its_place_back():
    workplace = Workplace(workers=1, queue=0)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            await workplace.run(lambda: 1 / 0, Deadline(10))


def test_a_deadline_that_has_passed_stops_the_work():
    deadline = Deadline(0.001)
    time.sleep(0.01)
    with pytest.raises(DeadlineExceededError, match=r"0\.001 s"):
        deadline.check()
