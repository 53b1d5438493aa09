"""Whoever sent a request: what exists for them, and what they may change."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from service.errors import UnknownIndexError


@dataclass(frozen=True)
class Caller:
    """Whoever sent a request, as far as their key tells.

    Attributes:
        name: The key's name, never the key; None where the service asks for none.
        kind: read asks and hands in jobs of its own; admin also changes what is served, and sees everybody's jobs.
        indexes: The only indexes that exist for this caller; None: all.
    """

    name: str | None
    kind: Literal["read", "admin"]
    indexes: frozenset[str] | None = None

    def sees(self, index: str) -> bool:
        """Return whether an index exists for this caller, if it is served."""
        return self.indexes is None or index in self.indexes

    def visible(self, names: Iterable[str]) -> list[str]:
        """Return those of the given indexes that exist for this caller, in their order."""
        return [name for name in names if self.sees(name)]

    def check_index(self, index: str, served: Sequence[str]) -> None:
        """Refuse an index that does not exist for this caller, in the same words whether it is served or not.

        Args:
            index: The name.
            served: The names of all indexes.

        Raises:
            UnknownIndexError: If it is not among those that the caller sees.
        """
        visible = self.visible(served)
        if index not in visible:
            raise UnknownIndexError(index, visible)


#: Whoever asks a service that has no keys: it is theirs.
ANYONE = Caller(None, "admin")
#: Whoever asks, without a known key, for what is open.
STRANGER = Caller(None, "read", frozenset())
