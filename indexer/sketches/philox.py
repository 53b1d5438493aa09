"""The counter-based generator of every random sketch: Philox4x32-10, its torch form and its constants.

Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011). A call takes a 128-bit counter
and a 64-bit key to four 32-bit words; nothing is kept between calls, so any part of R can be made anywhere, in any
order. The compiled twin of `words` is in `kernels.py`; both give the same bits.
"""

from __future__ import annotations

from enum import IntEnum

import torch
from torch import Tensor

ROUNDS = 10
MULTIPLIER_0 = 0xD2511F53
MULTIPLIER_1 = 0xCD9E8D57
KEY_STEP_0 = 0x9E3779B9
KEY_STEP_1 = 0xBB67AE85
LOW_32 = 0xFFFFFFFF


class Stream(IntEnum):
    """Last word of the counter, so that no two families share words."""

    RADEMACHER = 0
    GAUSSIAN = 1
    SJLT = 2


def key(seed: int) -> tuple[int, int]:
    """Key of a seed: its low and its high 32 bits.

    Args:
        seed: 0 ≤ seed < 2⁶⁴.

    Returns:
        The two key words.
    """
    return seed & LOW_32, seed >> 32


def words(counter: tuple[Tensor, Tensor, Tensor, Tensor], key_words: tuple[int, int]) -> Tensor:
    """Ten rounds of Philox on int64 tensors that hold 32-bit values.

    int64 products wrap, but the low 64 bits are the product's own: shifting right and masking gives the high half.

    Args:
        counter: The four counter words, int64 tensors that broadcast together.
        key_words: The two key words.

    Returns:
        The four output words in the last dimension, int64 values in [0, 2³²).
    """
    c0, c1, c2, c3 = torch.broadcast_tensors(*counter)  # type: ignore[no-untyped-call]
    k0, k1 = key_words
    for _ in range(ROUNDS):
        a, b = c0 * MULTIPLIER_0, c2 * MULTIPLIER_1
        c0, c1, c2, c3 = (
            ((b >> 32) & LOW_32) ^ c1 ^ k0,
            b & LOW_32,
            ((a >> 32) & LOW_32) ^ c3 ^ k1,
            a & LOW_32,
        )
        k0, k1 = (k0 + KEY_STEP_0) & LOW_32, (k1 + KEY_STEP_1) & LOW_32
    return torch.stack((c0, c1, c2, c3), dim=-1)


def parameter_words(
    seed: int, stream: Stream, first_parameter: int, num_parameters: int, num_calls: int, device: torch.device
) -> Tensor:
    """Words of consecutive parameters, by the counter (parameter low, parameter high, call, stream).

    Args:
        seed: Key of the sketch.
        stream: Which family asks.
        first_parameter: Index of the first parameter in the parameter list's order.
        num_parameters: How many parameters, p.
        num_calls: How many calls per parameter; each gives four words.
        device: Where to compute.

    Returns:
        int64 [p, 4·num_calls], values in [0, 2³²), call by call.
    """
    parameters = torch.arange(first_parameter, first_parameter + num_parameters, device=device).unsqueeze(1)
    calls = torch.arange(num_calls, device=device).unsqueeze(0)
    last = torch.tensor(int(stream), device=device)
    counter = (parameters & LOW_32, parameters >> 32, calls, last)
    return words(counter, key(seed)).reshape(num_parameters, 4 * num_calls)
