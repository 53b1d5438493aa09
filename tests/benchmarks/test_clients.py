import threading
from types import SimpleNamespace

import pytest

from benchmarks.clients import ask_all, unlike


def test_every_question_is_asked_once_and_answers_keep_their_order() -> None:
    asked: list[int] = []
    lock = threading.Lock()

    def ask(number: int) -> SimpleNamespace:
        with lock:
            asked.append(number)
        return SimpleNamespace(number=number)

    run = ask_all([ask] * 5, 40)
    assert sorted(asked) == list(range(40))
    assert [answer.number for answer in run.answers] == list(range(40))
    assert len(run.waits) == 40
    assert run.seconds >= max(run.waits)


def test_clients_ask_at_the_same_time() -> None:
    meeting = threading.Barrier(3, timeout=10)  # breaks unless three questions are in flight together
    run = ask_all([lambda number: meeting.wait()] * 3, 6)
    assert sorted(run.answers) == [0, 0, 1, 1, 2, 2], "each place at the barrier, once for each of two meetings"


def test_a_failing_client_is_reported() -> None:
    def ask(number: int) -> None:
        if number == 3:
            raise ValueError("no such row")

    with pytest.raises(RuntimeError, match="no such row"):
        ask_all([ask, ask], 10)


def test_unlike_answers_are_counted_and_their_fields_named() -> None:
    alone = [{"hits": [1], "search": 2}, {"hits": [3], "search": 4}]
    assert unlike(alone, alone) == (0, [])
    assert unlike([{"hits": [1], "search": 5}, {"hits": [3], "search": 4}], alone) == (1, ["search"])
