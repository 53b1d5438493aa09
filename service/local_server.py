"""Starts the real service as its own process on a free loopback port and stops it again: for demos and benchmarks."""

import contextlib
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

LISTENS = re.compile(r"listens on (http://\S+)")
START_SECONDS = 120.0
# A service that is told to stop answers what is in flight first: its deadline, 60 s by default, a margin, a job's step.
STOP_SECONDS = 120.0


class ServerNotReadyError(RuntimeError):
    """The service ended, or was not ready in time; the message holds what it printed."""


@contextlib.contextmanager
def local_server(
    index: Path, *arguments: str, name: str | None = None, log: Path | None = None, start_seconds: float = START_SECONDS
) -> Iterator[str]:
    """Serve one index directory over HTTP for the duration of a ``with`` block.

    Args:
        index: The index directory.
        *arguments: Further flags of ``attribution-service``.
        name: The name it is served under; by default the directory's.
        log: File for what the service prints; by default a temporary one.
        start_seconds: How long the service may take to check the directory and become ready.

    Yields:
        The base URL.

    Raises:
        ServerNotReadyError: If the service ended or was not ready in time.
    """
    served = f"{name or index.resolve().name}={index}"
    command = [sys.executable, "-m", "service.cli", "--index", served, "--port", "0", *arguments]
    with contextlib.ExitStack() as stack:
        if log is None:
            log = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "service.log"
        # A file, not a pipe: nobody reads while the service runs, and a full pipe would stop it.
        output = stack.enter_context(log.open("wb"))
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        try:
            yield _wait(process, log, start_seconds)
        finally:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(process: "subprocess.Popen[bytes]", log: Path, start_seconds: float) -> str:
    deadline = time.monotonic() + start_seconds
    while process.poll() is None and time.monotonic() < deadline:
        printed = LISTENS.search(log.read_text(encoding="utf-8", errors="replace"))
        if printed is not None:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{printed[1]}/readyz", timeout=1.0).status_code == 200:
                    return printed[1]
        time.sleep(0.05)
    state = f"within {start_seconds:g} s" if process.poll() is None else f"and ended with status {process.returncode}"
    raise ServerNotReadyError(
        f"the service was not ready {state}:\n{log.read_text(encoding='utf-8', errors='replace')}"
    )
