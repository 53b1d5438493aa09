"""Many askers, one server: whatever waits is served together, in rounds that askers join and leave.

As language models are served by continuous batching: no asker waits for others to arrive, and none waits for another
to finish more than the round that is under way. There is no thread of its own; an asker whose turn it is serves all.
"""

import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

Asked = TypeVar("Asked")
Given = TypeVar("Given")


class _Ticket(Generic[Asked, Given]):
    """One question that waits."""

    def __init__(self, asked: Asked) -> None:
        self.asked = asked
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
    """

    def __init__(self, serve: Callable[[Sequence[Asked]], Sequence[Given]], most: int = 64) -> None:
        self._serve = serve
        self._most = most
        self._lock = threading.Lock()
        self._waiting: list[_Ticket[Asked, Given]] = []
        self._under_way = False
        self.rounds = 0
        self.served = 0

    def ask(self, asked: Asked) -> Given:
        """Have one question answered, together with what others ask at the same time.

        Args:
            asked: The question.

        Returns:
            Its answer.
        """
        ticket: _Ticket[Asked, Given] = _Ticket(asked)
        with self._lock:
            self._waiting.append(ticket)
            ticket.leads = not self._under_way
            self._under_way = True
        if not ticket.leads:
            ticket.called.wait()
        if ticket.leads:
            self._serve_round()
        if ticket.error is not None:
            raise ticket.error
        return ticket.given  # type: ignore[return-value]

    def _serve_round(self) -> None:
        # The leader's own question is the oldest, so it is always in the round it serves.
        with self._lock:
            tickets, self._waiting = self._waiting[: self._most], self._waiting[self._most :]
        try:
            for ticket, given in zip(tickets, self._serve([ticket.asked for ticket in tickets]), strict=True):
                ticket.given = given
        except BaseException as error:
            for ticket in tickets:
                ticket.error = error
        with self._lock:
            self.rounds += 1
            self.served += len(tickets)
            successor = self._waiting[0] if self._waiting else None
            self._under_way = successor is not None
        # The next leader first: its round runs while the others work with what they got.
        if successor is not None:
            successor.leads = True
            successor.called.set()
        for ticket in tickets:
            ticket.called.set()
