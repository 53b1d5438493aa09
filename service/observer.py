"""Who is told what the indexes of a service do: metrics and traces listen here, and answering knows neither."""

from collections.abc import Sequence

from service.schemas.answers import AnswerFacts


class Observer:
    """Hears of everything and does nothing with it: what an engine without a server has."""

    def opened(self, index: str, revision: str) -> None:
        """An index is open at a revision that it was not open at before.

        Args:
            index: Its name.
            revision: The revision.
        """

    def attributed(self, index: str, facts: AnswerFacts, seconds: float) -> None:
        """An attribution was answered; called in the thread that computed it.

        Args:
            index: The index's name.
            facts: The answer.
            seconds: How long it took, waiting for others' turns included.
        """

    def sketched(self, index: str, seconds: float) -> None:
        """An example that a client sent was sketched.

        Args:
            index: The index's name.
            seconds: How long it took.
        """

    def round_served(self, index: str, requests: int, seconds: float) -> None:
        """A round of scans was served.

        Args:
            index: The index's name.
            requests: How many selections shared it.
            seconds: How long it took.
        """


class Observers(Observer):
    """Tells several.

    Args:
        observers: Whom to tell, in this order.
    """

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = tuple(observers)

    def opened(self, index: str, revision: str) -> None:
        """Tell all."""
        for observer in self._observers:
            observer.opened(index, revision)

    def attributed(self, index: str, facts: AnswerFacts, seconds: float) -> None:
        """Tell all."""
        for observer in self._observers:
            observer.attributed(index, facts, seconds)

    def sketched(self, index: str, seconds: float) -> None:
        """Tell all."""
        for observer in self._observers:
            observer.sketched(index, seconds)

    def round_served(self, index: str, requests: int, seconds: float) -> None:
        """Tell all."""
        for observer in self._observers:
            observer.round_served(index, requests, seconds)
