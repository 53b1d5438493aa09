"""Many askers, one server: whatever waits is served together, in rounds that askers join and leave.

As language models are served by continuous batching: no asker waits for others to arrive, and none waits for another
to finish more than the round that is under way. There is no thread of its own; an asker whose turn it is serves all.

Between its questions an asker works on what it got, in *turns*: threads that share one interpreter lock slow each other
down where they work at the same time, and a round that begins while some of them work has little company in it. So one
works at a time, and a round begins when nobody does who may still ask soon: one that passes its turn while questions
wait is waited for no more.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Generic, TypeVar

Asked = TypeVar("Asked")
Given = TypeVar("Given")


class _Ticket(Generic[Asked, Given]):
    """One question that waits."""

    def __init__(self, asked: Asked, working: bool) -> None:
        self.asked = asked
        self.working = working
        self.given: Given | None = None
        self.error: BaseException | None = None
        self.called = threading.Event()
        self.leads = False


class Rounds(Generic[Asked, Given]):
    """Serves what several threads ask for, together.

    Args:
        serve: Answers all questions of a round, in their order. It is never run twice at the same time, and no answer
            may depend on the other questions.
        most: Most questions in one round; more wait for the next.

    Attributes:
        rounds: Rounds served so far.
        served: Questions served so far.
        watcher: Told of every round how many questions it served and how many seconds that took; None to tell nobody.
    """

    def __init__(self, serve: Callable[[Sequence[Asked]], Sequence[Given]], most: int = 64) -> None:
        self._serve = serve
        self._most = most
        self._lock = threading.Lock()
        self._waiting: list[_Ticket[Asked, Given]] = []
        self._under_way = False
        # How many are in a turn or wait for one, less those that rounds wait for no more. A thread's own part in it is
        # remembered: whether it is in a turn, and whether it counts.
        self._working = 0
        self._turn_taken = False
        self._turn_queue: deque[threading.Event] = deque()
        self._own = threading.local()
        self.rounds = 0
        self.served = 0
        self.watcher: Callable[[int, float], None] | None = None

    @property
    def seconds_asking(self) -> float:
        """Seconds that the calling thread has spent on its questions so far, from asking to going on."""
        return getattr(self._own, "seconds_asking", 0.0)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Work between questions, while nobody else does; a question lets others work until it is answered.

        A thread that is in a turn may enter it again. Nothing that waits for another thread's turn belongs in it.
        Turns come in the order in which they were asked for. A round waits for those who asked for theirs before any of
        its questions came.

        Yields:
            Nothing; the turn ends with the block.
        """
        if getattr(self._own, "working", False):
            yield
            return
        with self._lock:
            # Questions that wait already do not wait for newcomers as well: there might be no end to these.
            self._own.counts = not self._waiting
            self._working += self._own.counts
        self._take_turn()
        try:
            yield
        finally:
            self._end_turn()

    def pass_turn(self) -> None:
        """Let those who wait for a turn have theirs first, and go on; for the middle of a long one.

        Questions that wait are served without waiting for the next one of this thread.
        """
        if not getattr(self._own, "working", False):
            return
        if self._waiting:
            with self._lock:
                self._stop_counting()
        if self._turn_queue:
            self._give_turn()
            self._take_turn()

    def ask(self, asked: Asked) -> Given:
        """Have one question answered, together with what others ask at the same time.

        Args:
            asked: The question.

        Returns:
            Its answer.
        """
        began = time.perf_counter()
        try:
            return self._ask(asked)
        finally:
            self._own.seconds_asking = self.seconds_asking + time.perf_counter() - began

    def _ask(self, asked: Asked) -> Given:
        ticket: _Ticket[Asked, Given] = _Ticket(asked, getattr(self._own, "working", False))
        with self._lock:
            self._waiting.append(ticket)
            if not ticket.working:
                self._call_leader()
        if ticket.working:
            self._end_turn()
        ticket.called.wait()
        try:
            if ticket.leads:
                self._serve_round()
        finally:
            if ticket.working:
                self._own.counts = True
                self._take_turn()
        if ticket.error is not None:
            raise ticket.error
        return ticket.given  # type: ignore[return-value]

    def _take_turn(self) -> None:
        called = None
        with self._lock:
            if self._turn_taken:
                called = threading.Event()
                self._turn_queue.append(called)
            self._turn_taken = True
        if called is not None:
            called.wait()
        self._own.working = True

    def _give_turn(self) -> None:
        self._own.working = False
        with self._lock:
            if self._turn_queue:
                self._turn_queue.popleft().set()
            else:
                self._turn_taken = False

    def _end_turn(self) -> None:
        self._give_turn()
        with self._lock:
            self._stop_counting()

    def _stop_counting(self) -> None:
        # With the lock held.
        if self._own.counts:
            self._own.counts = False
            self._working -= 1
        self._call_leader()

    def _call_leader(self) -> None:
        # With the lock held. The oldest question leads as soon as nobody works and no round is under way.
        if self._waiting and not self._working and not self._under_way:
            self._under_way = True
            self._waiting[0].leads = True
            self._waiting[0].called.set()

    def _serve_round(self) -> None:
        # The leader's own question is the oldest, so it is always in the round it serves.
        with self._lock:
            tickets, self._waiting = self._waiting[: self._most], self._waiting[self._most :]
        began = time.perf_counter()
        try:
            for ticket, given in zip(tickets, self._serve([ticket.asked for ticket in tickets]), strict=True):
                ticket.given = given
        except BaseException as error:
            for ticket in tickets:
                ticket.error = error
        seconds = time.perf_counter() - began
        with self._lock:
            self.rounds += 1
            self.served += len(tickets)
            self._under_way = False
            self._working += sum(ticket.working for ticket in tickets)
            self._call_leader()
        for ticket in tickets:
            ticket.called.set()
        if self.watcher is not None:
            self.watcher(len(tickets), seconds)
