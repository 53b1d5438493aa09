"""Rounds: everyone is served once, in company where there is any, and an error reaches those it concerns."""

import contextlib
import random
import threading
import time

import pytest

from indexer.attributor.rounds import Rounds


def test_who_waits_is_served_together_in_the_next_round():
    started, released, rounds_seen = threading.Event(), threading.Event(), []

    def serve(asked):
        rounds_seen.append(sorted(asked))
        if asked == [0]:
            started.set()
            assert released.wait(30)
        return [10 * number for number in asked]

    rounds, given = Rounds(serve, most=3), {}

    def ask(number):
        given[number] = rounds.ask(number)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
    threads[0].start()
    assert started.wait(30)
    for thread in threads[1:]:
        thread.start()
    while len(rounds._waiting) < 5:
        pass
    released.set()
    for thread in threads:
        thread.join(30)
    assert given == {number: 10 * number for number in range(6)}
    assert [len(asked) for asked in rounds_seen] == [1, 3, 2]
    assert (rounds.rounds, rounds.served) == (3, 6)


def test_an_error_reaches_those_of_its_round_and_no_one_else():
    def serve(asked):
        if "bad" in asked:
            raise ValueError("bad was asked")
        return asked

    rounds = Rounds(serve)
    assert rounds.ask("good") == "good"
    with pytest.raises(ValueError, match="bad was asked"):
        rounds.ask("bad")
    assert rounds.ask("good") == "good"


def test_hundreds_of_questions_from_many_threads_are_each_answered_once():
    rounds, given = Rounds(lambda asked: [2 * number for number in asked], most=4), []

    def ask_many(first):
        given.extend(rounds.ask(number) == 2 * number for number in range(first, first + 50))

    threads = [threading.Thread(target=ask_many, args=(100 * number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert given == [True] * 600
    assert rounds.served == 600


def test_a_round_begins_when_nobody_works_and_serves_all_who_do():
    seen = []

    def serve(asked):
        seen.append(len(asked))
        return asked

    rounds, given = Rounds(serve), []

    def select(number):
        with rounds.turn():
            for step in range(20):
                given.append(rounds.ask((number, step)) == (number, step))

    threads = [threading.Thread(target=select, args=(number,)) for number in range(8)]
    with rounds.turn():
        for thread in threads:
            thread.start()
        while len(rounds._turn_queue) < 8:
            pass
    for thread in threads:
        thread.join(60)
    assert given == [True] * 160
    assert seen == [8] * 20


def test_one_at_a_time_has_the_turn_and_those_who_wait_go_first():
    rounds, inside, order, holding, queued = Rounds(lambda asked: asked), [], [], threading.Event(), threading.Event()

    def work(name):
        with rounds.turn(), rounds.turn():  # entering again is no second turn
            inside.append(name)
            assert len(inside) == 1
            order.append(name)
            inside.remove(name)

    def long_work():
        with rounds.turn():
            order.append("long begins")
            holding.set()
            assert queued.wait(30)
            rounds.pass_turn()
            order.append("long ends")

    threads = [threading.Thread(target=long_work)]
    threads[0].start()
    assert holding.wait(30)
    for name in ("first", "second"):
        threads.append(threading.Thread(target=work, args=(name,)))
        threads[-1].start()
        while len(rounds._turn_queue) < len(threads) - 1:
            pass
    queued.set()
    for thread in threads:
        thread.join(30)
    assert order == ["long begins", "first", "second", "long ends"]


@contextlib.contextmanager
def running(work, count):
    """Threads at work while the block runs; it ends when they have."""
    threads = [threading.Thread(target=work, daemon=True) for _ in range(count)]
    for thread in threads:
        thread.start()
    yield
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()


@pytest.mark.parametrize("long_ones", [1, 2])
def test_a_question_is_served_while_others_work_on_without_asking(long_ones):
    rounds, answered, holding = Rounds(lambda asked: asked), threading.Event(), threading.Semaphore(0)
    ended_before = []

    def long_work():
        deadline = time.monotonic() + 30
        with rounds.turn():
            holding.release()
            while not answered.is_set() and time.monotonic() < deadline:
                time.sleep(0.001)
                rounds.pass_turn()
            ended_before.append(not answered.is_set())
            assert rounds.ask("still counted among those who ask") == "still counted among those who ask"

    with running(long_work, long_ones):
        for _ in range(long_ones):
            assert holding.acquire(timeout=30)
        with rounds.turn():
            assert rounds.ask("first step") == "first step"
            answered.set()
    assert ended_before == [False] * long_ones
    assert rounds._working == 0
    assert not rounds._turn_taken


def test_a_question_is_served_while_others_take_turn_after_turn_without_asking():
    rounds, answered = Rounds(lambda asked: asked), threading.Event()
    overlapping, ended_before = threading.Semaphore(0), []

    def turn_after_turn():
        deadline = time.monotonic() + 30
        for _ in range(10**6):
            with rounds.turn():  # somebody always waits for the next one: there are four
                overlapping.release()
                time.sleep(0.001)
            if answered.is_set() or time.monotonic() > deadline:
                break
        ended_before.append(not answered.is_set())

    with running(turn_after_turn, 4):
        for _ in range(8):
            assert overlapping.acquire(timeout=30)
        with rounds.turn():
            assert rounds.ask("first step") == "first step"
            answered.set()
    assert ended_before == [False] * 4


def test_a_watcher_that_fails_stops_no_round():
    rounds, given = Rounds(lambda asked: asked), []

    def watch(served, seconds):
        raise ValueError("a watcher raises nothing")

    rounds.watcher = watch

    def ask(number):
        with contextlib.suppress(ValueError), rounds.turn():
            given.append(rounds.ask(number))

    for number in range(3):
        thread = threading.Thread(target=ask, args=(number,), daemon=True)
        thread.start()
        thread.join(30)
        assert not thread.is_alive()
    assert rounds.rounds == 3
    assert rounds._working == 0
    assert not rounds._turn_taken


def test_a_turn_ends_with_an_error_in_it():
    def serve(asked):
        raise ValueError("no product")

    rounds = Rounds(serve)
    for _ in range(2):
        with pytest.raises(ValueError, match="no product"), rounds.turn():
            rounds.ask(1)


@pytest.mark.parametrize("seed", range(5))
def test_askers_in_any_order_all_end_and_leave_nothing_behind(seed):
    # Turns, passes, questions in and out of turns, and rounds that fail, at random.
    chance = random.Random(seed)

    def serve(asked):
        if chance.random() < 0.05:
            raise ValueError("no product")
        return [2 * each for each in asked]

    rounds, ended = Rounds(serve, most=chance.choice([1, 2, 64])), []

    def work(own):
        for _ in range(8):
            with contextlib.suppress(ValueError):
                if own.random() < 0.3:
                    assert rounds.ask(3) == 6
                with rounds.turn():
                    for _ in range(own.randint(0, 6)):
                        if own.random() < 0.5:
                            assert rounds.ask(4) == 8
                        else:
                            rounds.pass_turn()
        ended.append(own)

    threads = [threading.Thread(target=work, args=(random.Random(100 * seed + i),), daemon=True) for i in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(ended) == 12
    assert rounds._working == 0
    assert not (rounds._turn_taken)
    assert not (rounds._turn_queue)
    assert not (rounds._waiting)
    assert not (rounds._under_way)
