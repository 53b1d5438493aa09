"""What every type of job is to the runner: so many items, made from those that are stored already."""

from collections.abc import Callable, Iterator
from typing import Any, Protocol

from service.jobs.stored_job import Item

Check = Callable[[], None]


class StoredItems(Protocol):
    """The items that a job has already."""

    def positions(self) -> set[int]:
        """Return their positions."""

    def items(self) -> Iterator[Item]:
        """Read them in order."""


class Work(Protocol):
    """A job on one revision of its index, judged and ready to begin.

    Attributes:
        total: Items there can be.
        facts: What holds for all items.
        warnings: What to beware of.
    """

    total: int
    facts: dict[str, Any]
    warnings: list[str]

    def run(self, stored: StoredItems, check: Check) -> Iterator[list[Item]]:
        """Make the items that are missing; what is yielded is stored, and only then the next is made.

        Args:
            stored: The items there are.
            check: Called between steps; raises to stop.
        """
