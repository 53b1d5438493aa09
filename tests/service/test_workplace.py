import threading
import time
from functools import partial

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


async def test_works_of_one_request_run_together_on_idle_places_and_come_back_in_order():
    workplace = Workplace(workers=3, queue=0)
    together = threading.Barrier(3)

    def work(number):
        if number < 3:
            together.wait(30)  # three threads must be here at the same time
        return number

    found = await workplace.run_all([partial(work, number) for number in range(7)], Deadline(60))
    assert found == list(range(7))
    assert (workplace.busy, workplace.waiting) == (0, 0)


async def test_works_of_one_request_leave_places_to_others():
    workplace = Workplace(workers=2, queue=5)
    released = threading.Event()
    async with anyio.create_task_group() as group:
        group.start_soon(workplace.run, lambda: released.wait(30), Deadline(60))
        while workplace.busy < 1:
            await anyio.sleep(0.01)
        seen = []
        assert await workplace.run_all([lambda: seen.append(workplace.busy)] * 3, Deadline(60)) == [None] * 3
        assert seen == [2, 2, 2]
        released.set()
    assert workplace.busy == 0


async def test_an_error_of_one_work_is_raised_and_every_place_comes_free():
    workplace = Workplace(workers=4, queue=0)

    def fail():
        raise ValueError("no")

    with pytest.raises((ValueError, ExceptionGroup)):
        await workplace.run_all([fail, lambda: 1, lambda: 2], Deadline(60))
    assert (workplace.busy, workplace.waiting) == (0, 0)
    assert await workplace.run_all([lambda: 5], Deadline(60)) == [5]
