"""One connection of the server: what a client owes is due within its time, and every refusal is a problem like others.

uvicorn waits for ever for the end of a request's head, for the rest of a body behind its answer, and for a client that
stops reading. The time of a body that the app reads is kept in :mod:`service.middleware`, where the answer is made.
"""

import socket
import sys
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import h11
import structlog
from uvicorn.protocols.http.flow_control import CLOSE_HEADER
from uvicorn.protocols.http.h11_impl import H11Protocol

from service.errors import (
    HeadersTooLargeError,
    MalformedRequestError,
    RequestTooSlowError,
    ServiceError,
    TooManyConnectionsError,
)
from service.metrics import Metrics
from service.middleware import BROWSER_HEADERS, REQUEST_ID
from service.outlet import Outlet
from service.problems import problem_of, problem_response
from service.settings import Settings

#: Connections beyond the limit that are told so; further ones are closed without a word.
TOLD = 50

log = structlog.get_logger("service")


@dataclass(frozen=True)
class Manners:
    """What every connection of a server goes by.

    Attributes:
        settings: How long clients may take, and how many may connect.
        metrics: Where refusals and cut connections are counted.
    """

    settings: Settings
    metrics: Metrics


class Connection(H11Protocol):
    """A connection that is closed when its client is too slow, and refused when there are too many.

    From the moment it may, a client has ``client_seconds`` to send the whole head of a request. One that reads an
    answer more slowly than 64 KiB in that time is cut off.
    """

    def __init__(self, *args: Any, manners: Manners, **kwargs: Any) -> None:
        """Take a connection.

        Args:
            *args: What uvicorn gives every protocol.
            manners: What this server's connections go by.
            **kwargs: What uvicorn gives every protocol.
        """
        super().__init__(*args, **kwargs)
        self._manners = manners
        self._patience = manners.settings.client_seconds
        self._due: Any = None  # the timer of what the client owes
        self._outlet: Outlet

    def connection_made(self, transport: Any) -> None:
        """Begin: the head of a request is due. One connection too many is refused."""
        connected = transport.get_extra_info("socket")
        if connected is not None and hasattr(socket, "TCP_NOTSENT_LOWAT"):
            # What a client does not read stays here, where it is seen, and not in megabytes of the kernel's.
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, 1 << 16)
        self._outlet = Outlet(transport, self._patience, self._may_send_more, lambda: self._count_cut("answer"))
        super().connection_made(self._outlet)
        most = self._manners.settings.max_connections
        if len(self.connections) > most + TOLD:
            self._count_cut("too_many")
            transport.abort()
        elif len(self.connections) > most:
            self._refuse(TooManyConnectionsError(most))
        else:
            self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._unwatch()
        self._outlet.lost()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read on; nothing more behind a refusal."""
        if not self._outlet.is_closing():
            super().data_received(data)
            self._watch()

    def on_response_complete(self) -> None:
        """Wait for the next request, or for what is left of the body that nobody read."""
        super().on_response_complete()
        self._watch()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP.

        Args:
            msg: uvicorn's words.
        """
        error = sys.exc_info()[1]
        if getattr(error, "error_status_hint", 400) == 431:
            self._refuse(HeadersTooLargeError())
        else:
            # The parser's own words quote what was sent, a key perhaps.
            self._refuse(MalformedRequestError("these bytes are not a request in HTTP/1.1"))

    def _watch(self) -> None:
        owes = not self._outlet.is_closing() and (
            self.conn.their_state is h11.IDLE
            or (self.conn.their_state is h11.SEND_BODY and self.cycle.response_complete)
        )
        if not owes:
            self._unwatch()
        elif self._due is None:
            self._due = self.loop.call_later(self._patience, self._overdue)

    def _unwatch(self) -> None:
        if self._due is not None:
            self._due.cancel()
            self._due = None

    def _overdue(self) -> None:
        self._due = None
        if self._outlet.is_closing():
            return
        if self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]:
            self._count_cut("head")
            self._refuse(RequestTooSlowError("head", self._patience))
        elif self.conn.their_state is h11.IDLE:
            self.timeout_keep_alive_handler()
        else:
            self._count_cut("body")
            self._outlet.close()

    def _may_send_more(self) -> bool:
        # Closing at once on one who still sends would take the answer from it.
        if self.conn.their_state is h11.IDLE:
            return self.cycle is None or bool(self.conn.trailing_data[0])
        return self.conn.their_state in (h11.SEND_BODY, h11.ERROR)

    def _refuse(self, error: ServiceError) -> None:
        """Answer with a problem where there is no request to give to the app, and close."""
        request_id = uuid.uuid4().hex
        response = problem_response(problem_of(error, request_id))
        added = {REQUEST_ID: request_id, **BROWSER_HEADERS}
        headers = [
            *self.server_state.default_headers,
            *((name, value) for name, value in response.raw_headers if name != b"connection"),
            *((name.lower().encode(), value.encode()) for name, value in added.items()),
            CLOSE_HEADER,
        ]
        try:
            head = self.conn.send(h11.Response(status_code=error.status, headers=headers, reason=error.title.encode()))
            body = self.conn.send(h11.Data(data=bytes(response.body)))
            end = self.conn.send(h11.EndOfMessage())
        except h11.LocalProtocolError:  # an answer is on its way already
            self._outlet.abort()
            return
        if self.cycle is not None:  # the app is not asked to answer any more
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self._unwatch()
        self._manners.metrics.requests.labels("other", "unmatched", str(error.status)).inc()
        self._manners.metrics.refusals.labels(error.code).inc()
        log.info("refused", request_id=request_id, status=error.status, code=error.code)
        self._outlet.write(b"".join(part for part in (head, body, end) if part))
        self._outlet.close()

    def _count_cut(self, owed: str) -> None:
        self._manners.metrics.cut.labels(owed).inc()


def connections(manners: Manners) -> Callable[..., Connection]:
    """Return what makes the connections of a server.

    Args:
        manners: What they go by.

    Returns:
        A factory that takes what uvicorn gives a protocol.
    """

    def make(*args: Any, **kwargs: Any) -> Connection:
        return Connection(*args, manners=manners, **kwargs)

    return make
