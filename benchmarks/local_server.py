"""Start the real attribution service as a process of its own on a free loopback port, and stop it again."""

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx


def free_port() -> int:
    """Return a loopback port that was free a moment ago."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextlib.contextmanager
def local_server(index: Path, *arguments: str, start_seconds: float = 120.0) -> Iterator[str]:
    """Serve one index directory over HTTP for the duration of a ``with`` block.

    Args:
        index: The index directory; it is served under the name in its manifest.
        *arguments: Further flags of ``attribution-service``.
        start_seconds: How long the service may take to check the directory and become ready.

    Yields:
        The base URL.

    Raises:
        RuntimeError: If the service ended or was not ready in time; the message holds what it printed.
    """
    port = free_port()
    command = [sys.executable, "-m", "service.cli", "--index", f"{index.name}={index}", "--port", str(port), *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + start_seconds
        while True:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{url}/readyz", timeout=1.0).status_code == 200:
                    break
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                printed = process.communicate()[0]
                raise RuntimeError(f"the service on {index} was not ready within {start_seconds:g} s:\n{printed}")
            time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.communicate(timeout=30)
