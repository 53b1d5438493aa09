"""Sums of products of 8-bit codes with 16-bit integers, in vectors: what scans of codes spend their time on.

A compiler left alone multiplies eight pairs at a time. Here the loop is written in vectors of 64, in the terms of no
particular processor, from which each makes what it has (``vpmaddwd``, dot products of four).
"""

from collections.abc import Callable
from typing import Any, cast

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.errors import TypingError
from numba.extending import intrinsic

#: Values multiplied together. Of longer rows the rest, of shorter ones all, is multiplied one by one.
LANES = 64


def _emit_sums(context: Any, builder: Any, signature: Any, values: Any) -> Any:
    # The sums of some rows with a vector over the first `whole` values, a multiple of LANES.
    codes_type, *row_types, vector_type, _ = signature.args
    codes = cgutils.create_struct_proxy(codes_type)(context, builder, values[0])
    vector = cgutils.create_struct_proxy(vector_type)(context, builder, values[-2])
    whole = values[-1]
    number, half, byte = ir.IntType(32), ir.IntType(16), ir.IntType(8)
    dim = builder.extract_value(codes.shape, 1)
    starts = [builder.gep(codes.data, [builder.mul(row, dim)]) for row in values[1 : 1 + len(row_types)]]
    totals = [cgutils.alloca_once(builder, ir.VectorType(number, LANES // 2)) for _ in starts]
    for total in totals:
        builder.store(ir.Constant(total.type.pointee, None), total)

    def load(pointer: Any, place: Any, element: Any) -> Any:
        wide = ir.VectorType(element, LANES)
        narrow = builder.load(builder.bitcast(builder.gep(pointer, [place]), wide.as_pointer()), align=1)
        return builder.sext(narrow, ir.VectorType(number, LANES))

    pairs = ir.VectorType(number, LANES // 2)
    evens, odds = (ir.Constant(pairs, list(range(first, LANES, 2))) for first in (0, 1))
    with cgutils.for_range_slice(builder, ir.Constant(whole.type, 0), whole, ir.Constant(whole.type, LANES)) as (at, _):
        factor = load(vector.data, at, half)
        for start, total in zip(starts, totals, strict=True):
            products = builder.mul(load(start, at, byte), factor)
            # Sums of neighbours: int16 pairs to int32, one instruction where there is one.
            neighbours = builder.add(
                builder.shuffle_vector(products, products, evens), builder.shuffle_vector(products, products, odds)
            )
            builder.store(builder.add(builder.load(total), neighbours), total)
    reduce_add = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(number, [pairs]), f"llvm.vector.reduce.add.v{LANES // 2}i32"
    )
    sums = [builder.call(reduce_add, [builder.load(total)]) for total in totals]
    return cgutils.pack_array(builder, sums) if len(sums) > 1 else sums[0]


def _intrinsic(function: Callable[..., Any]) -> Callable[..., Any]:
    # Called in compiled code only, without the first argument.
    return cast(Callable[..., Any], intrinsic(function))


def _check_rows_follow(codes: Any, vector: Any) -> None:
    if codes.layout != "C" or codes.dtype != types.int8 or vector.layout != "C" or vector.dtype != types.int16:
        raise TypingError(f"codes are int8 and vectors int16, one row after the other; got {codes} and {vector}.")


@_intrinsic
def sum_of_one(typing: Any, codes: Any, row: Any, vector: Any, whole: Any) -> Any:
    """Multiply one row of the codes with a vector; to be called compiled, as ``sum_of_one(codes, row, vector, whole)``.

    Args:
        typing: numba's.
        codes: int8 [n, k].
        row: Which.
        vector: int16 [k].
        whole: Values to multiply, from the first; a multiple of ``LANES``.

    Returns:
        The sum, int32, exact while it fits.
    """
    _check_rows_follow(codes, vector)
    return types.int32(codes, types.intp, vector, types.intp), _emit_sums


@_intrinsic
def sums_of_four(typing: Any, codes: Any, one: Any, two: Any, three: Any, four: Any, vector: Any, whole: Any) -> Any:
    """Multiply four rows at once: scattered rows come from memory together faster than one by one.

    Args:
        typing: numba's.
        codes: int8 [n, k].
        one: The first row.
        two: The second.
        three: The third.
        four: The fourth.
        vector: int16 [k].
        whole: Values to multiply, from the first; a multiple of ``LANES``.

    Returns:
        Four sums, int32, exact while they fit.
    """
    _check_rows_follow(codes, vector)
    rows = [types.intp] * 4
    return types.UniTuple(types.int32, 4)(codes, *rows, vector, types.intp), _emit_sums
