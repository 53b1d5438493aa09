"""The outermost layer around every request: its id, its host, its key, the size of its body, its line in the log.

Plain ASGI, so that a body is counted as it streams in and a stream's response is never buffered.
"""

import re
import time
import uuid
from typing import Any

import anyio
import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.authentication import CALLER, ApiKeys
from service.caller import ANYONE, STRANGER, Caller
from service.errors import (
    BodyTooLargeError,
    NotReadyError,
    RequestTooSlowError,
    ServiceError,
    TooManyValuesError,
    UnauthorizedError,
)
from service.hosts import AllowedHosts
from service.metrics import QUESTIONS
from service.problems import PROBLEM_CODE, Outcome, problem_of, problem_response
from service.request_clock import REQUEST_CLOCK, RequestClock
from service.schemas.lengths import limited
from service.state import State
from service.workplace import ClientGoneError

REQUEST_ID = "X-Request-ID"
# What a browser may make of an answer: nothing is loaded, framed, or taken for another type than it says. A response
# that brings a policy of its own, the documentation page, keeps it.
BROWSER_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}
CLIENT_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
# Health checks come from load balancers, the documentation holds no data.
OPEN_PATHS = frozenset({"/livez", "/readyz", "/openapi.json"})
# A probe may call the service by any name; what it learns is no secret.
PROBE_PATHS = frozenset({"/livez", "/readyz"})
# What runs the service asks until its end.
OPERATIONS_PATHS = frozenset({"/livez", "/readyz", "/metrics"})
# What the log and the metrics say of an answer that nobody waited for; as nginx does. It is never sent.
CLIENT_GONE = 499
# How the paths of questions end.
TAKES_A_WORKER = tuple(f"/{question}" for question in QUESTIONS)
METHODS = frozenset({"GET", "POST", "HEAD", "OPTIONS", "PUT", "PATCH", "DELETE"})

# What of a body must arrive in the time that a client has.
STRETCH_BYTES = 1 << 16

log = structlog.get_logger("service")


class RefusalSignal(Exception):
    """Raised out of ``receive`` when the body is too large, too rich or too slow; never leaves :class:`Gate`."""


class Gate:
    """Lets a request in: gives it an id, asks for its key, limits its body, logs and counts its answer.

    Every refusal here is a problem like all others. A body that says it is too long is refused unread; one that does
    not say is refused at the first byte beyond the limit, and one that comes too slowly when its time is over. While
    the service drains, nothing more is let in.
    """

    def __init__(self, app: ASGIApp, *, keys: ApiKeys | None, hosts: AllowedHosts, state: State) -> None:
        """Stand before an app.

        Args:
            app: The app.
            keys: The known API keys, None to ask for none.
            hosts: The hosts that requests may be for.
            state: The service: where answers are counted, and whether it drains.
        """
        self._app = app
        self._max_body_bytes = state.settings.max_body_bytes
        self._max_body_values = state.settings.max_body_values
        self._limits = state.settings.limits()
        self._patience = state.settings.client_seconds
        self._keys = keys
        self._hosts = hosts
        self._state = state
        self._metrics = state.metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection; anything but HTTP passes through."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get(REQUEST_ID, "")
        request_id = given if CLIENT_REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        scope["request_id"] = request_id
        clock = RequestClock(scope["method"] if scope["method"] in METHODS else "other")
        REQUEST_CLOCK.set(clock)
        begun = time.perf_counter()
        status = 0
        received = values = 0
        whole = False
        stretch, due = STRETCH_BYTES, time.monotonic() + self._patience
        refusal: ServiceError | None = None

        async def receive_counted() -> Message:
            nonlocal received, values, whole, stretch, due, refusal
            if whole:
                return await receive()
            with anyio.move_on_after(due - time.monotonic()) as scope:
                message = await receive()
            if scope.cancelled_caught:
                self._metrics.cut.labels("body").inc()
                if status:  # the answer is on its way
                    return {"type": "http.disconnect"}
                refusal = RequestTooSlowError("body", self._patience)
                raise RefusalSignal
            if message["type"] == "http.request":
                body = message.get("body", b"")
                received += len(body)
                values += body.count(b",") + body.count(b"[") + body.count(b"{")
                whole = not message.get("more_body", False)
                if received > self._max_body_bytes:
                    refusal = BodyTooLargeError(self._max_body_bytes)
                    raise RefusalSignal
                if values > self._max_body_values:
                    refusal = TooManyValuesError(self._max_body_values)
                    raise RefusalSignal
                if received >= stretch:
                    stretch, due = received + STRETCH_BYTES, time.monotonic() + self._patience
            return message

        async def send_labelled(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                clock.written_at = time.perf_counter()
                self._state.tracing.answered(status)
                answer_headers = MutableHeaders(scope=message)
                answer_headers[REQUEST_ID] = request_id
                for name, value in BROWSER_HEADERS.items():
                    answer_headers.setdefault(name, value)
            await send(message)

        async def send_unless_refused(message: Message) -> None:
            # Whatever the app makes of the signal, a 400 for one, the answer is the refusal.
            if refusal is None or status:
                await send_labelled(message)

        with (
            self._state.tracing.request(scope, clock) as told,
            structlog.contextvars.bound_contextvars(request_id=request_id, **told),
            limited(self._limits),
        ):
            try:
                scope[CALLER] = self._check(scope, headers)
                if scope["path"] in OPERATIONS_PATHS:
                    await self._app(scope, receive_counted, send_unless_refused)
                else:
                    self._shed(scope)
                    await self._let_in(scope, receive_counted, send_unless_refused)
            except ClientGoneError:
                status = CLIENT_GONE
                self._metrics.cancelled.labels(_route_of(scope)).inc()
            except Exception as error:
                if status:
                    raise
                await self._refuse(problem_of(refusal or error, request_id), scope, receive, send_labelled)
            else:
                if refusal is not None and not status:  # the app answered something else, and that was held back
                    await self._refuse(problem_of(refusal, request_id), scope, receive, send_labelled)
            finally:
                self._record(scope, status, time.perf_counter() - begun, clock)

    @staticmethod
    async def _refuse(outcome: Outcome, scope: Scope, receive: Receive, send: Send) -> None:
        scope[PROBLEM_CODE] = outcome.problem.code
        await problem_response(outcome)(scope, receive, send)

    async def _let_in(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._state.draining:
            # The connection closes behind the refusal; a body that still arrives then would reset it, and the client
            # would never read why.
            while (message := await receive())["type"] == "http.request" and message.get("more_body"):
                pass
            raise NotReadyError("the service is stopping; send the request again, to the next process")
        self._state.in_flight += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._state.in_flight -= 1

    def _shed(self, scope: Scope) -> None:
        # Refused before its body is read: while the service is overloaded, refusing must cost it little.
        # Only questions: cards and reloads need no worker, and examples, which do, have no body to read in vain.
        if scope["method"] == "POST" and scope["path"].endswith(TAKES_A_WORKER) and not self._state.draining:
            self._state.workplace.check_room()

    def _check(self, scope: Scope, headers: Headers) -> Caller:
        path = scope["path"]
        if path not in PROBE_PATHS:
            server = scope.get("server")
            self._hosts.check(headers.getlist("host"), server[0] if server else None)
        is_open = path in OPEN_PATHS or path == "/docs" or path.startswith("/docs/")
        caller = ANYONE if self._keys is None else self._keys.caller(headers.get("authorization"))
        if caller is None and not is_open:
            raise UnauthorizedError
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > self._max_body_bytes:
            raise BodyTooLargeError(self._max_body_bytes)
        return caller or STRANGER

    def _record(self, scope: Scope, status: int, seconds: float, clock: RequestClock) -> None:
        route = _route_of(scope)
        self._metrics.requests.labels(clock.method, route, str(status)).inc()
        self._metrics.request_seconds.labels(route).observe(seconds)
        if clock.queue_seconds is not None:
            self._metrics.stage_seconds.labels("queue").observe(clock.queue_seconds)
        if clock.computed_at is not None and clock.written_at is not None:
            self._metrics.stage_seconds.labels("encode").observe(clock.written_at - clock.computed_at)
        if PROBLEM_CODE in scope:
            self._metrics.refusals.labels(scope[PROBLEM_CODE]).inc()
        level = log.debug if route in OPEN_PATHS else log.info
        level(
            "request",
            method=clock.method,
            route=route,
            status=status,
            seconds=round(seconds, 6),
            **self._facts(scope, clock),
        )

    def _facts(self, scope: Scope, clock: RequestClock) -> dict[str, Any]:
        # Nothing that a client can choose freely: names of served indexes, codes of our own, numbers.
        facts: dict[str, Any] = {}
        if (index := scope.get("path_params", {}).get("index")) in self._state.engine.names:
            facts["index"] = index
        if CALLER in scope:
            facts["key"] = scope[CALLER].name
        if PROBLEM_CODE in scope:
            facts["code"] = scope[PROBLEM_CODE]
        if clock.queue_seconds is not None:
            facts["queue_seconds"] = round(clock.queue_seconds, 6)
        return facts


def _route_of(scope: Scope) -> str:
    return getattr(scope.get("route"), "path", "unmatched")
