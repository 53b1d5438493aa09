"""The Python client, synchronous and asynchronous, on httpx; requests and answers are the service's own schemas.

A request is validated before it leaves, so that most mistakes need no round trip. Either way a mistake raises
:class:`ProblemError`, with the same codes and pointers.
"""

import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, TypeVar, Unpack

import httpx
from pydantic import BaseModel

from service import calls, job_calls
from service.async_client import AsyncClient
from service.calls import (
    DEFAULT_URL,
    TIMEOUT_SECONDS,
    AttributionOptions,
    Call,
    EventReader,
    InformationOptions,
    NotOurServiceError,
    ProblemError,
    QueryLike,
    ScoresOptions,
    StreamPart,
    authorization,
)
from service.client_jobs import JobHandle
from service.schemas.answers import Answer, BatchResult, ScoresResponse, Sketch
from service.schemas.cards import Example, ExamplePage, IndexCard, Info
from service.schemas.groups import InformationResponse
from service.schemas.jobs import AttributionsJob, CoresetJob, EvaluationJob, JobPage, JobState
from service.schemas.questions import AttributionRequest, Split
from service.schemas.revisions import NewFiles, Reloaded

__all__ = ["AsyncClient", "Client", "NotOurServiceError", "ProblemError"]

Model = TypeVar("Model", bound=BaseModel)


class Client:
    """Asks an attribution service.

    Attributes:
        http: The httpx client underneath.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        timeout: float = TIMEOUT_SECONDS,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """Connect lazily to a service.

        Args:
            url: Its base URL.
            api_key: Sent as a bearer token.
            timeout: Seconds to wait for an answer.
            transport: Another way to reach it.
        """
        self.http = httpx.Client(base_url=url, headers=authorization(api_key), timeout=timeout, transport=transport)

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self.http.close()

    def _make(self, call: Call[Model]) -> Model:
        response = self.http.request(call.method, call.path, content=call.body, headers=call.headers())
        return call.read(response.status_code, response.content)

    def ready(self) -> bool:
        """Return whether the service takes requests."""
        return self._make(calls.ready()).status == "ready"

    def info(self) -> Info:
        """Return the service's limits, versions and statements."""
        return self._make(calls.info())

    def indexes(self) -> list[IndexCard]:
        """Return the cards of all indexes."""
        return self._make(calls.indexes()).indexes

    def index(self, index: str) -> IndexCard:
        """Return the card of one index."""
        return self._make(calls.index_card(index))

    def reload(self, index: str, files: NewFiles = "new") -> Reloaded:
        """Have the revision served that the index's directory holds now; an admin's call.

        Args:
            index: The index's name.
            files: Which files of it are read before it answers: those the old one does not share, or all.

        Returns:
            The revision that was served and the one that is.

        Raises:
            ProblemError: If the service refuses the new revision; the old one goes on.
        """
        return self._make(calls.reload(index, files))

    def attribute(self, index: str, query: QueryLike, **options: Unpack[AttributionOptions]) -> Answer:
        """Ask which training examples inform a prediction.

        Args:
            index: The index's name.
            query: A query as a mapping or a schema: ``{"type": "row", "split": "query", "row": 12}``.
            **options: The other fields of an attribution request.

        Returns:
            The ordered subset with its nats.

        Raises:
            ProblemError: If the service refuses.
        """
        return self._make(calls.attribution(index, query, options))

    def stream(self, index: str, query: QueryLike, **options: Unpack[AttributionOptions]) -> Iterator[StreamPart]:
        """Ask as :meth:`attribute` does and receive every hit as soon as it is chosen.

        Args:
            index: The index's name.
            query: The query.
            **options: The other fields of an attribution request.

        Yields:
            A ``StreamStart``, the ``Hit``s, and the answer without its hits.

        Raises:
            ProblemError: If the service refuses, at the start or on the way.
            NotOurServiceError: If the stream breaks off.
        """
        call = calls.attribution(index, query, options)
        headers = call.headers(stream=True)
        with self.http.stream(call.method, call.path, content=call.body, headers=headers) as response:
            if response.status_code != 200:
                calls.check_status(response.status_code, response.read())
            reader = EventReader()
            for line in response.iter_lines():
                part = reader.feed(line)
                if part is not None:
                    yield part
            reader.check_finished()

    def batch(self, index: str, requests: Sequence[Mapping[str, Any] | AttributionRequest]) -> list[BatchResult]:
        """Ask several attributions at once.

        Args:
            index: The index's name.
            requests: Attribution requests, not validated here: each gets its own status.

        Returns:
            A status and a body for each request, in order.
        """
        return self._make(calls.batch(index, requests)).results

    def scores(
        self, index: str, query: QueryLike, ids: Sequence[str], **options: Unpack[ScoresOptions]
    ) -> ScoresResponse:
        """Ask for the exact nats of a set of training examples.

        Args:
            index: The index's name.
            query: The query.
            ids: The set.
            **options: The other fields of a scores request.

        Returns:
            Nats of the set and of each member.

        Raises:
            ProblemError: If the service refuses.
        """
        return self._make(calls.scores(index, query, ids, options))

    def information(
        self,
        index: str,
        queries: QueryLike | Sequence[QueryLike],
        groups: str | Mapping[str, Sequence[str]],
        **options: Unpack[InformationOptions],
    ) -> InformationResponse:
        """Ask what groups of training examples tell, and what their withdrawal costs.

        Args:
            index: The index's name.
            queries: One query, or several over which nats are averaged.
            groups: The name of a metadata column, plain or as ``{"by": name}``, or ids by the group's name.
            **options: The other fields of the request.

        Returns:
            Nats of every group.

        Raises:
            ProblemError: If the service refuses.
        """
        return self._make(calls.information(index, queries, groups, options))

    def sketches(
        self, index: str, queries: Sequence[QueryLike], target: Mapping[str, Any] | None = None
    ) -> list[Sketch]:
        """Turn queries into sketches.

        Args:
            index: The index's name.
            queries: The queries.
            target: The class whose measurement is sketched.

        Returns:
            A sketch for each query, in order.

        Raises:
            ProblemError: If the service refuses.
        """
        return self._make(calls.sketches(index, queries, target)).sketches

    def examples(
        self, index: str, split: Split = "train", offset: int = 0, limit: int = 20, ids: Sequence[str] = ()
    ) -> ExamplePage:
        """Return a page of stored examples, or of those with some ids, in the order of the ids."""
        return self._make(calls.examples(index, split, offset, limit, ids))

    def example(self, index: str, row: int, split: Split = "train") -> Example:
        """Return one stored example."""
        return self._make(calls.example(index, row, split))

    def content(self, index: str, row: int, split: Split = "train") -> tuple[str, bytes]:
        """Return the media type and the bytes of an example's stored preview."""
        response = self.http.get(calls.content_path(index, row, split))
        calls.check_status(response.status_code, response.content)
        return response.headers["content-type"], response.content

    def submit(
        self,
        request: Mapping[str, Any] | AttributionsJob | CoresetJob | EvaluationJob,
        idempotency_key: str | None = None,
    ) -> JobHandle:
        """Hand in long work. A request whose answer is lost is sent again; the key keeps the job from being doubled.

        Args:
            request: A job as a mapping or a schema: ``{"type": "coreset", "index": "digits", "budget": 100}``.
            idempotency_key: A key of your own, if the job may be handed in by another process again.

        Returns:
            The job, to wait for.

        Raises:
            ProblemError: If the service refuses.
            TransportError: If the service does not answer.
        """
        call, key = job_calls.submission(request), idempotency_key or uuid.uuid4().hex
        headers = call.headers() | {"Idempotency-Key": key}
        for pause in (*job_calls.pauses(), None):
            try:
                response = self.http.request(call.method, call.path, content=call.body, headers=headers)
            except httpx.TransportError:
                if pause is None:
                    raise
                time.sleep(pause)
            else:
                break
        return JobHandle(self.http, call.read(response.status_code, response.content))

    def job(self, id: str) -> JobHandle:
        """Return a job that was handed in before."""
        return JobHandle(self.http, self._make(job_calls.job(id)))

    def jobs(self, state: JobState | None = None, offset: int = 0, limit: int = 20) -> JobPage:
        """Return a page of jobs, the newest first."""
        return self._make(job_calls.page(state, offset, limit))
