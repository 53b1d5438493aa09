"""A client that costs next to nothing, so that what it measures under load is the service and not itself.

httpx takes milliseconds of a core for a request; at four times the capacity of a service on the same two cores its own
queue of callbacks is longer than the service's.
"""

import asyncio
from urllib.parse import urlsplit

from tests.reliability.raw_client import RawAnswer, read_head

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class PooledClient:
    """Asks over kept connections, as many as are needed at a time.

    Args:
        url: The service.
        seconds: How long one answer may take.
    """

    def __init__(self, url: str, seconds: float = 60.0) -> None:
        place = urlsplit(url)
        self._host, self._port, self._name = place.hostname, place.port, place.netloc
        self._seconds = seconds
        self._idle: list[Stream] = []

    async def __aenter__(self) -> "PooledClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        for _, writer in self._idle:
            writer.close()

    async def get(self, path: str) -> RawAnswer:
        """Ask for a path."""
        return await self._ask(f"GET {path} HTTP/1.1\r\nHost: {self._name}\r\n\r\n".encode())

    async def post(self, path: str, content: bytes) -> RawAnswer:
        """Post JSON."""
        head = f"POST {path} HTTP/1.1\r\nHost: {self._name}\r\nContent-Type: application/json\r\n"
        return await self._ask(head.encode() + b"Content-Length: %d\r\n\r\n" % len(content) + content)

    async def _ask(self, request: bytes) -> RawAnswer:
        while self._idle:
            kept = self._idle.pop()
            try:
                return await self._exchange(kept, request)
            except (ConnectionError, asyncio.IncompleteReadError) as error:
                # The service may close an idle connection just when it is used again: nothing of an answer was sent.
                if isinstance(error, asyncio.IncompleteReadError) and error.partial:
                    raise
        return await self._exchange(await asyncio.open_connection(self._host, self._port), request)

    async def _exchange(self, stream: Stream, request: bytes) -> RawAnswer:
        reader, writer = stream
        kept = False
        try:
            writer.write(request)
            async with asyncio.timeout(self._seconds):
                status, headers = read_head(await reader.readuntil(b"\r\n\r\n"))
                try:
                    body = await reader.readexactly(int(headers["content-length"]))
                except asyncio.IncompleteReadError as error:
                    raise EOFError(f"the answer was cut after {len(error.partial)} bytes") from None
            kept = headers.get("connection") != "close"
            return RawAnswer(status, headers, body)
        finally:
            if kept:
                self._idle.append(stream)
            else:
                writer.close()
