"""Compiled CPU kernels of the random sketches: the Philox generator and what each family makes of its words.

All of them stand in one file because numba's cache watches only the file that a kernel is written in. They release
the GIL and start no threads of their own; `threads.py` splits their ranges. docs/sketches.md specifies the bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from indexer.sketches.philox import KEY_STEP_0, KEY_STEP_1, MULTIPLIER_0, MULTIPLIER_1, ROUNDS

Array = npt.NDArray[Any]
Kernel = TypeVar("Kernel", bound=Callable[..., Any])

ONE_BITS = 0x3F800000
SIGN_BIT = 0x80000000

_M0, _M1 = np.uint64(MULTIPLIER_0), np.uint64(MULTIPLIER_1)
_W0, _W1 = np.uint32(KEY_STEP_0), np.uint32(KEY_STEP_1)
_32 = np.uint64(32)
_ONE, _SIGN = np.uint32(ONE_BITS), np.uint32(SIGN_BIT)


def compiled(kernel: Kernel) -> Kernel:
    """Compile without the GIL, cached on disk where some cache folder can be written.

    Args:
        kernel: A function in numba's subset of Python.

    Returns:
        The compiled function.
    """
    try:
        return cast(Kernel, njit(nogil=True, cache=True)(kernel))
    except RuntimeError:  # numba finds no folder for its cache (read-only installation without a home): compile anew
        return cast(Kernel, njit(nogil=True)(kernel))


def _intrinsic(kernel: Callable[..., Any]) -> Callable[..., Any]:
    return cast(Callable[..., Any], intrinsic(kernel))


def _inlined(kernel: Kernel) -> Kernel:
    return cast(Kernel, njit(inline="always")(kernel))


@_inlined
def _philox(c0: Any, c1: Any, c2: Any, c3: Any, k0: Any, k1: Any) -> tuple[Any, Any, Any, Any]:
    # Philox4x32-10 on numpy.uint32 scalars; the readable form is `philox.words`.
    for _ in range(ROUNDS):
        a = _M0 * np.uint64(c0)
        b = _M1 * np.uint64(c2)
        c0, c1, c2, c3 = np.uint32(b >> _32) ^ c1 ^ k0, np.uint32(b), np.uint32(a >> _32) ^ c3 ^ k1, np.uint32(a)
        k0 = np.uint32(k0 + _W0)
        k1 = np.uint32(k1 + _W1)
    return c0, c1, c2, c3


@_inlined
def _fill_words(words: Array, calls: Array, parameter: Any, first_call: int, family: int, k0: Any, k1: Any) -> None:
    """Words of consecutive calls of one parameter; `calls` [4, n] is scratch, so that the loop vectorises."""
    n = calls.shape[1]
    low = np.uint32(parameter)
    high = np.uint32(parameter >> _32)
    for c in range(n):
        calls[0, c], calls[1, c], calls[2, c], calls[3, c] = _philox(
            low, high, np.uint32(first_call + c), np.uint32(family), k0, k1
        )
    for c in range(n):
        for w in range(4):
            words[4 * c + w] = calls[w, c]


@compiled
def fill_signs(out: Array, first_parameter: Any, family: int, k0: Any, k1: Any) -> None:
    """Signs of parameters first_parameter, … as the bits of float32 ±1, out uint32 [p, d]."""
    p, d = out.shape
    n = (d + 127) // 128
    calls = np.empty((4, n), np.uint32)
    words = np.empty(4 * n, np.uint32)
    whole = d // 32
    for i in range(p):
        _fill_words(words, calls, np.uint64(first_parameter) + np.uint64(i), 0, family, k0, k1)
        row = out[i]
        for w in range(whole):
            word = words[w]
            for bit in range(32):
                row[32 * w + bit] = _ONE | ((word << np.uint32(31 - bit)) & _SIGN)
        for j in range(32 * whole, d):
            row[j] = _ONE | ((words[whole] << np.uint32(31 - (j - 32 * whole))) & _SIGN)


@compiled
def add_signed(
    gradients: Array, first_parameter: Any, out: Array, first_call: int, family: int, k0: Any, k1: Any
) -> None:
    """Add: out [b, m] += gradients [b, p] times the signs of positions 128·first_call, …, without a block of signs.

    Four parameters at a time: one pass over `out` (a few kB, in the first cache) serves four signs.
    """
    b, p = gradients.shape
    m = out.shape[1]
    n = (m + 127) // 128
    calls = np.empty((4, n), np.uint32)
    words = np.empty(4 * n, np.uint32)
    bits = np.empty((4, 128 * n), np.uint32)
    signs = bits.view(np.float32)
    for i in range(0, p, 4):
        group = min(4, p - i)
        for q in range(group):
            _fill_words(words, calls, np.uint64(first_parameter) + np.uint64(i + q), first_call, family, k0, k1)
            row = bits[q]
            for w in range(4 * n):
                word = words[w]
                for bit in range(32):
                    row[32 * w + bit] = _ONE | ((word << np.uint32(31 - bit)) & _SIGN)
        for r in range(b):
            total = out[r]
            if group == 4:
                g0, g1, g2, g3 = gradients[r, i], gradients[r, i + 1], gradients[r, i + 2], gradients[r, i + 3]
                for j in range(m):
                    total[j] += (g0 * signs[0, j] + g1 * signs[1, j]) + (g2 * signs[2, j] + g3 * signs[3, j])
            else:
                for q in range(group):
                    g = gradients[r, i + q]
                    for j in range(m):
                        total[j] += g * signs[q, j]


@compiled
def fill_from_table(out: Array, first_parameter: Any, family: int, k0: Any, k1: Any, table: Array) -> None:
    """Entries of parameters first_parameter, … looked up by 16-bit halves, out float32 [p, d], table float32 [2¹⁶]."""
    p, d = out.shape
    n = (d + 7) // 8
    calls = np.empty((4, n), np.uint32)
    words = np.empty(4 * n, np.uint32)
    for i in range(p):
        _fill_words(words, calls, np.uint64(first_parameter) + np.uint64(i), 0, family, k0, k1)
        row = out[i]
        for w in range(d // 2):
            word = words[w]
            row[2 * w] = table[word & np.uint32(0xFFFF)]
            row[2 * w + 1] = table[word >> np.uint32(16)]
        if d % 2:
            row[d - 1] = table[words[d // 2] & np.uint32(0xFFFF)]


@compiled
def fill_buckets(codes: Array, first_parameter: Any, family: int, k0: Any, k1: Any, width: int) -> None:
    """Codes 2·position + sign of each copy of parameters first_parameter, …: uint16 or uint32 [s, p]; width is d / s.

    A call serves two copies; the loop over parameters is the inner one, so that it vectorises.
    """
    s, p = codes.shape
    group = 512
    words = np.empty((4, group), np.uint32)
    for begin in range(0, p, group):
        n = min(group, p - begin)
        first = np.uint64(first_parameter) + np.uint64(begin)
        for call in range((s + 1) // 2):
            for i in range(n):
                q = first + np.uint64(i)
                words[0, i], words[1, i], words[2, i], words[3, i] = _philox(
                    np.uint32(q), np.uint32(q >> _32), np.uint32(call), np.uint32(family), k0, k1
                )
            for half in range(min(2, s - 2 * call)):
                k = 2 * call + half
                for i in range(n):
                    place = np.uint64(k * width) + ((np.uint64(words[2 * half, i]) * np.uint64(width)) >> _32)
                    codes[k, begin + i] = np.uint64(2) * place + np.uint64(words[2 * half + 1, i] & np.uint32(1))


LANES = 16
"""Rows that one scatter adds side by side: a cache line of float32."""


def _at(context: Any, builder: Any, kind: Any, array: Any, place: Any) -> Any:
    # Address of LANES floats in an array, counted from its first entry
    pointer = context.make_array(kind)(context, builder, array).data
    return builder.bitcast(builder.gep(pointer, [place]), ir.VectorType(ir.FloatType(), LANES).as_pointer())


def _load(builder: Any, address: Any) -> Any:
    loaded = builder.load(address)
    loaded.align = 4
    return loaded


def _spread(builder: Any, value: Any) -> Any:
    kind = ir.VectorType(value.type, LANES)
    nothing, first = ir.Constant(kind, ir.Undefined), ir.Constant(ir.IntType(32), 0)
    all_first = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
    return builder.shuffle_vector(builder.insert_element(nothing, value, first), nothing, all_first)


def _transposed(builder: Any, vectors: list[Any]) -> list[Any]:
    # Four perfect shuffles of sixteen vectors: each interleaves vector k with vector k + 8.
    half = LANES // 2
    indices = ir.VectorType(ir.IntType(32), LANES)
    low, high = (ir.Constant(indices, [start + i // 2 + LANES * (i % 2) for i in range(LANES)]) for start in (0, half))
    for _ in range(LANES.bit_length() - 1):
        pairs = [(vectors[k], vectors[k + half]) for k in range(half)]
        vectors = [builder.shuffle_vector(*pair, mask) for pair in pairs for mask in (low, high)]
    return vectors


@_intrinsic
def _add_lanes(typing: Any, total: Any, place: Any, values: Any, at: Any, flip: Any) -> tuple[Any, Any]:
    # total[place : place + LANES] += values[at : at + LANES] with the sign bits that `flip` sets turned over, as one
    # vector operation: numba's loop vectoriser leaves so short a loop alone.
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        words, floats = (ir.VectorType(kind, LANES) for kind in (ir.IntType(32), ir.FloatType()))
        target = _at(context, builder, signature.args[0], args[0], args[1])
        added = _load(builder, _at(context, builder, signature.args[2], args[2], args[3]))
        signed = builder.xor(builder.bitcast(added, words), _spread(builder, args[4]))
        builder.store(builder.fadd(_load(builder, target), builder.bitcast(signed, floats)), target).align = 4
        return context.get_dummy_value()

    return types.void(total, types.intp, values, types.intp, types.uint32), generate


@_intrinsic
def _to_lanes(typing: Any, rows: Any, at: Any, stride: Any, lanes: Any, place: Any, scale: Any) -> tuple[Any, Any]:
    # LANES columns of LANES rows that lie `stride` apart, times scale, to lanes[place : place + LANES²], transposed.
    # Each row's cache line is read once: rows a power of two apart share a set that holds fewer than sixteen lines.
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        factor = _spread(builder, args[5])
        places = [builder.add(args[1], builder.mul(args[2], ir.Constant(args[2].type, r))) for r in range(LANES)]
        read = [_load(builder, _at(context, builder, signature.args[0], args[0], place)) for place in places]
        for i, vector in enumerate(_transposed(builder, [builder.fmul(row, factor) for row in read])):
            place = builder.add(args[4], ir.Constant(args[4].type, LANES * i))
            builder.store(vector, _at(context, builder, signature.args[3], args[3], place)).align = 4
        return context.get_dummy_value()

    return types.void(rows, types.intp, types.intp, lanes, types.intp, types.float32), generate


@_intrinsic
def _from_lanes(typing: Any, lanes: Any, place: Any, rows: Any, at: Any, stride: Any) -> tuple[Any, Any]:
    # The way back, added to what the rows hold.
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        places = [builder.add(args[1], ir.Constant(args[1].type, LANES * i)) for i in range(LANES)]
        read = [_load(builder, _at(context, builder, signature.args[0], args[0], place)) for place in places]
        for r, vector in enumerate(_transposed(builder, read)):
            place = builder.add(args[3], builder.mul(args[4], ir.Constant(args[4].type, r)))
            target = _at(context, builder, signature.args[2], args[2], place)
            builder.store(builder.fadd(_load(builder, target), vector), target).align = 4
        return context.get_dummy_value()

    return types.void(lanes, types.intp, rows, types.intp, types.intp), generate


@compiled
def scatter_lanes(gradients: Array, codes: Array, scale: Any, lanes: Array, totals: Array) -> None:
    """Add: totals [d · LANES] += LANES rows of gradients [LANES, p] at their signed positions, codes [s, p].

    Entries of a gradient row lie side by side. `lanes` [p · LANES] is scratch for the transposed rows, so that a
    position's sixteen sums lie side by side: one vector addition takes the place of sixteen. A copy's positions are a
    d/s part of the totals, which the cache holds.
    """
    p = gradients.shape[1]
    stride = gradients.strides[0] // 4
    whole = p // LANES * LANES
    for i in range(0, whole, LANES):
        _to_lanes(gradients, i, stride, lanes, LANES * i, scale)
    for i in range(whole, p):
        for r in range(LANES):
            lanes[LANES * i + r] = gradients[r, i] * scale
    for k in range(codes.shape[0]):
        for i in range(p):
            code = np.uint32(codes[k, i])
            _add_lanes(totals, np.int64(code >> np.uint32(1)) * LANES, lanes, i * LANES, code << np.uint32(31))


ROWS_AT_ONCE, COLUMNS_AT_ONCE, PRODUCT_COLUMNS = 4, 3, 64
"""Rows and columns of a weight whose sums over positions are formed in registers together; most columns of a tile."""


@_intrinsic
def _add_products(
    typing: Any, left: Any, at: Any, row_step: Any, position_step: Any, right: Any, first: Any, second: Any, third: Any,
    positions: Any, lanes: Any, place: Any, stride: Any,
) -> tuple[Any, Any]:  # fmt: skip
    # lanes[place + stride · r + LANES · c :] = Σ_p left[at + row_step · r + position_step · p :] · right[column c +
    # positions[p] :] for four rows and three columns; half of the lanes at a time, so that registers hold the sums.
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.VectorType(ir.FloatType(), LANES // 2)
        arrays = {n: context.make_array(signature.args[n])(context, builder, args[n]) for n in (0, 4, 8, 9)}
        word = args[1].type

        def address(array: int, place: Any) -> Any:
            return builder.bitcast(builder.gep(arrays[array].data, [place]), kind.as_pointer())

        for half in (0, LANES // 2):
            sums = [cgutils.alloca_once(builder, kind) for _ in range(ROWS_AT_ONCE * COLUMNS_AT_ONCE)]
            for total in sums:
                builder.store(ir.Constant(kind, [0.0] * (LANES // 2)), total)
            with cgutils.for_range(builder, builder.extract_value(arrays[8].shape, 0)) as loop:
                shift = builder.add(builder.load(builder.gep(arrays[8].data, [loop.index])), ir.Constant(word, half))
                factors = [_load(builder, address(4, builder.add(column, shift))) for column in args[5:8]]
                start = builder.add(builder.add(args[1], builder.mul(args[3], loop.index)), ir.Constant(word, half))
                for r in range(ROWS_AT_ONCE):
                    row = builder.add(start, builder.mul(args[2], ir.Constant(word, r)))
                    factor = _load(builder, address(0, row))
                    for c, total in enumerate(sums[COLUMNS_AT_ONCE * r : COLUMNS_AT_ONCE * (r + 1)]):
                        product = builder.fmul(factor, factors[c], flags=("contract",))
                        builder.store(builder.fadd(builder.load(total), product, flags=("contract",)), total)
            for r in range(ROWS_AT_ONCE):
                row = builder.add(args[10], builder.mul(args[11], ir.Constant(word, r)))
                for c in range(COLUMNS_AT_ONCE):
                    there = builder.add(row, ir.Constant(word, LANES * c + half))
                    builder.store(builder.load(sums[COLUMNS_AT_ONCE * r + c]), address(9, there)).align = 4
        return context.get_dummy_value()

    n = types.intp
    return types.void(left, n, n, n, right, n, n, n, positions, lanes, n, n), generate


@compiled
def to_lanes(rows: Array, scale: Any, lanes: Array) -> None:
    """Write: lanes [n · LANES] = LANES rows [LANES, n] times scale, transposed."""
    n = rows.shape[1]
    whole = n // LANES * LANES
    for i in range(0, whole, LANES):
        _to_lanes(rows, i, rows.strides[0] // 4, lanes, LANES * i, scale)
    for i in range(whole, n):
        for r in range(LANES):
            lanes[LANES * i + r] = rows[r, i] * scale


@compiled
def scatter_products(
    left: Array, row_step: int, position_step: int, right: Array, columns: Array, positions: Array, first_row: int,
    codes: Array, lanes: Array, totals: Array,
) -> None:  # fmt: skip
    """Add LANES gradients given by `Factors` at their signed positions: a tile of them is all that is written.

    `left` and `right` hold lanes, and steps and places count their floats. `codes` [s, rows · columns] begin at row
    `first_row`; `lanes` is scratch of ROWS_AT_ONCE · PRODUCT_COLUMNS · LANES.
    """
    width = columns.shape[0]
    rows = codes.shape[1] // width
    parts = (width + PRODUCT_COLUMNS - 1) // PRODUCT_COLUMNS
    for part in range(parts):
        begin, end = width * part // parts, width * (part + 1) // parts
        stride = LANES * (end - begin)
        row = 0
        while row < rows:
            # The last rows and columns are formed with some that were formed before: one shape serves all.
            top = min(row, rows - ROWS_AT_ONCE)
            c = begin
            while c < end:
                here = min(c, end - COLUMNS_AT_ONCE)
                _add_products(
                    left, (first_row + top) * row_step, row_step, position_step, right,
                    columns[here], columns[here + 1], columns[here + 2], positions,
                    lanes, LANES * (here - begin), stride,
                )  # fmt: skip
                c += COLUMNS_AT_ONCE
            for k in range(codes.shape[0]):
                for r in range(row, min(row + ROWS_AT_ONCE, rows)):
                    at = (r - top) * stride
                    for c in range(begin, end):
                        code = np.uint32(codes[k, r * width + c])
                        place = np.int64(code >> np.uint32(1)) * LANES
                        _add_lanes(totals, place, lanes, at + LANES * (c - begin), code << np.uint32(31))
            row += ROWS_AT_ONCE


@compiled
def add_lanes(totals: Array, out: Array) -> None:
    """Add the first rows of totals [d · LANES] to out [b, d], whose rows' entries lie side by side."""
    b, d = out.shape
    whole = d // LANES * LANES if b == LANES else 0
    for j in range(0, whole, LANES):
        _from_lanes(totals, LANES * j, out, j, out.strides[0] // 4)
    for j in range(whole, d):
        for r in range(b):
            out[r, j] += totals[LANES * j + r]


@compiled
def scatter_row(gradients: Array, codes: Array, scale: Any, total: Array) -> None:
    """Add: total [d] += one row of gradients [p] at its signed positions, in the order of `scatter_lanes`."""
    for i in range(gradients.shape[0]):
        g = gradients[i] * scale
        for k in range(codes.shape[0]):
            code = np.uint32(codes[k, i])
            total[code >> np.uint32(1)] += -g if code & np.uint32(1) else g
