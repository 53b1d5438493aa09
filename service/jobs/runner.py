"""Does the jobs that wait, one after the other in each of a few threads; what ends the process costs one step."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import structlog

from service.errors import JobFailedError, JobStoreError
from service.jobs.stopping import StopJob
from service.jobs.store import JobStore
from service.jobs.stored_job import Item, StoredJob
from service.jobs.work import Work
from service.problems import problem_of
from sketchstore.errors import CorruptIndexError

#: How often a job is begun without getting on before it is taken to be what ends the process.
MOST_ATTEMPTS = 10
IDLE_SECONDS = 60.0
FULL_DISK_SECONDS = 1.0

log = structlog.get_logger("service")

#: Makes a job's work on the revision that its index has now, and says which.
Begin = Callable[[StoredJob], tuple[Work, str]]
#: Says which revision an index has now.
RevisionOf = Callable[[str], str]


class _Stored:
    """The items that a job has already."""

    def __init__(self, store: JobStore, job: StoredJob) -> None:
        self._store, self._job = store, job

    def positions(self) -> set[int]:
        return self._store.positions(self._job)

    def items(self) -> Iterator[Item]:
        return self._store.items(self._job)


class Runner:
    """Threads that do jobs.

    Args:
        store: The jobs.
        begin: Makes a job's work.
        revision_of: Says which revision an index has now.
        workers: Jobs done at the same time.
        retention_seconds: How long a job that is over is kept.
    """

    def __init__(
        self, store: JobStore, begin: Begin, revision_of: RevisionOf, workers: int, retention_seconds: float
    ) -> None:
        self._store = store
        self._begin = begin
        self._revision_of = revision_of
        self._retention_seconds = retention_seconds
        self._stopping = threading.Event()
        self._wake = threading.Condition()
        self._threads = [
            threading.Thread(target=self._work, name=f"jobs-{number}", daemon=True) for number in range(workers)
        ]

    @property
    def stopping(self) -> bool:
        """Whether no more steps are made."""
        return self._stopping.is_set()

    def start(self) -> None:
        """Take up what was left, and begin."""
        if recovered := self._store.recover():
            log.info("jobs resumed", jobs=recovered)
        for thread in self._threads:
            thread.start()

    def wake(self) -> None:
        """Say that there is something to do."""
        with self._wake:
            self._wake.notify_all()

    def stop(self, seconds: float) -> None:
        """Stop every job after the step that it makes; what is stored stays, the next start goes on from there.

        Args:
            seconds: How long to wait for those steps.
        """
        self._stopping.set()
        self.wake()
        deadline = time.monotonic() + seconds
        for thread in self._threads:
            if thread.is_alive():
                thread.join(max(0.0, deadline - time.monotonic()))

    def _work(self) -> None:
        while not self.stopping:
            try:
                self._store.expire(self._retention_seconds)
                job = self._store.claim()
                if job is not None:
                    self._do(job)
                    continue
            except JobStoreError as error:  # a full disk: jobs wait until there is room
                log.error("job store", reason=str(error))
                self._stopping.wait(FULL_DISK_SECONDS)
                continue
            with self._wake:
                if not self.stopping:
                    self._wake.wait(IDLE_SECONDS)

    def _do(self, job: StoredJob) -> None:
        log.info("job begins", job=job.id, type=job.type, index=job.index_name, done=job.done, total=job.total)
        state: str = "done"
        problem: dict[str, Any] | None = None
        try:
            if job.attempts > MOST_ATTEMPTS:
                raise JobFailedError(
                    f"the job was begun {MOST_ATTEMPTS} times and the process ended each time before it got on; ask "
                    "for less at once, or give the service more memory"
                )
            while not self._advance(job):
                log.info("job begins anew", job=job.id, reason="new revision")
        except StopJob:
            if job.id not in self._store.cancelled:
                self._store.requeue(job)
                return
            state = "cancelled"
        except JobStoreError:
            raise
        except Exception as error:
            state = "failed"
            problem = problem_of(error, job.id).problem.model_dump(mode="json", exclude_none=True)
        self._persistently(lambda: self._store.finish(job, state, problem))
        log.info("job is over", job=job.id, state=state)

    def _advance(self, job: StoredJob) -> bool:
        # Whether the job was done; not if its revision's files went away, to be begun on the new one.
        work, revision = self._begin(job)
        self._persistently(lambda: self._store.begin(job, revision, work.total, work.facts, work.warnings))

        def check() -> None:
            if self.stopping or job.id in self._store.cancelled:
                raise StopJob

        try:
            check()
            for items in work.run(_Stored(self._store, job), check):
                self._keep(job, items)
        except (CorruptIndexError, FileNotFoundError):
            if self._revision_of(job.index_name) == revision:
                raise
            return False
        return True

    def _keep(self, job: StoredJob, items: list[Item]) -> None:
        self._persistently(lambda: self._store.add(job, items))

    def _persistently(self, write: Callable[[], None]) -> None:
        # A full disk ends no job: it waits until there is room, or until the service stops.
        while True:
            try:
                write()
            except JobStoreError as error:
                log.error("job store", reason=str(error))
                if self._stopping.wait(FULL_DISK_SECONDS):
                    raise
            else:
                return
