"""Goes through the units of a phase: what an earlier run finished is counted as done, and Ctrl-C stops between two."""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from indexer.progress import Progress

Unit = TypeVar("Unit")


class StoppedError(RuntimeError):
    """The user asked to stop; what is finished is kept."""


def stop_if_asked(progress: Progress) -> None:
    """Stop where nothing is lost.

    Args:
        progress: Asked whether to stop.

    Raises:
        StoppedError: If so.
    """
    if progress.stop_requested():
        raise StoppedError("stopped as asked")


def units_of(
    progress: Progress, phase: str, units: Iterable[Unit], is_done: Callable[[Unit], bool] = lambda _: False
) -> Iterator[Unit]:
    """Give one unit of work after the other, and tell the progress.

    Finished units are given as well, because their values are wanted; they have no part in the rate that the time left
    follows from.

    Args:
        progress: Told of the phase, and asked whether to stop.
        phase: Its name.
        units: All of its units; without any there is no phase.
        is_done: Whether an earlier run finished a unit. None is where nothing says so.

    Yields:
        The units, in their order.

    Raises:
        StoppedError: If it was asked to stop, before the next unit that is not finished.
    """
    listed = [(unit, is_done(unit)) for unit in units]
    if listed:
        progress.phase(phase, len(listed), done=sum(done for _, done in listed))
    for unit, done in listed:
        if done:
            yield unit
            continue
        stop_if_asked(progress)
        yield unit
        progress.advance(1)
