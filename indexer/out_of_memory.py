"""Out of memory: what it looks like, and the recorded rule by which a block that does not fit is computed in parts."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import TypeVar

import torch

RULE = "a block that does not fit is computed anew with half as many rows together, rounded up, until it fits"
"""As the build plan records it. Every block starts from the plan's rows, so a resumed block splits as it did before."""

Result = TypeVar("Result")

_CPU_ALLOCATOR = ("DefaultCPUAllocator", "not enough memory", "can't allocate memory")


class BlockMemoryError(RuntimeError):
    """Rows that do not fit into memory even one at a time."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: Python's, numpy's, torch's on a GPU, or its allocator's on the CPU.

    Args:
        error: What was raised.

    Returns:
        Whether it does.
    """
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _CPU_ALLOCATOR)


def halving(
    compute: Callable[[int], Result], at_once: int, what: str, note: Callable[[str], None]
) -> tuple[Result, int]:
    """Compute with as many rows together as memory allows, by the rule above.

    Args:
        compute: Takes the number of rows that go together and computes everything anew.
        at_once: The first number of rows to try.
        what: The rows, for messages.
        note: Told when memory ran out.

    Returns:
        What ``compute`` gave, and the number of rows that fitted.

    Raises:
        BlockMemoryError: If one row alone does not fit.
    """
    while True:
        try:
            return compute(at_once), at_once
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if at_once == 1:
                raise BlockMemoryError(
                    f"{what} do not fit into memory even one at a time ({error}). Sketch fewer parameters (--layers, "
                    "--include, --exclude), lower --memory-budget or --dim, or run fewer --processes"
                ) from error
        # Outside the handler, so that the failed attempt's frames and their tensors are gone.
        at_once = -(-at_once // 2)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        note(f"out of memory: {what} were sketched {at_once} at a time")
