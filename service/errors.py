"""What the service itself refuses, beyond what the attributor, the recipe and the store refuse.

ServiceError
├ MalformedRequestError      400  bytes that are no HTTP
├ UnauthorizedError          401  no key, or one that is not in the file
├ ForbiddenError             403  a key that may not do this
├ UnknownIndexError          404  no index of this name
├ UnknownExampleError        404  no such row in a path
├ UnknownExampleIdError      404  no example has the id in a parameter
├ ContentNotFoundError       404  the row has no stored preview
├ UnknownJobError            404  no job of this id, or one that is forgotten
├ NotAcceptableError         406  a form of answer that there is none of
├ RequestTooSlowError        408  a head or a body that does not arrive in time
├ JobNotOverError            409  the items of a job that still waits or runs
├ RevisionRefusedError       409  a new revision that cannot be served; the old one goes on
├ BodyTooLargeError          413
├ TooManyValuesError         413  a body that would take much memory when read
├ UnsupportedMediaTypeError  415  a body that is not JSON
├ UnknownHostError           421  a request for a host that the settings do not name
├ LimitExceededError         422  more than a setting allows
├ ExampleUnsupportedError    422  a query by example where no recipe is loaded
├ IdempotencyKeyReusedError  422  an idempotency key that belongs to another request
├ InvalidExampleError        422  content that is no example of the recipe
├ QueueFullError             429  more requests wait than the queue holds
├ JobQueueFullError          429  more jobs wait than may
├ HeadersTooLargeError       431
├ JobFailedError             500  a job that ended the process each time it was begun
├ JobStoreError              503  jobs cannot be stored now, or the service has no place for them
├ DamagedIndexError          503  a file that the answer needs is not as published
├ DeadlineExceededError      503
├ TooManyConnectionsError    503  more clients are connected than may
└ NotReadyError              503  indexes are still being opened

SeveralMistakesError         422  more than one of these, or of the attributor's, that do not depend on each other
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NoReturn

from indexer.attributor.errors import QuestionError

#: The longest request line and headers that are read.
MAX_HEAD_BYTES = 16 * 1024


class ServiceError(Exception):
    """A refusal with its HTTP status, a stable code, and where it applies what was wrong and what is allowed.

    Attributes:
        status: HTTP status.
        code: Stable name of the problem.
        title: The problem's kind in words, the same for every occurrence.
        pointer: JSON pointer into the request body, or None.
        parameter: Name of the path or query parameter at fault, or None.
        allowed: Values that would have been accepted, or None.
        headers: Headers the response must carry.
        retry_after: Seconds after which the same request may be answered, for every 429 and 503; None for others.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    title: ClassVar[str] = "Internal error"
    retry_after: ClassVar[int | None] = None

    def __init__(
        self,
        detail: str,
        *,
        pointer: str | None = None,
        parameter: str | None = None,
        allowed: Any = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.pointer = pointer
        self.parameter = parameter
        self.allowed = allowed
        self.headers = self.usual_headers() | dict(headers or {})

    @classmethod
    def usual_headers(cls) -> dict[str, str]:
        """Return what every response of this kind carries."""
        return {} if cls.retry_after is None else {"Retry-After": str(cls.retry_after)}


class UnauthorizedError(ServiceError):
    """The request carries no API key, or one that is not known."""

    status, code, title = 401, "unauthorized", "An API key is required"

    def __init__(self) -> None:
        super().__init__(
            "this service answers requests with a known API key only; send Authorization: Bearer KEY",
            headers={"WWW-Authenticate": "Bearer"},
        )


class ForbiddenError(ServiceError, PermissionError):
    """The request's API key is known and may not do this."""

    status, code, title = 403, "forbidden", "The API key may not do this"


class UnknownIndexError(ServiceError, LookupError):
    """No index of this name is served."""

    status, code, title = 404, "unknown_index", "Unknown index"

    def __init__(self, name: str, served: Sequence[str]) -> None:
        super().__init__(
            f"no index is called {name!r}" + (f"; this service has {', '.join(map(repr, served))}" if served else ""),
            parameter="index",
            allowed=list(served),
        )


class UnknownExampleError(ServiceError, LookupError):
    """A path names a row that the split does not have."""

    status, code, title = 404, "unknown_row", "Unknown row"


class UnknownExampleIdError(ServiceError, LookupError):
    """A query parameter names an id that no example of the split has."""

    status, code, title = 404, "unknown_id", "Unknown id"


class ContentNotFoundError(ServiceError, LookupError):
    """The example exists and the index holds no preview of it."""

    status, code, title = 404, "no_content", "No stored content"


class BodyTooLargeError(ServiceError):
    """The request body is longer than the setting allows."""

    status, code, title = 413, "body_too_large", "Request body too large"

    def __init__(self, max_body_bytes: int) -> None:
        super().__init__(
            f"the body is longer than {max_body_bytes} bytes; ask for less at once, or raise max_body_bytes",
            allowed={"max_body_bytes": max_body_bytes},
            headers={"Connection": "close"},
        )


class TooManyValuesError(ServiceError):
    """The request body holds more than may be read: parsed, it would take many times its length of memory."""

    status, code, title = 413, "too_many_values", "Too many values in the body"

    def __init__(self, most: int) -> None:
        super().__init__(
            f"the body has more than {most} commas and brackets; ask for less at once, or raise max_body_values",
            allowed={"max_body_values": most},
            headers={"Connection": "close"},
        )


class MalformedRequestError(ServiceError):
    """What the client sent is no request."""

    status, code, title = 400, "malformed_request", "Not a request"


class RequestTooSlowError(ServiceError):
    """The client did not send its request in the time that it had."""

    status, code, title = 408, "request_too_slow", "Request too slow"

    def __init__(self, part: str, seconds: float) -> None:
        needed = "the headers must be here" if part == "head" else "each further 64 KiB of the body must be here"
        super().__init__(
            f"{needed} within {seconds:g} s (client_seconds); send it again, faster", headers={"Connection": "close"}
        )


class HeadersTooLargeError(ServiceError):
    """The request line and the headers are longer than the server reads."""

    status, code, title = 431, "headers_too_large", "Headers too large"

    def __init__(self) -> None:
        super().__init__(f"the request line and the headers may have {MAX_HEAD_BYTES} bytes together")


class TooManyConnectionsError(ServiceError):
    """As many clients are connected as may."""

    status, code, title = 503, "too_many_connections", "Too many connections"

    def __init__(self, most: int) -> None:
        super().__init__(
            f"{most} connections are open (max_connections); try again in a second", headers={"Retry-After": "1"}
        )


class UnsupportedMediaTypeError(ServiceError):
    """The body is said to be something other than JSON."""

    status, code, title = 415, "unsupported_media_type", "Unsupported media type"


class UnknownHostError(ServiceError):
    """The request is for a host that this service does not answer for."""

    status, code, title = 421, "unknown_host", "Not for this host"

    def __init__(self, host: str | None) -> None:
        asked = "its Host header names none, or several" if host is None else f"it is for {host[:100]!r}"
        super().__init__(
            "this service answers requests for localhost, for IP addresses and for the hosts of its setting "
            f"allowed_hosts; {asked}",
            parameter="Host",
        )


class LimitExceededError(ServiceError, ValueError):
    """A request asks for more than a setting of this service allows."""

    status, code, title = 422, "limit_exceeded", "Limit exceeded"


class ExampleUnsupportedError(ServiceError, ValueError):
    """Examples cannot be sketched: no recipe, or no weights."""

    status, code, title = 422, "example_unsupported", "This index takes no queries by example"


class InvalidExampleError(ServiceError, ValueError):
    """The content of a query by example is not an example of the index's recipe."""

    status, code, title = 422, "invalid_example", "The content is not an example"


class QueueFullError(ServiceError):
    """As many requests wait as the queue holds."""

    status, code, title = 429, "queue_full", "Too many requests"
    retry_after = 1


class DamagedIndexError(ServiceError):
    """A file that the answer needs is not as published; whatever needs other files only is still answered."""

    status, code, title = 503, "damaged_index", "A file of the index is damaged"
    retry_after = 60  # somebody has to restore it


class DeadlineExceededError(ServiceError, TimeoutError):
    """The request took longer than the deadline."""

    status, code, title = 503, "deadline_exceeded", "Deadline exceeded"
    retry_after = 1


class NotReadyError(ServiceError):
    """The service has not opened its indexes yet, or is shutting down."""

    status, code, title = 503, "not_ready", "Not ready"
    retry_after = 1


class UnknownJobError(ServiceError, LookupError):
    """There is no job of this id."""

    status, code, title = 404, "unknown_job", "Unknown job"

    def __init__(self, id: str) -> None:
        super().__init__(
            f"there is no job {id[:100]!r}; jobs are forgotten some time after they are over", parameter="job"
        )


class NotAcceptableError(ServiceError):
    """The client accepts no form of answer that there is."""

    status, code, title = 406, "not_acceptable", "No such form of answer"


class JobNotOverError(ServiceError):
    """The job still waits or runs."""

    status, code, title = 409, "job_not_over", "The job is not over"


class RevisionRefusedError(ServiceError):
    """What the index's directory holds now cannot be served; the revision that was served goes on answering."""

    status, code, title = 409, "revision_refused", "The new revision is refused"

    def __init__(self, reason: str, revision: str) -> None:
        super().__init__(
            f"{reason.rstrip('.')}. Revision {revision} goes on answering; mend what is published (`indexer verify` "
            "names all that is damaged) and reload again"
        )


class IdempotencyKeyReusedError(ServiceError, ValueError):
    """The idempotency key came with another request before."""

    status, code, title = 422, "idempotency_key_reused", "The idempotency key belongs to another request"

    def __init__(self, id: str) -> None:
        super().__init__(
            f"this Idempotency-Key came with another request, which is job {id}; send a new key with a new request",
            parameter="Idempotency-Key",
        )


class JobQueueFullError(ServiceError):
    """As many jobs wait as may."""

    status, code, title = 429, "job_queue_full", "Too many jobs"
    retry_after = 10

    def __init__(self, waiting: int) -> None:
        super().__init__(f"{waiting} jobs wait; hand it in again later")


class JobFailedError(ServiceError):
    """The job was begun several times and the process ended each time."""

    status, code, title = 500, "job_failed", "The job failed"


class JobStoreError(ServiceError, OSError):
    """Jobs cannot be stored or read."""

    status, code, title = 503, "jobs_unavailable", "Jobs are not available"
    retry_after = 10  # a full disk; a service without a place for jobs says so


class SeveralMistakesError(ValueError):
    """A request with several mistakes that were found independently of one another.

    Attributes:
        mistakes: At least two refusals, each with its code, place and what is allowed.
    """

    def __init__(self, mistakes: Sequence[QuestionError | ServiceError]) -> None:
        super().__init__("; ".join(str(mistake) for mistake in mistakes))
        self.mistakes = tuple(mistakes)


def refuse(mistakes: Sequence[QuestionError | ServiceError], cause: Exception | None = None) -> NoReturn:
    """Raise everything that is wrong with a request as one exception.

    Args:
        mistakes: At least one refusal; an only one is raised itself.
        cause: What was raised first.

    Raises:
        SeveralMistakesError: If there are several.
    """
    if len(mistakes) > 1:
        raise SeveralMistakesError(mistakes) from cause
    raise mistakes[0] from cause
