"""How the CLI shows progress: a bar with rate and time left on a terminal, one line every ten seconds anywhere else."""

from __future__ import annotations

import logging
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import IO, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.text import Text

LINE_SECONDS = 10.0


class _Interruptible:
    """What both kinds of progress share: the wish to stop."""

    def __init__(self) -> None:
        self._stop = False

    def request_stop(self) -> None:
        """Ask the work to stop where nothing is lost."""
        self._stop = True

    def stop_requested(self) -> bool:
        """Say whether it was asked to stop.

        Returns:
            Whether it was.
        """
        return self._stop


class LineProgress(_Interruptible):
    """Plain lines: one when a phase starts, one every ten seconds while it lasts, one when it ends.

    Args:
        stream: Where lines go, usually the standard error.
        seconds: Time between lines.
    """

    def __init__(self, stream: IO[str] | None = None, *, seconds: float = LINE_SECONDS) -> None:
        super().__init__()
        self._stream = stream or sys.stderr
        self._seconds = seconds
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._phase: _Phase | None = None
        self._ticker: threading.Thread | None = None

    def __enter__(self) -> LineProgress:
        self._ticker = threading.Thread(target=self._tick, name="progress", daemon=True)
        self._ticker.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._ticker is not None:
            self._ticker.join()
        with self._lock:
            self._finish()

    def _tick(self) -> None:
        while not self._ended.wait(self._seconds):
            with self._lock:
                if self._phase is not None:
                    self._say(self._phase.line())

    def _say(self, line: str) -> None:
        self._stream.write(line + "\n")
        self._stream.flush()

    def _finish(self) -> None:
        if self._phase is not None and self._phase.lasted() > 1.0 and self._phase.total:
            self._say(self._phase.line())
        self._phase = None

    def phase(self, name: str, total: int, done: int = 0, *, even: bool = True) -> None:
        """Start a phase; see `progress.Progress.phase`."""
        with self._lock:
            self._finish()
            self._phase = _Phase(name, total, done, even)
            self._say(
                name if not total else f"{name}: {total - done} to do" + (f", {done} done before" if done else "")
            )

    def advance(self, units: int) -> None:
        """Count units; see `progress.Progress.advance`."""
        with self._lock:
            if self._phase is not None:
                self._phase.done += units

    def note(self, message: str) -> None:
        """Print a message; see `progress.Progress.note`."""
        with self._lock:
            self._say(message)


class _Phase:
    def __init__(self, name: str, total: int, done: int, even: bool) -> None:
        self.name, self.total, self.done, self.even = name, total, done, even
        self._before, self._begun = done, time.monotonic()

    def lasted(self) -> float:
        return time.monotonic() - self._begun

    def line(self) -> str:
        seconds = self.lasted()
        if not self.total:
            return f"{self.name}: {duration(seconds)}"
        line = f"{self.name}: {self.done} of {self.total} ({self.done / self.total:.0%})"
        rate = (self.done - self._before) / seconds if seconds else 0.0
        if rate == 0.0 or not self.even:
            return f"{line}, {duration(seconds)} so far"
        left = "" if self.done >= self.total else f", {duration((self.total - self.done) / rate)} left"
        return f"{line}, {rate:.3g}/s{left}"


class BarProgress(_Interruptible):
    """A bar for the running phase, on a terminal.

    Args:
        console: The terminal.
    """

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            _RateColumn(),
            _TimeLeftColumn(),
            console=console,
            transient=True,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> BarProgress:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def phase(self, name: str, total: int, done: int = 0, *, even: bool = True) -> None:
        """Start a phase; see `progress.Progress.phase`."""
        if self._task is not None:
            self._bars.remove_task(self._task)
        self._task = self._bars.add_task(name, total=total or None, completed=done, before=done, even=even)

    def advance(self, units: int) -> None:
        """Count units; see `progress.Progress.advance`."""
        if self._task is not None:
            self._bars.advance(self._task, units)

    def note(self, message: str) -> None:
        """Print a message above the bar; see `progress.Progress.note`."""
        self._bars.console.print(message, highlight=False, markup=False)


def _rate(task: Task) -> float | None:
    if not task.fields.get("even", True):
        return None
    # rich's own speed covers the last seconds only, and a block of rows can take longer than that
    done = task.completed - float(task.fields.get("before", 0))
    return done / task.elapsed if task.elapsed and done else None


class _RateColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        rate = _rate(task)
        return Text("" if rate is None else f"{rate:.3g}/s")


class _TimeLeftColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        rate = _rate(task)
        if rate is None or task.total is None:
            return Text(f"{duration(task.elapsed or 0.0)} so far")
        return Text(f"{duration((task.total - task.completed) / rate)} left")


def duration(seconds: float) -> str:
    """Say how long something takes in words a person reads.

    Args:
        seconds: How long.

    Returns:
        Such as ``0.3 s``, ``42 s``, ``3 min 05 s`` or ``2 h 10 min``.
    """
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def and_time_left(done: int, total: int, seconds: float) -> str:
    """Say how much longer equal units of work take, to be put behind what is said of those that are done.

    Args:
        done: Units that are done, at least 1.
        total: All of them.
        seconds: What those that are done took.

    Returns:
        Such as ``, 3 min 05 s left``; nothing where all are done.
    """
    return f", {duration(seconds * (total - done) / done)} left" if done < total else ""


def size(count: int) -> str:
    """Say how many bytes something takes.

    Args:
        count: Bytes.

    Returns:
        Such as ``512 B``, ``1.4 MiB`` or ``2.3 GiB``.
    """
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{count} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def counted(count: int, one: str, many: str | None = None) -> str:
    """Say how many of something there are.

    Args:
        count: How many.
        one: Its name in the singular.
        many: In the plural; None adds an s.

    Returns:
        Such as ``1 query`` or ``2 queries``.
    """
    return f"{count} {one if count == 1 else many or one + 's'}"


def aligned(rows: Iterable[tuple[str, str]]) -> str:
    """Lay out names and what they are as two columns, unwrapped so that it pipes.

    Args:
        rows: The pairs.

    Returns:
        One line per pair.
    """
    pairs = list(rows)
    width = max((len(name) for name, _ in pairs), default=0)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in pairs)


@contextmanager
def progress_on(console: Console) -> Iterator[LineProgress | BarProgress]:
    """Show progress in the way that fits where the standard error goes, and turn Ctrl-C into a wish to stop.

    The first Ctrl-C lets the block in progress finish; the second stops at once. What the package logs becomes notes.

    Args:
        console: The console of the standard error.

    Yields:
        The progress.
    """
    chosen: LineProgress | BarProgress = BarProgress(console) if console.is_terminal else LineProgress(console.file)

    def interrupt(number: int, frame: FrameType | None) -> None:
        if chosen.stop_requested():
            raise KeyboardInterrupt
        chosen.request_stop()
        # Not through note(): a signal handler must not wait for a lock that the interrupted code may hold.
        sys.stderr.write("\nfinishing the block in progress; Ctrl-C again stops at once, and its rows are redone\n")

    handler = _NoteHandler(chosen)
    logger = logging.getLogger("indexer")
    level, before = logger.level, None
    in_main = threading.current_thread() is threading.main_thread()
    if in_main:
        before = signal.signal(signal.SIGINT, interrupt)
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        with chosen:
            yield chosen
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        if in_main:
            signal.signal(signal.SIGINT, before)


class _NoteHandler(logging.Handler):
    def __init__(self, progress: Any) -> None:
        super().__init__()
        self._progress = progress

    def emit(self, record: logging.LogRecord) -> None:
        self._progress.note(record.getMessage())
