"""An attribution as server-sent events: each hit leaves as soon as it is chosen.

The question is judged before the first byte, so a refusal is an ordinary problem response; what fails later is a
``problem`` event. The stream keeps its worker until it ends or the client goes away.
"""

import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack

from fastapi import Request
from fastapi.sse import EventSourceResponse, format_sse_event
from pydantic import BaseModel
from starlette.types import Receive, Scope, Send

from service.presence import while_present
from service.problems import problem_of
from service.schemas.answers import Hit, StreamStart
from service.schemas.questions import AttributionRequest
from service.state import State
from service.workplace import Deadline


class EventStream(EventSourceResponse):
    """A stream that gives its worker back however it ends, even before its first byte."""

    def __init__(self, content: AsyncIterator[bytes], held: AsyncExitStack) -> None:
        """Tie a stream of events to what it holds.

        Args:
            content: Encoded events.
            held: Closed when the response is over.
        """
        super().__init__(content, headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream."""
        async with self._held:
            await super().__call__(scope, receive, send)


def wants_stream(request: Request) -> bool:
    """Return whether the client asked for server-sent events."""
    accepted = request.headers.get("accept", "").lower().split(",")
    return any(item.partition(";")[0].strip() == "text/event-stream" for item in accepted)


def encode(event: str, data: BaseModel) -> bytes:
    """Return one event with its data as JSON on one line."""
    return format_sse_event(event=event, data_str=data.model_dump_json())


async def open_stream(
    state: State, request: Request, index: str, asked: AttributionRequest, deadline: Deadline
) -> EventStream:
    """Judge the question, take a worker, and start to stream its answer.

    Args:
        state: The service.
        request: The HTTP request, watched for the client going away.
        index: The index asked.
        asked: The question.
        deadline: When the stream must be over.

    Returns:
        The response.
    """
    held = AsyncExitStack()

    async def judge() -> Iterator[BaseModel]:
        await held.enter_async_context(state.workplace.desk(deadline))
        return await state.workplace.at_desk(lambda: state.stream(index, asked, deadline))

    try:
        parts = await while_present(request, deadline, judge)
    except BaseException:
        await held.aclose()
        raise
    ended = threading.Event()

    def count_if_left() -> None:
        if not ended.is_set():
            state.metrics.cancelled.labels(request.scope["route"].path).inc()

    held.callback(count_if_left)
    return EventStream(events(state, request, parts, ended), held)


async def events(
    state: State, request: Request, parts: Iterator[BaseModel], ended: threading.Event
) -> AsyncIterator[bytes]:
    """Encode an answer part by part as a worker makes them.

    Args:
        state: The service.
        request: The HTTP request.
        parts: The start, the hits, the answer without hits.
        ended: Set when the answer is made, or a problem in its place.

    Yields:
        Encoded events.
    """
    while not await request.is_disconnected():
        try:
            part = await state.workplace.at_desk(lambda: next(parts, None))
        except Exception as error:
            ended.set()
            problem = problem_of(error, request.scope["request_id"]).problem
            state.metrics.refusals.labels(problem.code).inc()
            yield encode("problem", problem)
            return
        if part is None:
            return
        if not isinstance(part, StreamStart | Hit):
            ended.set()
        yield encode("start" if isinstance(part, StreamStart) else "step" if isinstance(part, Hit) else "done", part)
