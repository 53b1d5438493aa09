"""A job as the asynchronous client holds it; every method is that of :class:`service.client_jobs.JobHandle`."""

import json
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, TypeVar

import anyio
import httpx
from pydantic import BaseModel

from service import job_calls
from service.calls import Call, check_status
from service.job_calls import JobEventReader, outcome
from service.jobs.results import NDJSON, PARQUET
from service.schemas.jobs import OVER, Job, JobResult

Model = TypeVar("Model", bound=BaseModel)


class AsyncJobHandle:
    """A job that was handed in.

    Attributes:
        job: The job as it was when something was last heard of it.
    """

    def __init__(self, http: httpx.AsyncClient, job: Job) -> None:
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

    async def refresh(self) -> Job:
        """Return the job as it stands."""
        self.job = await self._make(job_calls.job(self.id))
        return self.job

    async def cancel(self) -> Job:
        """Stop the job; the items it has stay.

        Returns:
            The job as it stands.
        """
        self.job = await self._make(job_calls.cancellation(self.id))
        return self.job

    async def wait(self, on_progress: Callable[[Job], None] | None = None, timeout: float | None = None) -> Job:
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
                async for job in self._events(reader, deadline):
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
            await anyio.sleep(pause)
            pause = min(2 * pause, job_calls.LONGEST_PAUSE_SECONDS)

    async def result(self) -> JobResult:
        """Return the job with all its items."""
        return await self._make(Call("GET", job_calls.path(self.id, "/result"), JobResult))

    async def items(self) -> AsyncIterator[dict[str, Any]]:
        """Yield the items, in order."""
        request = self._http.stream("GET", job_calls.path(self.id, "/result"), headers={"Accept": NDJSON})
        async with request as response:
            if response.status_code != 200:
                check_status(response.status_code, await response.aread())
            async for line in response.aiter_lines():
                yield json.loads(line)

    async def save_parquet(self, path: Path) -> None:
        """Write the items to a Parquet file.

        Args:
            path: The file to write.
        """
        request = self._http.stream("GET", job_calls.path(self.id, "/result"), headers={"Accept": PARQUET})
        async with request as response, await anyio.open_file(path, "wb") as file:
            if response.status_code != 200:
                check_status(response.status_code, await response.aread())
            async for part in response.aiter_bytes():
                await file.write(part)

    async def _events(self, reader: JobEventReader, deadline: float | None) -> AsyncIterator[Job]:
        left = job_calls.SILENCE_SECONDS if deadline is None else max(deadline - time.monotonic(), 0.1)
        timeout = httpx.Timeout(10.0, read=min(left, job_calls.SILENCE_SECONDS))
        call = job_calls.path(self.id, "/events")
        async with self._http.stream("GET", call, headers=reader.headers(), timeout=timeout) as response:
            if response.status_code == 503:
                return  # stopping: another process goes on with it
            if response.status_code == 204:
                await self.refresh()
                return
            if response.status_code != 200:
                check_status(response.status_code, await response.aread())
            async for line in response.aiter_lines():
                job = reader.feed(line)
                if job is not None:
                    yield job
                    if reader.over or (deadline is not None and time.monotonic() > deadline):
                        return

    async def _make(self, call: Call[Model]) -> Model:
        response = await self._http.request(call.method, call.path, content=call.body, headers=call.headers())
        return call.read(response.status_code, response.content)
