"""What the endpoints of jobs take and give back, once, for the synchronous and the asynchronous client."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from pydantic import BaseModel, TypeAdapter, ValidationError

from service.calls import Call, ProblemError, encoded
from service.schemas.jobs import OVER, AttributionsJob, CoresetJob, EvaluationJob, Job, JobPage, JobRequest, JobState
from service.validation import problem_of_items, validation_items

REQUESTS: TypeAdapter[JobRequest] = TypeAdapter(JobRequest)
EVENTS = {"Accept": "text/event-stream"}
#: Tries to hand a job in: with an idempotency key another try costs nothing.
TRIES = 5
FIRST_PAUSE_SECONDS = 0.2
LONGEST_PAUSE_SECONDS = 2.0
#: A comment comes every 15 s, so that silence for longer means a lost connection.
SILENCE_SECONDS = 40.0


def submission(asked: Mapping[str, Any] | AttributionsJob | CoresetJob | EvaluationJob) -> Call[Job]:
    """Return the call of POST /v1/jobs; a mistake in the request is found before it leaves.

    Args:
        asked: The job.

    Returns:
        The call, without its idempotency key.

    Raises:
        ProblemError: If the service would refuse it.
    """
    fields = asked.model_dump(mode="json", exclude_unset=True) if isinstance(asked, BaseModel) else dict(asked)
    try:
        request = REQUESTS.validate_python(fields)
    except ValidationError as error:
        located = [{**item, "loc": ("body", *item["loc"])} for item in error.errors()]
        raise ProblemError(problem_of_items(validation_items(located, fields), "")) from error
    return Call("POST", "/v1/jobs", Job, encoded(request))


def job(id: str) -> Call[Job]:
    """Return the call of GET /v1/jobs/{job}."""
    return Call("GET", path(id), Job)


def cancellation(id: str) -> Call[Job]:
    """Return the call of DELETE /v1/jobs/{job}."""
    return Call("DELETE", path(id), Job)


def page(state: JobState | None, offset: int, limit: int) -> Call[JobPage]:
    """Return the call of GET /v1/jobs."""
    wanted = "" if state is None else f"&state={state}"
    return Call("GET", f"/v1/jobs?offset={offset}&limit={limit}{wanted}", JobPage)


def path(id: str, resource: str = "") -> str:
    """Return the path of a job or of something of it."""
    return f"/v1/jobs/{quote(id, safe='')}{resource}"


def pauses() -> list[float]:
    """Return how long to pause before each further try."""
    return [min(FIRST_PAUSE_SECONDS * 2**number, LONGEST_PAUSE_SECONDS) for number in range(TRIES - 1)]


class JobEventReader:
    """Reads the events of a job line by line.

    Attributes:
        last_id: Id of the last event; what to send as Last-Event-ID on another connection.
        over: Whether the job is.
    """

    def __init__(self) -> None:
        """Start before the first event."""
        self.last_id: str | None = None
        self.over = False
        self._data = ""

    def headers(self) -> dict[str, str]:
        """Return the headers of a connection that goes on from here."""
        return EVENTS if self.last_id is None else EVENTS | {"Last-Event-ID": self.last_id}

    def feed(self, line: str) -> Job | None:
        """Take one line, without its end.

        Args:
            line: The line.

        Returns:
            The job as it stands, when the line completes an event.
        """
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "data":
            self._data += value
        elif field == "id":
            self.last_id = value
        elif not line and self._data:
            data, self._data = self._data, ""
            job = Job.model_validate_json(data)
            self.over = job.state in OVER
            return job
        return None


def outcome(job: Job) -> Job:
    """Let a job that is over pass, unless it failed.

    Args:
        job: The job.

    Returns:
        The job.

    Raises:
        ProblemError: If it failed.
    """
    if job.problem is not None:
        raise ProblemError(job.problem)
    return job
