"""A served index whose directory may get a new revision while the service runs: no answer mixes two of them."""

import threading
from collections.abc import Callable
from typing import TypeVar

import structlog

from service.observer import Observer
from service.served_index import ServedIndex
from sketchstore.errors import CorruptIndexError
from sketchstore.first_use import Stamp, stamp_of
from sketchstore.manifest import MANIFEST

Result = TypeVar("Result")

log = structlog.get_logger("service")


class Watched:
    """An index that is opened again when its manifest is another one.

    A question that is being answered keeps the revision that it began with; one that comes later gets the new one. So
    a withdrawn row is in no answer to a question asked after its removal.

    Args:
        served: The open index.
    """

    def __init__(self, served: ServedIndex) -> None:
        self._served = served
        self._seen = served.stamp
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

    def current(self) -> ServedIndex:
        """Return the index at the revision that its directory holds now.

        Returns:
            The index; as it was where the directory is gone or nobody told how to open it.
        """
        reopen = self._served.reopen
        if reopen is None or self._manifest() in (None, self._seen):
            return self._served
        with self._opening:  # one opens, the others wait for it
            found = self._manifest()
            if found not in (None, self._seen):
                before = self._served.index.revision
                fresh = reopen()
                fresh.observe(self._observer)
                self._served = fresh
                self._seen = fresh.stamp
                self._observer.opened(fresh.name, fresh.index.revision)
                log.info("new revision", index=self._served.name, before=before, now=self._served.index.revision)
        return self._served

    def ask(self, work: Callable[[ServedIndex], Result]) -> Result:
        """Do something with the index; once more where files went missing because a new revision was published.

        Args:
            work: What to do.

        Returns:
            What ``work`` returned.

        Raises:
            CorruptIndexError: If a file that it needs is not as published, and no new revision is the cause.
            FileNotFoundError: If it is not even there.
        """
        served = self.current()
        try:
            return work(served)
        except (CorruptIndexError, FileNotFoundError):
            if (fresh := self.current()) is served:
                raise
            return work(fresh)

    def _manifest(self) -> Stamp | None:
        return stamp_of(self._served.index.path / MANIFEST)
