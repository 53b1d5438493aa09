"""Compiling the kernels that read stored rows: without the GIL, cached on disk where there is a place for it."""

from collections.abc import Callable
from typing import Any

from numba import njit


def compiled(kernel: Callable[..., Any], *, lanes: bool = False) -> Callable[..., Any]:
    """Compile a kernel when it is first called.

    Args:
        kernel: The function.
        lanes: Whether float sums may be split into lanes, always the same way, and use fused multiply-adds; nothing
            else is relaxed.

    Returns:
        The compiled function; it releases the GIL.
    """
    jit: Any = njit
    options: dict[str, Any] = {"nogil": True, "fastmath": {"reassoc", "contract"} if lanes else False}
    try:
        function: Callable[..., Any] = jit(cache=True, **options)(kernel)
    except RuntimeError:  # numba finds no folder for its cache (read-only installation without a home): compile anew
        function = jit(**options)(kernel)
    return function


def compiled_in_lanes(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a kernel whose float sums may be split into lanes; see :func:`compiled`.

    Args:
        kernel: The function.

    Returns:
        The compiled function.
    """
    return compiled(kernel, lanes=True)
