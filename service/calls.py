"""What each endpoint takes and gives back, once, for the synchronous and the asynchronous client."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypedDict, TypeVar
from urllib.parse import quote, urlencode

from pydantic import BaseModel, ValidationError

from service.schemas.answers import (
    Answer,
    AnswerFacts,
    BatchResponse,
    Hit,
    ScoresResponse,
    SketchesResponse,
    StreamStart,
)
from service.schemas.cards import Example, ExamplePage, Health, IndexCard, IndexList, Info
from service.schemas.groups import InformationRequest, InformationResponse
from service.schemas.problem import Problem
from service.schemas.questions import (
    AttributionRequest,
    Baseline,
    BatchRequest,
    Condition,
    Criterion,
    Method,
    Query,
    ScoresRequest,
    SketchesRequest,
    Split,
    Strategy,
)
from service.schemas.revisions import NewFiles, Reloaded, ReloadRequest
from service.validation import problem_of_items, validation_items

Model = TypeVar("Model", bound=BaseModel)
QueryLike = Mapping[str, Any] | Query
StreamPart = StreamStart | Hit | AnswerFacts
DEFAULT_URL = "http://127.0.0.1:8000"
TIMEOUT_SECONDS = 120.0


class QuestionOptions(TypedDict, total=False):
    """What attributions and scores both take besides the query."""

    target: Mapping[str, int | Literal["predicted", "true"]] | None
    noise_variance: float | None
    relative_noise: float | None
    condition: Condition


class AttributionOptions(QuestionOptions, total=False):
    """The optional fields of an attribution request."""

    method: Method
    budget: int
    include_metadata: bool
    filter: Mapping[str, Any] | None
    clip_budget: bool
    strategy: Strategy
    rescore: Sequence[Criterion]
    available: bool | None
    min_step_nats: float | None
    information_fraction: float | None
    seed: int


class ScoresOptions(QuestionOptions, total=False):
    """The optional fields of a scores request."""

    criteria: Sequence[Criterion]
    methods: Sequence[Baseline]
    exclude_ids: Sequence[str] | None


class InformationOptions(TypedDict, total=False):
    """The optional fields of a question about groups."""

    target: Mapping[str, int | Literal["predicted", "true"]] | None
    noise_variance: float | None
    relative_noise: float | None
    criteria: Sequence[Criterion]
    exclude_ids: Sequence[str] | None
    removal_order: int


def authorization(api_key: str | None) -> dict[str, str]:
    """Return the headers that an API key needs."""
    return {} if api_key is None else {"Authorization": f"Bearer {api_key}"}


class ProblemError(Exception):
    """The service answered with a problem, or the client found one before the request left.

    Attributes:
        problem: What it said; its request_id is empty where the request never left.
    """

    def __init__(self, problem: Problem) -> None:
        super().__init__(f"{problem.status} {problem.code}: {_told(problem)}")
        self.problem = problem


def _told(problem: Problem) -> str:
    """Return each sentence of a problem once, with its place and what is allowed there."""
    lines = [
        (f"{place}: " if (place := item.parameter or item.pointer) else "")
        + item.detail
        + (f" (allowed: {item.allowed})" if item.allowed is not None else "")
        for item in problem.errors
    ]
    if len(lines) > 1:
        return f"{len(lines)} mistakes\n  " + "\n  ".join(lines)
    return lines[0] if lines else problem.detail


class NotOurServiceError(Exception):
    """Something answered that is not this service: no JSON of the expected shape."""


@dataclass(frozen=True)
class Call(Generic[Model]):
    """One request to make, and the model its answer fits.

    Attributes:
        method: HTTP method.
        path: Path with its query string.
        answer: The model of a successful answer.
        body: JSON bytes to send, or None.
    """

    method: str
    path: str
    answer: type[Model]
    body: bytes | None = None

    def headers(self, *, stream: bool = False) -> dict[str, str]:
        """Return the headers this call needs."""
        accept = {"Accept": "text/event-stream" if stream else "application/json"}
        return accept if self.body is None else accept | {"Content-Type": "application/json"}

    def read(self, status: int, content: bytes) -> Model:
        """Read an answer.

        Args:
            status: HTTP status.
            content: The body.

        Returns:
            The answer.

        Raises:
            ProblemError: If the service refused.
            NotOurServiceError: If the body is no answer of this service.
        """
        check_status(status, content)
        try:
            return self.answer.model_validate_json(content)
        except ValueError as error:
            raise NotOurServiceError(f"{self.method} {self.path}: the answer is no {self.answer.__name__}") from error


def check_status(status: int, content: bytes) -> None:
    """Raise the problem that an answer holds.

    Args:
        status: HTTP status.
        content: The body.

    Raises:
        ProblemError: If the service refused.
        NotOurServiceError: If the refusal is not one of this service.
    """
    if 200 <= status < 300:
        return
    try:
        problem = Problem.model_validate_json(content)
    except ValueError as error:
        raise NotOurServiceError(f"status {status} without a problem: {content[:200]!r}") from error
    raise ProblemError(problem)


def checked(model: type[Model], fields: Mapping[str, Any]) -> Model:
    """Validate a request before it leaves, by the service's own schema.

    Args:
        model: The request's schema.
        fields: The request.

    Returns:
        The request.

    Raises:
        ProblemError: If the service would refuse it.
    """
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        located = [{**item, "loc": ("body", *item["loc"])} for item in error.errors()]
        raise ProblemError(problem_of_items(validation_items(located, fields), "")) from error


def index_path(index: str, resource: str = "") -> str:
    """Return the path of an index or of something in it; the name is percent-encoded."""
    return f"/v1/indexes/{quote(index, safe='')}{resource}"


def encoded(model: BaseModel) -> bytes:
    """Return a request as JSON, without the fields that were not given."""
    return model.model_dump_json(exclude_unset=True).encode()


def info() -> Call[Info]:
    """Return the call of GET /v1/info."""
    return Call("GET", "/v1/info", Info)


def ready() -> Call[Health]:
    """Return the call of GET /readyz."""
    return Call("GET", "/readyz", Health)


def indexes() -> Call[IndexList]:
    """Return the call of GET /v1/indexes."""
    return Call("GET", "/v1/indexes", IndexList)


def index_card(index: str) -> Call[IndexCard]:
    """Return the call of GET /v1/indexes/{index}."""
    return Call("GET", index_path(index), IndexCard)


def reload(index: str, files: NewFiles) -> Call[Reloaded]:
    """Return the call of POST /v1/indexes/{index}/reload."""
    return Call("POST", index_path(index, "/reload"), Reloaded, encoded(checked(ReloadRequest, {"files": files})))


def attribution(index: str, query: QueryLike, options: Mapping[str, Any]) -> Call[Answer]:
    """Return the call of POST …/attributions."""
    asked = checked(AttributionRequest, {"query": query, **options})
    return Call("POST", index_path(index, "/attributions"), Answer, encoded(asked))


def batch(index: str, requests: Sequence[Mapping[str, Any] | AttributionRequest]) -> Call[BatchResponse]:
    """Return the call of POST …/attributions/batch."""
    items = [
        item.model_dump(mode="json", exclude_unset=True) if isinstance(item, AttributionRequest) else dict(item)
        for item in requests
    ]
    asked = checked(BatchRequest, {"requests": items})
    return Call("POST", index_path(index, "/attributions/batch"), BatchResponse, encoded(asked))


def scores(index: str, query: QueryLike, ids: Sequence[str], options: Mapping[str, Any]) -> Call[ScoresResponse]:
    """Return the call of POST …/scores."""
    asked = checked(ScoresRequest, {"query": query, "ids": list(ids), **options})
    return Call("POST", index_path(index, "/scores"), ScoresResponse, encoded(asked))


def information(
    index: str,
    queries: QueryLike | Sequence[QueryLike],
    groups: str | Mapping[str, Sequence[str]],
    options: Mapping[str, Any],
) -> Call[InformationResponse]:
    """Return the call of POST …/information."""
    one = isinstance(queries, Mapping | BaseModel)
    fields = {
        "query" if one else "queries": queries if one else list(queries),
        "groups": {"by": groups} if isinstance(groups, str) else _lists(groups),
        **options,
    }
    asked = checked(InformationRequest, fields)
    return Call("POST", index_path(index, "/information"), InformationResponse, encoded(asked))


def _lists(groups: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    # A string is a sequence of strings, and not of ids: {"by": column} goes as it is, and anything else is refused.
    return {name: ids if isinstance(ids, str) else list(ids) for name, ids in groups.items()}


def sketches(index: str, queries: Sequence[QueryLike], target: Mapping[str, Any] | None) -> Call[SketchesResponse]:
    """Return the call of POST …/sketches."""
    fields: dict[str, Any] = {"queries": list(queries)} | ({} if target is None else {"target": target})
    asked = checked(SketchesRequest, fields)
    return Call("POST", index_path(index, "/sketches"), SketchesResponse, encoded(asked))


def examples(index: str, split: Split, offset: int, limit: int, ids: Sequence[str]) -> Call[ExamplePage]:
    """Return the call of GET …/examples."""
    asked = urlencode({"split": split, "offset": offset, "limit": limit, "id": list(ids)}, doseq=True)
    return Call("GET", index_path(index, f"/examples?{asked}"), ExamplePage)


def example(index: str, row: int, split: Split) -> Call[Example]:
    """Return the call of GET …/examples/{row}."""
    return Call("GET", index_path(index, f"/examples/{row}?split={split}"), Example)


def content_path(index: str, row: int, split: Split) -> str:
    """Return the path of GET …/examples/{row}/content."""
    return index_path(index, f"/examples/{row}/content?split={split}")


class EventReader:
    """Reads server-sent events line by line and gives the parts of an answer."""

    def __init__(self) -> None:
        """Start before the first event."""
        self._event = ""
        self._data: list[str] = []
        self.finished = False

    def feed(self, line: str) -> StreamPart | None:
        """Take one line of the stream, without its end.

        Args:
            line: The line.

        Returns:
            A part of the answer when the line completes one.

        Raises:
            ProblemError: If the event is a problem.
        """
        field, _, value = line.partition(":")
        if field == "event":
            self._event = value.removeprefix(" ")
        elif field == "data":
            self._data.append(value.removeprefix(" "))
        elif not line and self._data:
            data, self._data = "\n".join(self._data), []
            match self._event:
                case "start":
                    return StreamStart.model_validate_json(data)
                case "step":
                    return Hit.model_validate_json(data)
                case "done":
                    self.finished = True
                    return AnswerFacts.model_validate_json(data)
                case "problem":
                    raise ProblemError(Problem.model_validate_json(data))
        return None

    def check_finished(self) -> None:
        """Refuse a stream that ended before its answer did.

        Raises:
            NotOurServiceError: If no ``done`` event came.
        """
        if not self.finished:
            raise NotOurServiceError("the stream ended before its done event: the connection or the service broke off")
