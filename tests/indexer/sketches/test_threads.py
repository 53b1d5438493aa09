"""Splitting a kernel's range over threads."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from indexer.sketches.threads import KernelThreads


@pytest.mark.parametrize("num_threads", [1, 2, 5])
@pytest.mark.parametrize(("size", "piece"), [(0, 4), (1, 4), (12, 4), (13, 4), (13, 1), (3, 100)])
def test_shared_pieces_cover_the_range_exactly_once(num_threads: int, size: int, piece: int) -> None:
    counts = np.zeros(size, np.int64)

    def kernel(start: int, stop: int) -> None:
        counts[start:stop] += 1

    KernelThreads(num_threads).share(kernel, size, piece)
    assert (counts == 1).all()


def test_a_thread_that_is_held_up_leaves_its_share_to_the_others() -> None:
    threads, done_by = KernelThreads(2), []
    others_are_done = threading.Event()

    def kernel(start: int, stop: int) -> None:
        if threading.current_thread() is not threading.main_thread():
            assert others_are_done.wait(60)  # so long as the main thread needs for all but this one piece
        done_by.append((start, threading.current_thread() is threading.main_thread()))
        if len(done_by) == 7:
            others_are_done.set()

    threads.share(kernel, 8, 1)
    assert sorted(start for start, _ in done_by) == list(range(8))
    assert sum(by_main for _, by_main in done_by) >= 7


def test_an_error_of_a_shared_piece_is_raised() -> None:
    def kernel(start: int, stop: int) -> None:
        raise ValueError(f"piece {start}")

    with pytest.raises(ValueError, match="piece"):
        KernelThreads(2).share(kernel, 8, 1)
