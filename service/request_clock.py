"""Where the time of one request went, noted by those who see it: it waited, it was computed, its answer was written."""

import time
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass
class RequestClock:
    """What is known of a request that is being answered.

    Attributes:
        method: The HTTP method, or "other" for one that HTTP does not know.
        queued_at: When it asked for a worker, by ``time.perf_counter``; None where it never did.
        queue_seconds: How long it waited for a worker; None where it never asked for one.
        computed_at: When its answer was computed and only remained to be written.
        written_at: When the first byte of its answer left.
    """

    method: str = "other"
    queued_at: float | None = None
    queue_seconds: float | None = None
    computed_at: float | None = None
    written_at: float | None = None

    def queued(self, began: float) -> None:
        """Note that it has waited for a worker.

        Args:
            began: Since when, by ``time.perf_counter``.
        """
        self.queued_at, self.queue_seconds = began, time.perf_counter() - began

    def computed(self) -> None:
        """Note that the answer is computed."""
        self.computed_at = time.perf_counter()


#: The clock of the request that this task or thread works on; one of its own, which nobody reads, outside of requests.
REQUEST_CLOCK: ContextVar[RequestClock] = ContextVar("request_clock")


def request_clock() -> RequestClock:
    """Return the clock of the request being answered."""
    return REQUEST_CLOCK.get(RequestClock())
