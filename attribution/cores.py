"""Sharing independent pieces of work between the cores: threads for numpy and kernels that release the GIL.

What a piece computes must not depend on which thread runs it or on how many there are: pieces are cut by the size of
the work where sums are formed in them.
"""

import itertools
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch

_NAME = "cores"
_limits: list[int] = []


def limit_cores(count: int) -> None:
    """Say how many threads share the work of one caller, in this process; without it, as many as torch has.

    A service gives torch one thread for each of many workers, and every core to the scans that they share.

    Args:
        count: At least 1.
    """
    _limits[:] = [count]


def num_cores() -> int:
    """Say how many threads share the work of one caller.

    Returns:
        The limit that was set, else torch's number of threads.
    """
    return _limits[0] if _limits else int(torch.get_num_threads())


def on_all_cores(pieces: Sequence[Callable[[], object]]) -> None:
    """Run pieces of work, as many at a time as there are cores to use; the calling thread is one of them.

    Args:
        pieces: What to run, each once, in any order. An error of one is raised here.
    """
    threads = min(num_cores(), len(pieces))
    if threads <= 1 or threading.current_thread().name.startswith(_NAME):
        for piece in pieces:
            piece()
        return
    places = itertools.count()

    def take() -> None:
        # The next piece goes to whoever is free: a core may be busy with something else.
        while (place := next(places)) < len(pieces):
            pieces[place]()

    others = [_threads().submit(take) for _ in range(threads - 1)]
    take()
    for other in others:
        other.result()


@cache
def _threads() -> ThreadPoolExecutor:
    # One pool for the process: whoever has work shares the same cores.
    return ThreadPoolExecutor(max_workers=max(1, (os.cpu_count() or 1) - 1, num_cores() - 1), thread_name_prefix=_NAME)
