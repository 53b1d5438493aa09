"""What a long piece of work tells whoever waits for it; the CLI draws it, tests and programs may ignore it."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol


class Progress(Protocol):
    """Receives phases of a build and how far each has come."""

    def phase(self, name: str, total: int, done: int = 0, *, even: bool = True) -> None:
        """Start a phase.

        Args:
            name: What is done, such as ``sketching examples``.
            total: Units of work in it.
            done: Units that an earlier, interrupted build has already done.
            even: Whether units take about the same time, so that the time left follows from those that are done.
        """
        ...

    def advance(self, units: int) -> None:
        """Say that more units of the phase are done."""
        ...

    def note(self, message: str) -> None:
        """Say something worth reading once."""
        ...

    def stop_requested(self) -> bool:
        """Whether the user asked to stop at the next point where nothing is lost."""
        ...


class Silent:
    """Ignores everything."""

    def phase(self, name: str, total: int, done: int = 0, *, even: bool = True) -> None:
        """Ignore; see `Progress.phase`."""

    def advance(self, units: int) -> None:
        """Ignore."""

    def note(self, message: str) -> None:
        """Ignore."""

    def stop_requested(self) -> bool:
        """Never; see `Progress.stop_requested`.

        Returns:
            False.
        """
        return False


class Stopwatch:
    """Seconds by phase, for the build log."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Time a block of code under a name; blocks of the same name add up.

        Args:
            name: The phase.

        Returns:
            A context manager.
        """
        return _Timed(self.seconds, name)


class _Timed(nullcontext[None]):
    def __init__(self, seconds: dict[str, float], name: str) -> None:
        super().__init__()
        self._seconds, self._name = seconds, name

    def __enter__(self) -> None:
        self._begun = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._seconds[self._name] = self._seconds.get(self._name, 0.0) + time.perf_counter() - self._begun
