"""Dense random signs on a GPU: a product with R whose signs are drawn in registers and never written anywhere.

The bits are those of docs/sketches.md, as in `kernels.py` and `philox.py`: one Philox call per parameter gives the 128
signs of its 128 positions. Only this file needs Triton; `RademacherSketch.add` falls back to torch without it. Triton's
interpreter (TRITON_INTERPRET=1) runs the same kernel on a CPU, which is how the tests do.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from indexer.sketches.philox import KEY_STEP_0, KEY_STEP_1, MULTIPLIER_0, MULTIPLIER_1, ROUNDS, Stream, key

POSITIONS = 128
"""Positions of a program: the signs of one Philox call."""
ROWS = 64
"""Rows of a program: what one sign is used for once it is drawn."""
PARAMETERS = 32
"""Parameters of one step of a program."""

_ROUNDS = tl.constexpr(ROUNDS)
_M0, _M1 = tl.constexpr(MULTIPLIER_0), tl.constexpr(MULTIPLIER_1)
_W0, _W1 = tl.constexpr(KEY_STEP_0), tl.constexpr(KEY_STEP_1)
_STREAM = tl.constexpr(Stream.RADEMACHER.value)
_FACTORS = {
    "float32": (tl.float32, "ieee"),
    "bfloat16": (tl.bfloat16, "ieee"),
    # float16 rows carry a power of two each; TF32 holds their eleven digits exactly, with float32's exponents.
    "float16": (tl.float32, "tf32"),
}


@triton.jit  # type: ignore[untyped-decorator]
def _add_signed(
    gradients: Any,
    out: Any,
    rows: Any,
    parameters: Any,
    dim: Any,
    offset: Any,
    row_stride: Any,
    parameter_stride: Any,
    out_stride: Any,
    key_low: Any,
    key_high: Any,
    scale: Any,
    row_block: tl.constexpr,
    parameter_block: tl.constexpr,
    position_block: tl.constexpr,
    dtype: tl.constexpr,
    precision: tl.constexpr,
) -> None:
    row = tl.program_id(0) * row_block + tl.arange(0, row_block)
    call = tl.program_id(1)
    position = tl.arange(0, position_block)
    total = tl.zeros((row_block, position_block), dtype=tl.float32)
    for first in range(0, parameters, parameter_block):
        parameter = first + tl.arange(0, parameter_block)
        coordinate = offset + parameter.to(tl.int64)
        # Philox4x32-10 on the counter (q low, q high, call, family)
        x0 = (coordinate & 0xFFFFFFFF).to(tl.uint32)
        x1 = (coordinate >> 32).to(tl.uint32)
        x2 = tl.zeros_like(x0) + call.to(tl.uint32)
        x3 = tl.zeros_like(x0) + _STREAM
        # Triton may pass a small integer as a constant without a type, so sums come before conversions.
        k0 = (tl.zeros_like(coordinate) + key_low).to(tl.uint32)
        k1 = (tl.zeros_like(coordinate) + key_high).to(tl.uint32)
        for _ in tl.static_range(_ROUNDS):
            a = x0.to(tl.uint64) * _M0
            b = x2.to(tl.uint64) * _M1
            x0 = (b >> 32).to(tl.uint32) ^ x1 ^ k0
            x1 = (b & 0xFFFFFFFF).to(tl.uint32)
            x2 = (a >> 32).to(tl.uint32) ^ x3 ^ k1
            x3 = (a & 0xFFFFFFFF).to(tl.uint32)
            k0 = k0 + _W0
            k1 = k1 + _W1
        word = position[None, :] // 32
        bits = tl.where(
            word == 0, x0[:, None], tl.where(word == 1, x1[:, None], tl.where(word == 2, x2[:, None], x3[:, None]))
        )
        negative = (bits >> (position[None, :] % 32).to(tl.uint32)) & 1
        signs = (1.0 - 2.0 * negative.to(tl.float32)).to(dtype)
        values = tl.load(
            gradients + row[:, None].to(tl.int64) * row_stride + parameter[None, :].to(tl.int64) * parameter_stride,
            mask=(row[:, None] < rows) & (parameter[None, :] < parameters),
            other=0.0,
        )
        # Products with signs are exact in every type; only the sums round, in float32.
        total += tl.dot(values.to(dtype), signs, input_precision=precision)
    place = call * position_block + position
    target = out + row[:, None].to(tl.int64) * out_stride + place[None, :]
    inside = (row[:, None] < rows) & (place[None, :] < dim)
    tl.store(target, tl.load(target, mask=inside, other=0.0) + total * scale, mask=inside)


def add_signed(
    gradients: Tensor, offset: int, out: Tensor, seed: int, scale: float, compute_dtype: str = "float32"
) -> None:
    """Add: out [b, d] += scale · gradients [b, p] times the signs of parameters offset, ….

    Every position of every row is summed by one program in the parameters' order, so the bits repeat.

    Args:
        gradients: float32 [b, p] on the GPU; rounded to ``compute_dtype`` already.
        offset: Index of the first parameter.
        out: float32 [b, d] on the same device, rows contiguous; changed in place.
        seed: Seed of the sketch.
        scale: 1/√d.
        compute_dtype: Type of the factors; sums are float32.
    """
    rows, parameters = gradients.shape
    if rows == 0 or parameters == 0:
        return
    low, high = key(seed)
    dtype, precision = _FACTORS[compute_dtype]
    grid = (triton.cdiv(rows, ROWS), triton.cdiv(out.shape[1], POSITIONS))
    _add_signed[grid](
        gradients, out, rows, parameters, out.shape[1], offset,
        gradients.stride(0), gradients.stride(1), out.stride(0), low, high, scale,
        row_block=ROWS, parameter_block=PARAMETERS, position_block=POSITIONS, dtype=dtype, precision=precision,
    )  # fmt: skip
