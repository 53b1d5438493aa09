"""A progress that asks to stop, and remembers what it was told."""

from indexer.progress import Silent


class Stopping(Silent):
    """Asks to stop when so many units are done after a phase began.

    Args:
        phase: The phase, or how its name begins.
        after: How many units.
    """

    def __init__(self, phase: str, after: int = 0) -> None:
        self._phase, self._left = phase, after
        self._reached = False
        self.phases: list[tuple[str, int, int]] = []

    def phase(self, name: str, total: int, done: int = 0, *, even: bool = True) -> None:
        self.phases.append((name, total, done))
        self._reached = self._reached or name.startswith(self._phase)

    def advance(self, units: int) -> None:
        if self._reached:
            self._left -= units

    def stop_requested(self) -> bool:
        return self._reached and self._left <= 0
