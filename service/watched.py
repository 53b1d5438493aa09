"""A served index whose directory may get a new revision while the service runs: no answer mixes two of them."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import structlog

from indexer.recipe import RecipeError
from service.observer import Observer
from service.schemas.revisions import NewFiles
from service.served_index import ServedIndex
from sketchstore.errors import CorruptIndexError, IndexDirectoryError, IndexNotFoundError
from sketchstore.first_use import Stamp, stamp_of
from sketchstore.manifest import DERIVED, MANIFEST

Result = TypeVar("Result")

#: A refused revision is looked at again when its manifest changes, when somebody asks for it, or after so long: a file
#: may have been mended in place, or whatever it lacked was on the machine's side.
AGAIN_SECONDS = 60.0
#: And not before so many times what the attempt took, so that reading does not become all that is done.
AGAIN_TIMES = 10.0
#: Revisions that are published while the one before is opened are followed so often.
MOST_ATTEMPTS = 10

log = structlog.get_logger("service")

# What the directory holds: its manifest, and what is derived of it.
_State = tuple[Stamp | None, Stamp | None]


@dataclass(frozen=True)
class Refusal:
    """A new revision that was opened and cannot be served.

    Attributes:
        stamp: What its manifest's file was.
        reason: What is wrong with it, naming the file where one is.
        again: When it may be looked at again, by ``time.monotonic``.
    """

    stamp: Stamp | None
    reason: str
    again: float


@dataclass(frozen=True)
class Change:
    """What became of an index when its directory was looked at.

    Attributes:
        before: The index as it was served.
        now: The index as it is served.
        refusal: Why what the directory holds is not served; None where it is.
    """

    before: ServedIndex
    now: ServedIndex
    refusal: Refusal | None


class Watched:
    """An index that is opened again when its manifest is another one.

    A question that is being answered keeps the revision that it began with; one that comes later gets the new one. So
    a withdrawn row is in no answer to a question asked after its removal. A revision that cannot be opened, or of which
    a file is damaged that the old one does not share, does not answer: the old one goes on.

    Args:
        served: The open index.

    Attributes:
        looks: Whether questions look for a new revision; not where somebody else does all the time.
    """

    def __init__(self, served: ServedIndex) -> None:
        self.looks = True
        self._served = served
        self._refused: Refusal | None = None
        self._opening = threading.Lock()
        self._observer = Observer()

    @property
    def open_now(self) -> ServedIndex:
        """The index as it is open now; looks for no new revision."""
        return self._served

    def observe(self, observer: Observer) -> None:
        """Have somebody told what the index answers, at this revision and all that follow.

        Args:
            observer: Whom to tell.
        """
        self._observer = observer
        self._served.observe(observer)
        observer.opened(self._served.name, self._served.index.revision)

    @property
    def refusal(self) -> Refusal | None:
        """Why what the directory holds is not what is served; None where it is."""
        return None if self._manifest() == self._served.stamp else self._refused  # put back, the old one is no news

    def current(self) -> ServedIndex:
        """Return the index at the revision that its directory holds now; where questions do not look, at the last seen.

        Returns:
            The index; as it was where the directory is gone or nobody told how to open it.
        """
        return self.look() if self.looks else self._served

    def look(self) -> ServedIndex:
        """Open what the directory holds, if it is news, and return the index.

        Returns:
            The index.
        """
        if self._is_news(self._manifest()):
            with self._opening:  # one opens, the others wait for it
                if self._is_news(self._manifest()):
                    self._open("new")
        return self._served

    def reload(self, files: NewFiles) -> Change:
        """Open what the directory holds, if it is not what is served, also if it was refused before.

        Args:
            files: Which of its files are read before it answers.

        Returns:
            What became of it.
        """
        with self._opening:
            before = self._served
            if before.reopen is not None and self._manifest() != before.stamp:
                self._open(files)
            return Change(before, self._served, self.refusal)

    def ask(self, work: Callable[[ServedIndex], Result]) -> Result:
        """Do something with the index; anew where files went missing because a new revision was published.

        Args:
            work: What to do.

        Returns:
            What ``work`` returned.

        Raises:
            CorruptIndexError: If a file that it needs is not as published, and no new revision is the cause.
            FileNotFoundError: If it is not even there.
        """
        served = self.current()
        for _ in range(MOST_ATTEMPTS):
            try:
                return work(served)
            except (CorruptIndexError, FileNotFoundError):
                if (fresh := self.look()) is served:
                    raise
                served = fresh
        return work(served)

    def _is_news(self, found: Stamp | None) -> bool:
        if self._served.reopen is None or found in (None, self._served.stamp):
            return False
        refused = self._refused
        return refused is None or refused.stamp != found or time.monotonic() >= refused.again

    def _open(self, files: NewFiles) -> None:
        # With the lock held. Opened and read beside the old revision, which answers until the new one is all there.
        before, began = self._served, time.monotonic()
        assert before.reopen is not None, "who calls this looked"
        for _ in range(MOST_ATTEMPTS):
            state = self._state()
            try:
                fresh = before.reopen()
                fresh.index.check_files(before.known_files if files == "new" else frozenset())
            except Exception as error:  # whatever it is, the old revision can answer
                reason = _reason(error)
                if self._state() == state:
                    break
            else:
                fresh.observe(self._observer)
                self._served, self._refused = fresh, None
                self._observer.opened(fresh.name, fresh.index.revision)
                log.info("new revision", index=fresh.name, before=before.index.revision, now=fresh.index.revision)
                return
        now = time.monotonic()
        self._refused = Refusal(state[0], reason, now + max(AGAIN_SECONDS, AGAIN_TIMES * (now - began)))
        log.error("revision refused", index=before.name, serving=before.index.revision, reason=reason)

    def _manifest(self) -> Stamp | None:
        return stamp_of(self._served.index.path / MANIFEST)

    def _state(self) -> _State:
        return self._manifest(), stamp_of(self._served.index.path / DERIVED / MANIFEST)


def _reason(error: Exception) -> str:
    match error:
        case IndexNotFoundError():
            return "there is no index in its directory any more"
        case IndexDirectoryError() | RecipeError():
            return str(error)
        case _:  # whose own words may name paths of this machine
            log.error("revision cannot be opened", exc_info=error)
            return f"it cannot be opened ({type(error).__name__}); the service's log has the cause"
