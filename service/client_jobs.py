"""A job as the synchronous client holds it: followed to its end through lost connections and restarts, then fetched."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import httpx
from pydantic import BaseModel

from service import job_calls
from service.calls import Call, check_status
from service.job_calls import JobEventReader, outcome
from service.jobs.results import NDJSON, PARQUET
from service.schemas.jobs import OVER, Job, JobResult

Model = TypeVar("Model", bound=BaseModel)


class JobHandle:
    """A job that was handed in.

    Attributes:
        job: The job as it was when something was last heard of it.
    """

    def __init__(self, http: httpx.Client, job: Job) -> None:
        """Take a job.

        Args:
            http: The connection to its service.
            job: The job.
        """
        self.job = job
        self._http = http

    @property
    def id(self) -> str:
        """The job's id."""
        return self.job.id

    def refresh(self) -> Job:
        """Ask how the job stands.

        Returns:
            The job.
        """
        self.job = self._make(job_calls.job(self.id))
        return self.job

    def cancel(self) -> Job:
        """Stop the job; the items it has stay.

        Returns:
            The job as it stands: one that runs is over after the step it makes.
        """
        self.job = self._make(job_calls.cancellation(self.id))
        return self.job

    def wait(self, on_progress: Callable[[Job], None] | None = None, timeout: float | None = None) -> Job:
        """Follow the job until it is over. A lost connection or a restarted service is waited for.

        Args:
            on_progress: Called with the job whenever it got on.
            timeout: Seconds to wait; None for as long as it takes.

        Returns:
            The job, done or cancelled. One that failed raises its problem.

        Raises:
            TimeoutError: If it is not over in time; the job goes on.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        reader, pause = JobEventReader(), job_calls.FIRST_PAUSE_SECONDS
        while True:
            try:
                for job in self._events(reader, deadline):
                    self.job, pause = job, job_calls.FIRST_PAUSE_SECONDS
                    if on_progress is not None:
                        on_progress(job)
                    if reader.over:
                        return outcome(job)
                if self.job.state in OVER:
                    return outcome(self.job)
            except httpx.TransportError:
                pass  # it may be restarting: the job goes on with it
            if deadline is not None and time.monotonic() + pause > deadline:
                raise TimeoutError(f"job {self.id} is not over within {timeout:g} s: {self.job.progress}")
            time.sleep(pause)
            pause = min(2 * pause, job_calls.LONGEST_PAUSE_SECONDS)

    def result(self) -> JobResult:
        """Fetch the job with all its items.

        Returns:
            The result.
        """
        return self._make(Call("GET", job_calls.path(self.id, "/result"), JobResult))

    def items(self) -> Iterator[dict[str, Any]]:
        """Fetch the items one by one.

        Yields:
            The items, in order.
        """
        with self._http.stream("GET", job_calls.path(self.id, "/result"), headers={"Accept": NDJSON}) as response:
            if response.status_code != 200:
                check_status(response.status_code, response.read())
            for line in response.iter_lines():
                yield json.loads(line)

    def save_parquet(self, path: Path) -> None:
        """Fetch the items as a Parquet file.

        Args:
            path: The file to write.
        """
        with self._http.stream("GET", job_calls.path(self.id, "/result"), headers={"Accept": PARQUET}) as response:
            if response.status_code != 200:
                check_status(response.status_code, response.read())
            with path.open("wb") as file:
                for part in response.iter_bytes():
                    file.write(part)

    def _events(self, reader: JobEventReader, deadline: float | None) -> Iterator[Job]:
        left = job_calls.SILENCE_SECONDS if deadline is None else max(deadline - time.monotonic(), 0.1)
        timeout = httpx.Timeout(10.0, read=min(left, job_calls.SILENCE_SECONDS))
        call = job_calls.path(self.id, "/events")
        with self._http.stream("GET", call, headers=reader.headers(), timeout=timeout) as response:
            if response.status_code == 503:
                return  # stopping: another process goes on with it
            if response.status_code == 204:
                self.refresh()
                return
            if response.status_code != 200:
                check_status(response.status_code, response.read())
            for line in response.iter_lines():
                job = reader.feed(line)
                if job is not None:
                    yield job
                    if reader.over or (deadline is not None and time.monotonic() > deadline):
                        return

    def _make(self, call: Call[Model]) -> Model:
        response = self._http.request(call.method, call.path, content=call.body, headers=call.headers())
        return call.read(response.status_code, response.content)
