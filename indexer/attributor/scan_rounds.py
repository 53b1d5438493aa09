"""What selections in flight ask for in rounds: scans of codes, each set of codes read once for all who want it."""

from collections.abc import Sequence
from typing import Any, Protocol, Self

from indexer.attributor.rounds import Rounds


class Scan(Protocol):
    """A scan that a selection waits for."""

    @property
    def scanned(self) -> object:
        """What is scanned; scans of one kind over the same are served together."""

    def serve(self, together: Sequence[Self]) -> Sequence[Any]:
        """Serve scans of one kind over the same codes.

        Args:
            together: The scans, this one among them.

        Returns:
            What each asked for, in their order; none may depend on the others.
        """


ScanRounds = Rounds[Scan, Any]


def scan_rounds() -> ScanRounds:
    """Make the rounds that the selections of one index share.

    Returns:
        Rounds without a question yet.
    """
    return Rounds(_serve)


def _serve(scans: Sequence[Scan]) -> Sequence[Any]:
    groups: dict[tuple[type, int], list[int]] = {}
    for place, scan in enumerate(scans):
        groups.setdefault((type(scan), id(scan.scanned)), []).append(place)
    given: dict[int, Any] = {}
    for places in groups.values():
        together = [scans[place] for place in places]
        given.update(zip(places, together[0].serve(together), strict=True))
    return [given[place] for place in range(len(scans))]
