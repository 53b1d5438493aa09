"""A client that has its own manners: bytes on a socket, as fast, as slowly or as wrong as a test wants."""

import contextlib
import json
import socket
import threading
import time
from typing import Any
from urllib.parse import urlsplit


class RawClient:
    """One connection.

    Args:
        url: The service.
        receive_bytes: The size of the socket's receive buffer; small, so that what is not read stays at the service.
        timeout: Seconds that one read may take.

    Attributes:
        answered: For who reads: set when an answer has begun.
        made: Set by who watches the service, when the answer was made.
    """

    def __init__(self, url: str, *, receive_bytes: int | None = None, timeout: float = 60.0) -> None:
        place = urlsplit(url)
        assert place.hostname is not None
        assert place.port is not None
        self.host = place.netloc
        self.socket = socket.socket()
        if receive_bytes is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        self.socket.settimeout(timeout)
        self.socket.connect((place.hostname, place.port))
        self.begun = time.monotonic()
        self.answered, self.made = threading.Event(), threading.Event()

    def __enter__(self) -> "RawClient":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        """Send bytes."""
        self.socket.sendall(data)

    def head(self, method: str, path: str, **headers: str) -> bytes:
        """Return the head of a request; underscores in header names become hyphens."""
        lines = [f"{method} {path} HTTP/1.1", f"Host: {self.host}", "Content-Type: application/json"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")

    def post(self, path: str, body: bytes, **headers: str) -> None:
        """Send a whole request."""
        self.send(self.head("POST", path, Content_Length=str(len(body)), **headers) + body)

    def trickle(self, data: bytes, pause: float, seconds: float) -> bool:
        """Send a byte at a time.

        Args:
            data: What to send.
            pause: Seconds between bytes.
            seconds: When to give up.

        Returns:
            Whether the service closed the connection or answered meanwhile.
        """
        end = time.monotonic() + seconds
        for byte in data:
            if time.monotonic() > end:
                return False
            try:
                self.socket.sendall(bytes([byte]))
            except OSError:
                return True
            self.socket.settimeout(pause)
            try:
                self.socket.recv(1, socket.MSG_PEEK)
            except TimeoutError:
                continue
            except OSError:
                pass
            finally:
                self.socket.settimeout(60)
            return True
        return False

    def read_all(self) -> bytes:
        """Read until the service closes the connection; what came before a reset counts."""
        parts = []
        with contextlib.suppress(ConnectionError):
            while part := self.socket.recv(1 << 16):
                parts.append(part)
        return b"".join(parts)

    def answer(self) -> "RawAnswer":
        """Read one answer whose length is stated."""
        data = b""
        while b"\r\n\r\n" not in data:
            if not (part := self.socket.recv(1 << 16)):
                raise ConnectionError(f"the service closed the connection behind {data!r}")
            data += part
        head, _, body = data.partition(b"\r\n\r\n")
        status, headers = read_head(head)
        while len(body) < int(headers["content-length"]):
            if not (part := self.socket.recv(1 << 16)):
                raise ConnectionError("the answer was cut")
            body += part
        return RawAnswer(status, headers, body)


def read_head(head: bytes) -> tuple[int, dict[str, str]]:
    """Read the head of an answer.

    Args:
        head: Its lines, with or without the empty one at the end.

    Returns:
        The status, and the headers with names in lower case.
    """
    status, *fields = head.decode("latin-1").rstrip("\r\n").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (field.partition(":") for field in fields)}
    return int(status.split()[1]), headers


class RawAnswer:
    """An answer.

    Attributes:
        status: Its status.
        headers: Its headers, with names in lower case.
        body: Its body.
    """

    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status, self.headers, self.body = status, headers, body

    @property
    def problem(self) -> dict[str, Any]:
        """The problem that it must be."""
        assert self.headers["content-type"] == "application/problem+json", self.headers
        found: dict[str, Any] = json.loads(self.body)
        assert found["status"] == self.status
        assert found["request_id"] == self.headers["x-request-id"]
        assert "nosniff" in self.headers["x-content-type-options"]
        return found
