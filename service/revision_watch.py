"""A thread that looks for new revisions of the served indexes, so that no question waits until one is opened."""

import threading

import structlog

from service.engine import Engine

log = structlog.get_logger("service")


class RevisionWatch:
    """Looks at the directories of all indexes again and again.

    While it runs, questions are answered from what it has opened, and do not look themselves.

    Args:
        engine: The indexes.
        seconds: How often it looks.
    """

    def __init__(self, engine: Engine, seconds: float) -> None:
        self._engine = engine
        self._seconds = seconds
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, name="revisions", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._engine.questions_look(False)
        self._thread.start()

    def stop(self) -> None:
        """Look no more; a revision that is being opened is left to the end of the process."""
        self._over.set()
        self._engine.questions_look(True)

    def _look(self) -> None:
        while not self._over.wait(self._seconds):
            for name in self._engine.names:
                try:
                    self._engine.look(name)
                except Exception as error:  # of one index; the thread lives as long as the service
                    log.error("watch failed", index=name, exc_info=error)
