"""What a service process holds: memory, descriptors, threads; and whether these grow."""

import statistics
import threading
import time
from collections.abc import Sequence

import psutil


def service_process(marker: str) -> psutil.Process:
    """Find the service among this process's children by a word of its command line."""
    return next(child for child in psutil.Process().children(recursive=True) if marker in " ".join(child.cmdline()))


class Watch(threading.Thread):
    """Looks at a process now and then.

    Attributes:
        seconds: When it looked.
        rss: Resident bytes at these times.
        descriptors: Open descriptors at these times.
    """

    def __init__(self, process: psutil.Process, every: float) -> None:
        super().__init__(daemon=True)
        self._process, self._every = process, every
        self._over = threading.Event()
        self.seconds: list[float] = []
        self.rss: list[float] = []
        self.descriptors: list[float] = []

    def run(self) -> None:
        begun = time.monotonic()
        while not self._over.wait(self._every):
            self.rss.append(float(self._process.memory_info().rss))
            self.descriptors.append(float(self._process.num_fds()))
            self.seconds.append(time.monotonic() - begun)

    def stop(self) -> None:
        """Look no more."""
        self._over.set()
        self.join(10)


def growth(values: Sequence[float]) -> float:
    """How much a series grew from its second to its last quarter, in medians.

    The first quarter is left out: caches fill, arenas and thread stacks are made once. A leak grows all the time and
    shows between the other quarters; a single peak moves no median.
    """
    quarter = max(1, len(values) // 4)
    return statistics.median(values[-quarter:]) - statistics.median(values[quarter : 2 * quarter])
