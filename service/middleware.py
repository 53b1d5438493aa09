"""The outermost layer around every request: its id, its host, its key, the size of its body, its line in the log.

Plain ASGI, so that a body is counted as it streams in and a stream's response is never buffered.
"""

import re
import time
import uuid
from collections.abc import Mapping

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.authentication import CALLER, ApiKeys
from service.caller import ANYONE, STRANGER, Caller
from service.errors import BodyTooLargeError, NotReadyError, UnauthorizedError
from service.hosts import AllowedHosts
from service.problems import problem_of, problem_response
from service.state import State

REQUEST_ID = "X-Request-ID"
# What a browser may make of an answer: nothing is loaded, framed, or taken for another type than it says. A response
# that brings a policy of its own, the documentation page, keeps it.
BROWSER_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}
JOB_ID = re.compile(r"[0-9a-f]{32}")
CLIENT_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
# Health checks come from load balancers, the documentation holds no data.
OPEN_PATHS = frozenset({"/livez", "/readyz", "/openapi.json"})
# A probe may call the service by any name; what it learns is no secret.
PROBE_PATHS = frozenset({"/livez", "/readyz"})
# What runs the service asks until its end.
OPERATIONS_PATHS = frozenset({"/livez", "/readyz", "/metrics"})
METHODS = frozenset({"GET", "POST", "HEAD", "OPTIONS", "PUT", "PATCH", "DELETE"})

log = structlog.get_logger("service")


class BodyTooLargeSignal(Exception):
    """Raised out of ``receive`` when the body outgrows the limit; never leaves :class:`Gate`."""


class Gate:
    """Lets a request in: gives it an id, asks for its key, limits its body, logs and counts its answer.

    Every refusal here is a problem like all others. A body that says it is too long is refused unread; one that does
    not say is refused at the first byte beyond the limit. While the service drains, nothing more is let in.
    """

    def __init__(
        self, app: ASGIApp, *, max_body_bytes: int, keys: ApiKeys | None, hosts: AllowedHosts, state: State
    ) -> None:
        """Stand before an app.

        Args:
            app: The app.
            max_body_bytes: The longest body let in.
            keys: The known API keys, None to ask for none.
            hosts: The hosts that requests may be for.
            state: The service: where answers are counted, and whether it drains.
        """
        self._app = app
        self._max_body_bytes = max_body_bytes
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
        begun = time.perf_counter()
        status = 0
        received = 0
        too_large = False

        async def receive_counted() -> Message:
            nonlocal received, too_large
            message = await receive()
            if message["type"] == "http.request":
                received += len(message.get("body", b""))
                if received > self._max_body_bytes:
                    too_large = True
                    raise BodyTooLargeSignal
            return message

        async def send_labelled(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                answer_headers = MutableHeaders(scope=message)
                answer_headers[REQUEST_ID] = request_id
                for name, value in BROWSER_HEADERS.items():
                    answer_headers.setdefault(name, value)
            await send(message)

        async def send_unless_too_large(message: Message) -> None:
            # Whatever the app makes of the signal, a 400 for one, the answer is 413.
            if not too_large or status:
                await send_labelled(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                scope[CALLER] = self._check(scope, headers)
                if scope["path"] in OPERATIONS_PATHS:
                    await self._app(scope, receive_counted, send_unless_too_large)
                else:
                    await self._let_in(scope, receive_counted, send_unless_too_large)
            except Exception as error:
                if status:
                    raise
                refusal = BodyTooLargeError(self._max_body_bytes) if too_large else error
                await problem_response(problem_of(refusal, request_id))(scope, receive, send_labelled)
            else:
                if too_large and not status:  # the app answered something else, and that was held back
                    refused = problem_of(BodyTooLargeError(self._max_body_bytes), request_id)
                    await problem_response(refused)(scope, receive, send_labelled)
            finally:
                self._record(scope, status, time.perf_counter() - begun)

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

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "unmatched")
        method = scope["method"] if scope["method"] in METHODS else "other"
        self._metrics.requests.labels(method, route, str(status)).inc()
        self._metrics.request_seconds.labels(route).observe(seconds)
        level = log.debug if route in OPEN_PATHS else log.info
        key = scope[CALLER].name if CALLER in scope else None
        # Not the path itself: what stands in it may be anything.
        named = self._named(scope.get("path_params") or {})
        level("request", method=method, route=route, **named, status=status, key=key, seconds=round(seconds, 6))

    def _named(self, parameters: Mapping[str, object]) -> dict[str, object]:
        known = {"index": parameters.get("index") in self._state.engine.names}
        known["job"] = JOB_ID.fullmatch(str(parameters.get("job"))) is not None
        return {name: parameters[name] for name, is_ours in known.items() if is_ours}
