"""The HTTP server of the command: told to stop, it answers what it has accepted and refuses the rest, then ends."""

import asyncio
import signal
import socket
import time
from types import FrameType

import structlog
import uvicorn
from starlette.types import ASGIApp

from service.state import State

#: What an answer may take beyond its request's deadline: the step being made, and the way to the client.
MARGIN_SECONDS = 10.0
LOOK_SECONDS = 0.05

log = structlog.get_logger("service")


class DrainingServer(uvicorn.Server):
    """A server that keeps listening until what was in flight at SIGTERM or SIGINT is answered.

    Meanwhile ``/readyz`` and new requests get 503 with Retry-After, where a closed port would tell a load balancer
    nothing. A second SIGINT ends it at once.
    """

    def __init__(self, app: ASGIApp, state: State) -> None:
        """Serve an app.

        Args:
            app: The app.
            state: Its service.
        """
        super().__init__(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=int(MARGIN_SECONDS),
            )
        )
        self._state = state

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain from this moment. Unlike uvicorn's, it does not raise the signal again at the end: the status is 0.

        Args:
            sig: The signal.
            frame: Where it came.
        """
        self._state.drain()
        if self.should_exit and sig == signal.SIGINT:
            self.force_exit = True
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Wait for what is in flight, at most its deadline and a margin; then close.

        Args:
            sockets: Where it listens.
        """
        self._state.drain()
        log.info("service drains", in_flight=self._state.in_flight)
        end = time.monotonic() + self._state.settings.deadline_seconds + MARGIN_SECONDS
        while self._state.in_flight and not self.force_exit and time.monotonic() < end:
            await asyncio.sleep(LOOK_SECONDS)
        await super().shutdown(sockets)
