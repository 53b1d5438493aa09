"""A job's progress as server-sent events: whatever changed since the event that the client saw last."""

import time
from collections.abc import AsyncIterator, Callable

import anyio
from anyio import to_thread
from fastapi import Request
from fastapi.sse import EventSourceResponse, format_sse_event

from service.jobs.jobs import Jobs, is_over
from service.jobs.stored_job import StoredJob

LOOK_SECONDS = 0.1
#: After so long without an event a comment is sent, so that nobody between takes the connection for dead.
COMMENT_SECONDS = 15.0


def follow(
    jobs: Jobs, job: StoredJob, request: Request, last_event_id: int | None, stopping: Callable[[], bool]
) -> EventSourceResponse:
    """Stream what happens to a job until it is over. It holds no worker.

    Args:
        jobs: The jobs.
        job: The job as it stands.
        request: The request, watched for the client going away.
        last_event_id: The version that the client saw last.
        stopping: Says whether the service stops: followers are let go at once, and come back to the next process.

    Returns:
        The response.
    """
    seen = -1 if last_event_id is None else last_event_id
    return EventSourceResponse(
        _events(jobs, job, request, seen, stopping), headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    )


async def _events(
    jobs: Jobs, job: StoredJob, request: Request, seen: int, stopping: Callable[[], bool]
) -> AsyncIterator[bytes]:
    spoke = time.monotonic()
    while not stopping():
        if job.version > seen:
            seen, spoke = job.version, time.monotonic()
            event = "over" if is_over(job) else "progress"
            yield format_sse_event(event=event, id=str(seen), data_str=jobs.describe(job).model_dump_json())
        if is_over(job) or await request.is_disconnected():
            return
        while jobs.store.versions.get(job.id, job.version) == job.version and not stopping():
            await anyio.sleep(LOOK_SECONDS)
            if time.monotonic() - spoke > COMMENT_SECONDS:
                spoke = time.monotonic()
                yield b": nothing new\n\n"
                if await request.is_disconnected():
                    return
        if not stopping():
            job = await to_thread.run_sync(jobs.store.get, job.id)
