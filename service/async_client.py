"""The asynchronous Python client; every method is that of :class:`service.client.Client`."""

import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from types import TracebackType
from typing import Any, TypeVar, Unpack

import anyio
import httpx
from pydantic import BaseModel

from service import calls, job_calls
from service.async_client_jobs import AsyncJobHandle
from service.calls import (
    DEFAULT_URL,
    TIMEOUT_SECONDS,
    AttributionOptions,
    Call,
    EventReader,
    InformationOptions,
    QueryLike,
    ScoresOptions,
    StreamPart,
    authorization,
)
from service.schemas.answers import Answer, BatchResult, ScoresResponse, Sketch
from service.schemas.cards import Example, ExamplePage, IndexCard, Info
from service.schemas.groups import InformationResponse
from service.schemas.jobs import AttributionsJob, CoresetJob, EvaluationJob, JobPage, JobState
from service.schemas.questions import AttributionRequest, Split
from service.schemas.revisions import NewFiles, Reloaded

Model = TypeVar("Model", bound=BaseModel)


class AsyncClient:
    """Asks an attribution service without blocking; every method is that of :class:`service.client.Client`.

    Attributes:
        http: The httpx client underneath.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        timeout: float = TIMEOUT_SECONDS,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """Connect lazily to a service.

        Args:
            url: Its base URL.
            api_key: Sent as a bearer token.
            timeout: Seconds to wait for an answer.
            transport: Another way to reach it.
        """
        self.http = httpx.AsyncClient(
            base_url=url, headers=authorization(api_key), timeout=timeout, transport=transport
        )

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self.http.aclose()

    async def _make(self, call: Call[Model]) -> Model:
        response = await self.http.request(call.method, call.path, content=call.body, headers=call.headers())
        return call.read(response.status_code, response.content)

    async def ready(self) -> bool:
        """Return whether the service takes requests."""
        return (await self._make(calls.ready())).status == "ready"

    async def info(self) -> Info:
        """Return the service's limits, versions and statements."""
        return await self._make(calls.info())

    async def indexes(self) -> list[IndexCard]:
        """Return the cards of all indexes."""
        return (await self._make(calls.indexes())).indexes

    async def index(self, index: str) -> IndexCard:
        """Return the card of one index."""
        return await self._make(calls.index_card(index))

    async def reload(self, index: str, files: NewFiles = "new") -> Reloaded:
        """Return what :meth:`service.client.Client.reload` returns."""
        return await self._make(calls.reload(index, files))

    async def attribute(self, index: str, query: QueryLike, **options: Unpack[AttributionOptions]) -> Answer:
        """Return what :meth:`service.client.Client.attribute` returns."""
        return await self._make(calls.attribution(index, query, options))

    async def stream(
        self, index: str, query: QueryLike, **options: Unpack[AttributionOptions]
    ) -> AsyncIterator[StreamPart]:
        """Yield what :meth:`service.client.Client.stream` yields."""
        call = calls.attribution(index, query, options)
        headers = call.headers(stream=True)
        async with self.http.stream(call.method, call.path, content=call.body, headers=headers) as response:
            if response.status_code != 200:
                calls.check_status(response.status_code, await response.aread())
            reader = EventReader()
            async for line in response.aiter_lines():
                part = reader.feed(line)
                if part is not None:
                    yield part
            reader.check_finished()

    async def batch(self, index: str, requests: Sequence[Mapping[str, Any] | AttributionRequest]) -> list[BatchResult]:
        """Return what :meth:`service.client.Client.batch` returns."""
        return (await self._make(calls.batch(index, requests))).results

    async def scores(
        self, index: str, query: QueryLike, ids: Sequence[str], **options: Unpack[ScoresOptions]
    ) -> ScoresResponse:
        """Return what :meth:`service.client.Client.scores` returns."""
        return await self._make(calls.scores(index, query, ids, options))

    async def information(
        self,
        index: str,
        queries: QueryLike | Sequence[QueryLike],
        groups: str | Mapping[str, Sequence[str]],
        **options: Unpack[InformationOptions],
    ) -> InformationResponse:
        """Return what :meth:`service.client.Client.information` returns."""
        return await self._make(calls.information(index, queries, groups, options))

    async def sketches(
        self, index: str, queries: Sequence[QueryLike], target: Mapping[str, Any] | None = None
    ) -> list[Sketch]:
        """Return what :meth:`service.client.Client.sketches` returns."""
        return (await self._make(calls.sketches(index, queries, target))).sketches

    async def examples(
        self, index: str, split: Split = "train", offset: int = 0, limit: int = 20, ids: Sequence[str] = ()
    ) -> ExamplePage:
        """Return a page of stored examples, or of those with some ids, in the order of the ids."""
        return await self._make(calls.examples(index, split, offset, limit, ids))

    async def example(self, index: str, row: int, split: Split = "train") -> Example:
        """Return one stored example."""
        return await self._make(calls.example(index, row, split))

    async def content(self, index: str, row: int, split: Split = "train") -> tuple[str, bytes]:
        """Return the media type and the bytes of an example's stored preview."""
        response = await self.http.get(calls.content_path(index, row, split))
        calls.check_status(response.status_code, response.content)
        return response.headers["content-type"], response.content

    async def submit(
        self,
        request: Mapping[str, Any] | AttributionsJob | CoresetJob | EvaluationJob,
        idempotency_key: str | None = None,
    ) -> AsyncJobHandle:
        """Return what :meth:`service.client.Client.submit` returns, asynchronous.

        Raises:
            TransportError: If the service does not answer.
        """
        call, key = job_calls.submission(request), idempotency_key or uuid.uuid4().hex
        headers = call.headers() | {"Idempotency-Key": key}
        for pause in (*job_calls.pauses(), None):
            try:
                response = await self.http.request(call.method, call.path, content=call.body, headers=headers)
            except httpx.TransportError:
                if pause is None:
                    raise
                await anyio.sleep(pause)
            else:
                break
        return AsyncJobHandle(self.http, call.read(response.status_code, response.content))

    async def job(self, id: str) -> AsyncJobHandle:
        """Return a job that was handed in before."""
        return AsyncJobHandle(self.http, await self._make(job_calls.job(id)))

    async def jobs(self, state: JobState | None = None, offset: int = 0, limit: int = 20) -> JobPage:
        """Return a page of jobs, the newest first."""
        return await self._make(job_calls.page(state, offset, limit))
