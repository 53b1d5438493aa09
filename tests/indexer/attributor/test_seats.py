"""Seats: so many threads compute at a time, in the order in which they came, and none keeps a seat that it has left."""

import threading
import time

import pytest

from indexer.attributor.seats import Seats


def test_no_more_threads_compute_than_there_are_seats():
    seats, lock, now, most = Seats(2), threading.Lock(), [0], [0]

    def compute() -> None:
        with seats.taken():
            for _ in range(5):
                with lock:
                    now[0] += 1
                    most[0] = max(most[0], now[0])
                time.sleep(0.001)
                with lock:
                    now[0] -= 1
                seats.pass_on()

    threads = [threading.Thread(target=compute) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads)
    assert most[0] == 2


def test_who_passes_on_waits_for_those_who_came_before():
    seats, order = Seats(1), list[str]()
    first_sits, second_waits = threading.Event(), threading.Event()

    def first() -> None:
        with seats.taken():
            first_sits.set()
            second_waits.wait(10)
            while not seats._queue:
                time.sleep(0.001)
            order.append("first")
            seats.pass_on()
            order.append("first again")

    def second() -> None:
        first_sits.wait(10)
        second_waits.set()
        with seats.taken():
            order.append("second")

    threads = [threading.Thread(target=work) for work in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert order == ["first", "second", "first again"]


def test_a_seat_is_left_by_an_error_too():
    seats = Seats(1)
    with pytest.raises(ValueError, match="wrong"), seats.taken():
        raise ValueError("wrong")
    with seats.taken():
        seats.pass_on()  # nobody waits
