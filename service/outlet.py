"""The way of an answer to its client: watched, so that one who stops reading is cut off; closed so that it arrives."""

import asyncio
from collections.abc import Callable
from typing import Any

#: What a client must take in the time it has, or all there is.
STRETCH_BYTES = 1 << 16
#: How long what a client still sends is read and thrown away behind the last answer.
LINGER_SECONDS = 2.0


class Outlet(asyncio.Transport):
    """A transport that cuts off a client who does not read, and lets one read its answer who still sends.

    Args:
        transport: The connection.
        patience: Seconds within which each further 64 KiB must be taken, or all that there is.
        may_send_more: Says whether the client may be sending what nobody will read.
        cut: Called when the client is cut off.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        patience: float,
        may_send_more: Callable[[], bool],
        cut: Callable[[], None],
    ) -> None:
        self._transport = transport
        self._patience = patience
        self._may_send_more = may_send_more
        self._cut = cut
        self._loop = asyncio.get_running_loop()
        self._written = 0
        self._timer: asyncio.TimerHandle | None = None
        self._closing = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send, and wait for the client to take it.

        Args:
            data: Bytes.
        """
        if self._closing:
            return
        self._written += len(data)
        self._transport.write(data)
        if self._timer is None and self._transport.get_write_buffer_size():
            self._wait_for_the_client()

    def close(self) -> None:
        """Close behind the last byte.

        A socket that is closed while its client still sends is reset, and the client may never read the answer: so
        only this side is closed, and the rest is thrown away for a while.
        """
        if self._closing:
            return
        self._closing = True
        if self._transport.is_closing() or not self._may_send_more():
            self._transport.close()
            return
        self._transport.write_eof()
        self._transport.resume_reading()
        self._loop.call_later(LINGER_SECONDS, self._transport.abort)

    def abort(self) -> None:
        """Cut the connection."""
        self._closing = True
        self._transport.abort()

    def lost(self) -> None:
        """Forget the client: the connection is gone."""
        self._closing = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def is_closing(self) -> bool:
        """Return whether nothing more is read or written."""
        return self._closing or self._transport.is_closing()

    def pause_reading(self) -> None:
        """Let the client wait."""
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Read on."""
        self._transport.resume_reading()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return what is known of the connection.

        Args:
            name: asyncio's name of it.
            default: What to return where it is not known.

        Returns:
            The fact.
        """
        return self._transport.get_extra_info(name, default)

    def _wait_for_the_client(self) -> None:
        delivered = self._written - self._transport.get_write_buffer_size()
        enough = min(self._written, delivered + STRETCH_BYTES)
        self._timer = self._loop.call_later(self._patience, self._look, enough)

    def _look(self, enough: int) -> None:
        self._timer = None
        left = self._transport.get_write_buffer_size()
        if left and self._written - left < enough:
            self._cut()
            self.abort()
        elif left:
            self._wait_for_the_client()
