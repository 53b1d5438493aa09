"""A real service process that is killed and started again on the same port, store and index."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx

START_SECONDS = 300.0  # of a machine that is busy with other tests


class RestartedService:
    """One service, whichever process is it at the moment.

    Attributes:
        url: Where it listens, always the same.
    """

    def __init__(self, index: Path, folder: Path, *options: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self._port}"
        self.log = folder / "service.log"
        self._command = [sys.executable, "-m", "service.cli", "--index", str(index), "--port", str(self._port)]
        self._command += ["--job-store", str(folder / "jobs.sqlite3"), *options]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process there is now."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start a process and wait until it answers."""
        with self.log.open("ab") as log:
            environment = os.environ | {"OMP_NUM_THREADS": "1"}
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log, env=environment)
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{self.url}/readyz", timeout=5).status_code == 200:
                    return
            time.sleep(0.02)
        raise TimeoutError(self.log.read_text())

    def kill(self) -> None:
        """End the process as a power cut would, in the middle of whatever it does."""
        self._end(signal.SIGKILL)

    def stop(self) -> int | None:
        """Ask the process to end.

        Returns:
            Its status; None where there is no process.
        """
        return self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> int | None:
        if self._process is None:
            return None
        self._process.send_signal(number)
        status = self._process.wait(120)
        self._process = None
        return status
