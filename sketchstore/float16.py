"""Storing sketches as float16: one power-of-two scale per view, and a refusal where the range does not fit."""

import math

import numpy as np
import numpy.typing as npt
import torch

from sketchstore.errors import Float16RangeError, NotFiniteSketchError

SMALLEST_NORMAL = 2.0**-14
OVERFLOW = 65520.0  # the first magnitude that rounds to infinity
MAX_SUBNORMAL_FRACTION = 0.01
# The probe's largest magnitude lands in [2^7, 2^8]: 256 times below overflow, 2^22 above the subnormals.
_PROBE_EXPONENT = 8


def scale_exponent_for(probe: npt.NDArray[np.float32]) -> int:
    """Choose a view's scale from its first block.

    Args:
        probe: Sketches in true units, any shape.

    Returns:
        e such that values × 2^−e fit float16 with room on both sides; 0 for an all-zero probe.

    Raises:
        NotFiniteSketchError: If the probe holds NaN or an infinity.
    """
    largest = float(np.abs(probe).max(initial=0.0))
    if not math.isfinite(largest):
        raise NotFiniteSketchError("the probe block holds NaN or an infinity, so no scale can be chosen")
    if largest == 0.0:
        return 0
    return math.frexp(largest)[1] - _PROBE_EXPONENT


def to_float16(values: npt.NDArray[np.float32], exponent: int, what: str) -> tuple[npt.NDArray[np.float16], int]:
    """Round sketches to float16 at a scale.

    Args:
        values: Finite sketches in true units, float32.
        exponent: e: what is stored is value × 2^−e.
        what: Name of the block, for the message.

    Returns:
        The stored values, and how many non-zero entries lie below the smallest normal float16.

    Raises:
        Float16RangeError: If an entry overflows.
    """
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    # The product rounds only what float16 could not hold anyway; ldexp where 2**−e itself would leave float32.
    scaled = tensor * 2.0**-exponent if abs(exponent) <= 120 else torch.from_numpy(np.ldexp(values, -exponent))
    magnitude = scaled.abs()
    largest = float(magnitude.max()) if magnitude.numel() else 0.0
    if largest >= OVERFLOW:
        raise Float16RangeError(
            f"{what}: magnitude {math.ldexp(largest, exponent):.6g} overflows float16 at scale 2^{exponent} "
            f"(largest {math.ldexp(65504.0, exponent):.6g}). Build with --dtype float32."
        )
    subnormal = int(torch.count_nonzero((magnitude < SMALLEST_NORMAL) & (tensor != 0)))
    stored: npt.NDArray[np.float16] = scaled.to(torch.float16).numpy()  # to nearest, ties to even; numpy is far slower
    return stored, subnormal


def check_subnormals(subnormal: int, entries: int, view: str, exponent: int) -> None:
    """Refuse a view of which too many entries lost precision.

    Args:
        subnormal: Non-zero entries below the smallest normal float16.
        entries: Entries of the whole view.
        view: The view, for the message.
        exponent: Its scale exponent, for the message.

    Raises:
        Float16RangeError: If more than 1 % of the entries are subnormal.
    """
    if subnormal > MAX_SUBNORMAL_FRACTION * entries:
        raise Float16RangeError(
            f"view {view!r}: {subnormal} of {entries} entries are subnormal in float16 at scale 2^{exponent} "
            f"(more than {MAX_SUBNORMAL_FRACTION:.0%}). Build with --dtype float32."
        )
