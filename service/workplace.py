"""Where the computing happens: a few worker threads, a bounded queue before them, a deadline for every request."""

import itertools
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar

import anyio
import anyio.to_thread

from service.errors import DeadlineExceededError, QueueFullError
from service.request_clock import request_clock

Result = TypeVar("Result")


class ClientGoneError(Exception):
    """Nobody waits for the answer any more; stops the work and is answered with nothing."""


class Deadline:
    """The moment by which a request must be answered, as long as somebody waits for the answer.

    Attributes:
        seconds: How long the request had from its start.
        abandoned: Whether the client went away.
    """

    def __init__(self, seconds: float) -> None:
        """Start the clock.

        Args:
            seconds: How long the request has.
        """
        self.seconds = seconds
        self.abandoned = False
        self._at = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds that remain, negative when it has passed."""
        return self._at - time.monotonic()

    def abandon(self) -> None:
        """Say that nobody waits for the answer any more."""
        self.abandoned = True

    def check(self) -> None:
        """Stop a computation that has taken too long, or is for nobody; called between its steps.

        Raises:
            ClientGoneError: If the client went away.
            DeadlineExceededError: If the moment has passed.
        """
        if self.abandoned:
            raise ClientGoneError
        if self.left <= 0:
            raise DeadlineExceededError(
                f"the request was not answered within {self.seconds:g} s; ask for less at once (budget, queries, "
                "groups), or submit a job"
            )


class Workplace:
    """Runs CPU work in threads: at most ``workers`` at a time, at most ``queue`` waiting, the rest refused.

    Attributes:
        workers: Requests that compute at the same time.
        queue: Requests that may wait.
    """

    def __init__(self, workers: int, queue: int) -> None:
        """Open the workplace.

        Args:
            workers: Requests that compute at the same time.
            queue: Requests that may wait.
        """
        self.workers = workers
        self.queue = queue
        self._busy = 0
        self._waiting = 0
        self._free = anyio.Semaphore(workers)
        # A thread is only ever taken by a request that holds a desk, so this limiter never makes anyone wait.
        self._threads = anyio.CapacityLimiter(workers)

    @property
    def busy(self) -> int:
        """Requests that compute now."""
        return self._busy

    @property
    def waiting(self) -> int:
        """Requests that wait now."""
        return self._waiting

    def check_room(self) -> None:
        """Refuse where no more requests may come in.

        Raises:
            QueueFullError: If as many requests wait as may.
        """
        if self._busy + self._waiting >= self.workers + self.queue:
            raise QueueFullError(f"{self._busy} requests compute and {self._waiting} wait; try again in a second")

    @asynccontextmanager
    async def desk(self, deadline: Deadline) -> AsyncIterator[None]:
        """Hold one of the workers' places for as long as the block runs.

        Args:
            deadline: When waiting for it has no more use.

        Yields:
            Nothing; the place is held inside the block.

        Raises:
            QueueFullError: If as many requests wait as may.
            DeadlineExceededError: If no place came free in time.
        """
        self.check_room()
        self._waiting += 1
        begun = time.perf_counter()
        try:
            with anyio.move_on_after(max(deadline.left, 0.0)) as scope:
                await self._free.acquire()
        finally:
            self._waiting -= 1
            request_clock().queued(begun)
        if scope.cancelled_caught:
            deadline.check()
            raise DeadlineExceededError("no worker came free in time")
        self._busy += 1
        try:
            yield
        finally:
            self._busy -= 1
            self._free.release()

    async def at_desk(self, work: Callable[[], Result]) -> Result:
        """Run work in a thread; only inside :meth:`desk`.

        Args:
            work: What to compute.

        Returns:
            What ``work`` returned.
        """
        return await anyio.to_thread.run_sync(work, limiter=self._threads)

    async def run_all(self, works: Sequence[Callable[[], Result]], deadline: Deadline) -> list[Result]:
        """Wait for a place and run several works: in one thread, and in as many more as there are idle places.

        Works that run at the same time share the scans of the index; nobody's place is taken for it.

        Args:
            works: What to compute; each checks the deadline itself.
            deadline: When the answers must be there.

        Returns:
            What they returned, in their order.
        """
        results: dict[int, Result] = {}
        places = itertools.count()

        def take() -> None:
            # Whoever is free takes the next.
            while (place := next(places)) < len(works):
                results[place] = works[place]()

        async with self.desk(deadline), anyio.create_task_group() as group:
            group.start_soon(self.at_desk, take)
            for _ in range(len(works) - 1):
                if self._waiting or self._busy >= self.workers:
                    break
                self._free.acquire_nowait()
                self._busy += 1
                group.start_soon(self._at_spare_desk, take)
        request_clock().computed()
        return [results[place] for place in range(len(works))]

    async def _at_spare_desk(self, work: Callable[[], Result]) -> None:
        try:
            await self.at_desk(work)
        finally:
            self._busy -= 1
            self._free.release()

    async def run(self, work: Callable[[], Result], deadline: Deadline) -> Result:
        """Wait for a place and run work in a thread.

        Args:
            work: What to compute; it checks the deadline between its steps itself.
            deadline: When the answer must be there.

        Returns:
            What ``work`` returned.
        """
        async with self.desk(deadline):
            result = await self.at_desk(work)
        request_clock().computed()
        return result
