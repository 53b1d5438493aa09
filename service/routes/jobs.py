"""POST, GET and DELETE /v1/jobs: long work, handed in, followed, cancelled and fetched."""

from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, Header, Query, Request, Response
from starlette.responses import StreamingResponse

from service.authentication import CallerOf
from service.documentation import job_examples
from service.errors import JobNotOverError
from service.jobs import results
from service.jobs.events import follow
from service.jobs.jobs import is_over
from service.parameters import JobId, JobsOf, WithoutParameters
from service.schemas.jobs import Job, JobPage, JobRequest, JobResult
from service.schemas.values import LARGEST_INTEGER
from service.state import JsonBody, Service

router = APIRouter(tags=["jobs"])
EVENT = {
    "type": "object",
    "description": "One event.",
    "properties": {
        "event": {"type": "string", "enum": ["progress", "over"]},
        "id": {"type": "string", "description": "Grows with every change of the job."},
        "data": {"type": "string", "contentMediaType": "application/json", "description": "The job, as Job."},
    },
}
# What can be done with the id of a job that was accepted.
LINKS = {
    name: {"operationId": f"{operation}_v1_jobs__job_{path}", "parameters": {"job": "$response.body#/id"}}
    for name, operation, path in (
        ("job", "read_job", "_get"),
        ("cancellation", "cancel_job", "_delete"),
        ("result", "read_result", "_result_get"),
        ("events", "read_events", "_events_get"),
    )
}
IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=200,
        pattern=r"^[\x21-\x7e]+$",
        description="Any text of your choice, new for every new job: the same request with the same key again is the "
        "same job, so that a request whose answer was lost can be sent again.",
    ),
]
LastEventId = Annotated[
    int | None,
    Header(
        alias="Last-Event-ID",
        ge=0,
        le=LARGEST_INTEGER,
        description="The id of the last event that arrived: only later ones are sent.",
    ),
]


@router.post(
    "/v1/jobs",
    status_code=202,
    response_model=Job,
    summary="Hand in long work",
    dependencies=[JsonBody, WithoutParameters],
    openapi_extra=job_examples(),
    responses={202: {"links": LINKS}},
)
async def submit(
    asked: JobRequest, response: Response, service: Service, caller: CallerOf, key: IdempotencyKey = None
) -> Job:
    """Answered once the job is on disk. It survives a crash and a restart, and is not done twice."""
    jobs = service.jobs_or_refuse()
    job = await service.workplace.run(lambda: jobs.submit(asked, key, caller), service.deadline())
    response.headers["Location"] = f"/v1/jobs/{job.id}"
    return jobs.describe(job)


@router.get("/v1/jobs", response_model=JobPage, summary="Jobs, the newest first")
async def list_jobs(asked: Annotated[JobsOf, Query()], service: Service, caller: CallerOf) -> JobPage:
    """The key's own that are not forgotten yet, or those in one state; an admin key sees everybody's."""
    service.check_length("limit", asked.limit, "max_page", parameter=True)
    jobs = service.jobs_or_refuse()
    found, total = await to_thread.run_sync(jobs.page, asked.state, asked.offset, asked.limit, caller)
    return JobPage(jobs=[jobs.describe(job) for job in found], total=total)


@router.get("/v1/jobs/{job}", response_model=Job, summary="A job as it stands", dependencies=[WithoutParameters])
async def read_job(job: JobId, service: Service, caller: CallerOf) -> Job:
    """Its state and progress; why it failed."""
    jobs = service.jobs_or_refuse()
    return jobs.describe(await to_thread.run_sync(jobs.find, job, caller))


@router.delete("/v1/jobs/{job}", response_model=Job, summary="Cancel a job", dependencies=[WithoutParameters])
async def cancel_job(job: JobId, service: Service, caller: CallerOf) -> Job:
    """A job that waits is cancelled at once, one that runs after its step; its items stay. One that is over stays."""
    jobs = service.jobs_or_refuse()
    return jobs.describe(await to_thread.run_sync(jobs.cancel, job, caller))


@router.get(
    "/v1/jobs/{job}/result",
    response_class=Response,
    summary="The items of a job that is over",
    dependencies=[WithoutParameters],
    responses={
        200: {
            "model": JobResult,
            "description": "The items, in the form that Accept names.",
            "content": {
                results.NDJSON: {"schema": {"type": "string"}},
                results.PARQUET: {"schema": {"type": "string", "format": "binary"}},
            },
        }
    },
)
async def read_result(job: JobId, request: Request, service: Service, caller: CallerOf) -> StreamingResponse:
    """JSON with the job itself, NDJSON of items, or Parquet of hits, picks or subsets, as Accept says.

    A job that was cancelled or failed has the items that were made until then.
    """
    jobs = service.jobs_or_refuse()
    found = await to_thread.run_sync(jobs.find, job, caller)
    if not is_over(found):
        raise JobNotOverError(
            f"job {job} is {found.state}, {found.done} of {found.total} items are there; wait, or cancel it",
            headers={"Retry-After": "1"},
        )
    form = results.form_of(request.headers.get("accept", ""))
    items = jobs.store.items(found)
    match form:
        case results.NDJSON:
            content = results.as_ndjson(items)
        case results.PARQUET:
            content = results.as_parquet(found, items, jobs.store.path.parent)
        case _:
            content = results.as_json(jobs.describe(found), found.facts, items)
    return StreamingResponse(content, media_type=form, headers={"X-Content-Type-Options": "nosniff", "Vary": "Accept"})


@router.get(
    "/v1/jobs/{job}/events",
    response_class=Response,
    summary="A job's progress as server-sent events",
    dependencies=[WithoutParameters],
    responses={
        200: {"content": {"text/event-stream": {"schema": EVENT}}, "description": "Events."},
        204: {"description": "The job is over, and Last-Event-ID was its last event: nothing will follow."},
    },
)
async def read_events(
    job: JobId, request: Request, service: Service, caller: CallerOf, last_event_id: LastEventId = None
) -> Response:
    """``progress`` whenever the job got on, ``over`` when it is done, failed or cancelled; the data is the job.

    An event's id grows with every change. A client that lost the connection sends the last one as ``Last-Event-ID``.
    """
    jobs = service.jobs_or_refuse()
    found = await to_thread.run_sync(jobs.find, job, caller)
    if is_over(found) and last_event_id is not None and found.version <= last_event_id:
        return Response(status_code=204)
    return follow(jobs, found, request, last_event_id, lambda: jobs.stopping or not service.ready)
