"""Seats to compute at: so many threads work at the same time, the others wait their turn.

Threads that share one interpreter lock slow each other down where many work in small steps, and whoever serves requests
gets the lock seldom. More seats than cores bring nothing.
"""

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager


class Seats:
    """A number of seats, taken in the order in which they are asked for.

    Args:
        count: How many.
    """

    def __init__(self, count: int) -> None:
        self._lock = threading.Lock()
        self._free = count
        self._queue: deque[threading.Event] = deque()

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Work at a seat. Nothing that waits for another thread's seat belongs in it.

        Yields:
            Nothing; the seat is left with the block.
        """
        self._take()
        try:
            yield
        finally:
            self._leave()

    def pass_on(self) -> None:
        """In the middle of long work at a seat: let those who wait have it first, and go on."""
        if self._queue:
            self._leave()
            self._take()

    def _take(self) -> None:
        called = None
        with self._lock:
            if self._free:
                self._free -= 1
            else:
                called = threading.Event()
                self._queue.append(called)
        if called is not None:
            called.wait()

    def _leave(self) -> None:
        with self._lock:
            if self._queue:
                self._queue.popleft().set()
            else:
                self._free += 1
