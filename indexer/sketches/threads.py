"""Splits a kernel's range over as many threads as torch was told to use.

The kernels release the GIL, so plain Python threads do: numba's own thread layers abort when two service threads
call at once, keep a thread count of their own, and compile slower.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch


class KernelThreads:
    """A small pool, started when first needed; safe to call from several threads."""

    def __init__(self, num_threads: int | None = None) -> None:
        self.num_threads = num_threads or torch.get_num_threads()
        self._pool: ThreadPoolExecutor | None = None

    def split(self, kernel: Callable[[int, int], object], size: int, multiple: int = 1) -> None:
        """Call ``kernel(start, stop)`` for parts of ``range(size)`` side by side and wait for all of them.

        Args:
            kernel: Works on [start, stop); parts must not write to the same place.
            size: Length of the whole range.
            multiple: Inner boundaries fall on multiples of this.
        """
        units = -(-size // multiple)
        parts = min(self.num_threads, units)
        edges = [min(size, multiple * (units * i // parts)) for i in range(parts + 1)] if parts else [0]
        if parts <= 1:
            if size:
                kernel(0, size)
            return
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.num_threads, thread_name_prefix="sketch")
        waiting = [self._pool.submit(kernel, edges[i], edges[i + 1]) for i in range(1, parts)]
        kernel(edges[0], edges[1])
        for part in waiting:
            part.result()
