"""Commands of `indexer` in processes of their own, started stopped: the client of `command_server.py`."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit status, negative for a signal, and what it printed unless it was killed."""

    status: int
    said: str


@dataclass(frozen=True)
class Order:
    """What to run: words of `indexer`, or an operation of `publications.py`, and how long a file may grow."""

    words: Sequence[str] = ()
    operation: str | None = None
    folder: str | None = None
    file_bytes: int | None = None


class Commands:
    """Runs one command at a time. Use it as a context manager.

    Args:
        cache: Folder of trained weights.
    """

    def __init__(self, cache: Path) -> None:
        self._cache = cache

    def __enter__(self) -> "Commands":
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.reliability.command_server"],
            cwd=ROOT,
            env={**os.environ, **threads, "NATTRIBUTE_CACHE": str(self._cache), "PYTHONDONTWRITEBYTECODE": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.close()
        self._server.stdout.close()
        self._server.wait(timeout=60)

    def _next(self) -> dict[str, Any]:
        assert self._server.stdout is not None
        line = self._server.stdout.readline()
        assert line, "the server of commands has ended"
        return json.loads(line)

    def start(self, order: Order) -> int:
        """Have a process ready that will run a command: stopped, until it gets SIGCONT.

        Returns:
            Its number.
        """
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps({**vars(order), "words": list(order.words)}) + "\n")
        self._server.stdin.flush()
        return self._next()["process"]

    def ended(self) -> Ended:
        """Wait for the process that was started last."""
        return Ended(**self._next())

    def run(self, order: Order) -> Ended:
        """Run a command undisturbed."""
        os.kill(self.start(order), signal.SIGCONT)
        return self.ended()
