"""Reading stored rows at the speed of memory: float64 products with one vector, and copies in float64 or float32.

numpy and torch widen float16 at 3 to 12 ns a value, which costs more than everything else in an answer. The kernels
here widen by integer arithmetic in registers, at a quarter of a nanosecond, straight from the memory map. They run
without the GIL, on all cores where rows are many, and a row's sum is formed the same way whatever stands beside it.
"""

from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from indexer.attributor.compiled import compiled_in_lanes
from indexer.attributor.scan_threads import in_pieces
from sketchstore.view import View

Array = npt.NDArray[Any]

#: Values widened at a time: they stay in the innermost cache.
_BLOCK = 1024
_SIGN, _REST, _EXPONENT = np.uint32(0x8000), np.uint32(0x7FFF), np.uint32(0x7C00)
_13, _16, _0 = np.uint32(13), np.uint32(16), np.uint32(0)
_REBIAS = np.uint32((127 - 15) << 23)
_SMALLEST_NORMAL = np.uint32((127 - 14) << 23)  # 2⁻¹⁴ as float32
_UNSHIFT = 2.0**112
#: The smallest float32, to find out whether the calling thread flushes it to zero.
_SUBNORMAL = np.array([1], np.uint32).view(np.float32)


@compiled_in_lanes
def _widen(half, words, offsets):  # type: ignore[no-untyped-def]
    """Float16 bits to float32 bits, exactly: value = words − offsets.

    A subnormal has no leading one. It gets one here, by the exponent of 2⁻¹⁴, and ``offsets`` takes it away again: no
    subnormal float32 arises, so a thread that flushes those to zero computes the same.
    """
    for j in range(half.shape[0]):
        bits = np.uint32(half[j])
        sign = (bits & _SIGN) << _16
        offset = _SMALLEST_NORMAL if (bits & _EXPONENT) == _0 else _0
        base = _SMALLEST_NORMAL if (bits & _EXPONENT) == _0 else _REBIAS
        words[j] = sign | (((bits & _REST) << _13) + base)
        offsets[j] = sign | offset


@compiled_in_lanes
def _shift(half, words):  # type: ignore[no-untyped-def]
    """Float16 bits to float32 bits, exactly: value = words · 2¹¹², where float16 subnormals are float32 subnormals."""
    for j in range(half.shape[0]):
        bits = np.uint32(half[j])
        words[j] = ((bits & _SIGN) << _16) | ((bits & _REST) << _13)


@compiled_in_lanes
def _dot_difference(values, offsets, vector):  # type: ignore[no-untyped-def]
    total = 0.0
    for j in range(vector.shape[0]):
        total += np.float64(values[j] - offsets[j]) * vector[j]
    return total


@compiled_in_lanes
def _dot(values, vector):  # type: ignore[no-untyped-def]
    total = 0.0
    for j in range(vector.shape[0]):
        total += np.float64(values[j]) * vector[j]
    return total


@compiled_in_lanes
def _products_half(stored, rows, vectors, scale, out, subnormal, first, last):  # type: ignore[no-untyped-def]
    words, offsets = np.empty(_BLOCK, np.uint32), np.empty(_BLOCK, np.uint32)
    values, minus = words.view(np.float32), offsets.view(np.float32)
    dim = stored.shape[1]
    # Shifting is twice as fast, but not for a thread that some library has set to flush subnormals to zero.
    flushes = np.float64(subnormal[0]) * _UNSHIFT == 0.0
    unit = scale if flushes else _UNSHIFT * scale
    totals = np.empty(vectors.shape[0])
    for i in range(first, last):
        totals[:] = 0.0
        for left in range(0, dim, _BLOCK):
            right = min(left + _BLOCK, dim)
            if flushes:
                _widen(stored[rows[i], left:right], words, offsets)
            else:
                _shift(stored[rows[i], left:right], words)
            for b in range(vectors.shape[0]):
                if flushes:
                    totals[b] += _dot_difference(values, minus, vectors[b, left:right])
                else:
                    totals[b] += _dot(values, vectors[b, left:right])
        for b in range(vectors.shape[0]):
            out[b, i] = totals[b] * unit


@compiled_in_lanes
def _products_single(stored, rows, vectors, scale, out, first, last):  # type: ignore[no-untyped-def]
    """Four rows at a time, which share what is loaded of a vector; at the end the last row stands in for those missing.

    The four sums are formed alike, so that a row's bits do not depend on its place.
    """
    for i in range(first, last, 4):
        i1, i2, i3 = min(i + 1, last - 1), min(i + 2, last - 1), min(i + 3, last - 1)
        row, row1, row2, row3 = rows[i], rows[i1], rows[i2], rows[i3]
        for b in range(vectors.shape[0]):
            total, total1, total2, total3 = 0.0, 0.0, 0.0, 0.0
            for j in range(vectors.shape[1]):
                value = vectors[b, j]
                total += np.float64(stored[row, j]) * value
                total1 += np.float64(stored[row1, j]) * value
                total2 += np.float64(stored[row2, j]) * value
                total3 += np.float64(stored[row3, j]) * value
            out[b, i], out[b, i1], out[b, i2], out[b, i3] = (
                total * scale,
                total1 * scale,
                total2 * scale,
                total3 * scale,
            )


@compiled_in_lanes
def _copy_half(stored, rows, scale, out, first, last):  # type: ignore[no-untyped-def]
    words, offsets = np.empty(_BLOCK, np.uint32), np.empty(_BLOCK, np.uint32)
    values, minus = words.view(np.float32), offsets.view(np.float32)
    dim = stored.shape[1]
    for i in range(first, last):
        for left in range(0, dim, _BLOCK):
            right = min(left + _BLOCK, dim)
            _widen(stored[rows[i], left:right], words, offsets)
            for j in range(right - left):
                out[i, left + j] = (values[j] - minus[j]) * scale


@compiled_in_lanes
def _copy_single(stored, rows, scale, out, first, last):  # type: ignore[no-untyped-def]
    for i in range(first, last):
        for j in range(stored.shape[1]):
            out[i, j] = stored[rows[i], j] * scale


class StoredRows:
    """The rows of one view.

    Args:
        view: The view, float16 or float32.
    """

    def __init__(self, view: View) -> None:
        self.dim = view.sketch_dim
        self._view = view
        self._half = view.storage_dtype == np.float16
        self._starts = view.shard_starts

    @property
    def bytes_per_row(self) -> int:
        """What reading one row costs."""
        return self.dim * self._view.storage_dtype.itemsize

    def products(self, rows: Tensor, vectors: Tensor) -> Tensor:
        """Multiply stored rows with one vector or several, in float64, on all cores where rows are many.

        Rows are read once for all vectors. A product's bits depend on its row and its vector only.

        Args:
            rows: Row numbers, int64 [m].
            vectors: float64 [d] or [b, d], in measurement units.

        Returns:
            φ_n · vector, float64 [m] or [b, m], measurement².
        """
        values = np.ascontiguousarray(np.atleast_2d(vectors.numpy()), dtype=np.float64)
        out = np.empty((values.shape[0], rows.numel()))
        for stored, local, places in self._by_shard(rows):
            part = out if isinstance(places, slice) else np.empty((values.shape[0], local.size))
            in_pieces(partial(self._multiply, stored, local, values, part), local.size)
            if part is not out:
                out[:, places] = part
        products = torch.from_numpy(out)
        return products if vectors.ndim == 2 else products[0]

    def read(self, rows: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
        """Copy stored rows, exactly, on all cores where they are many.

        Args:
            rows: Row numbers, int64 [m].
            dtype: torch.float64 or torch.float32.

        Returns:
            Sketches in measurement units, shape [m, d].
        """
        number = np.float64 if dtype == torch.float64 else np.float32
        out = np.empty((rows.numel(), self.dim), number)
        for stored, local, places in self._by_shard(rows):
            part = out if isinstance(places, slice) else np.empty((local.size, self.dim), number)
            in_pieces(partial(self._copy, stored, local, number(self._view.scale), part), local.size)
            if part is not out:
                out[places] = part
        return torch.from_numpy(out)

    def sketches(self, rows: Tensor) -> Tensor:
        """Copy stored rows as float64: what decides.

        Args:
            rows: Row numbers, int64 [m].

        Returns:
            Sketches in measurement units, float64 [m, d].
        """
        return self.read(rows)

    def _multiply(self, stored: Array, rows: Array, vectors: Array, out: Array, first: int, last: int) -> None:
        if self._half:
            _products_half(stored, rows, vectors, self._view.scale, out, _SUBNORMAL, first, last)
        else:
            _products_single(stored, rows, vectors, self._view.scale, out, first, last)

    def _copy(self, stored: Array, rows: Array, scale: Any, out: Array, first: int, last: int) -> None:
        kernel = _copy_half if self._half else _copy_single
        kernel(stored, rows, scale, out, first, last)

    def _by_shard(self, rows: Tensor) -> list[tuple[Array, npt.NDArray[np.int64], Any]]:
        # By shard: its bits or values, lines within it, and their positions among ``rows``.
        wanted = self._view.places(rows)
        if self._view.num_shards == 1:
            return [(self._shard(0), wanted, slice(None))]
        shards = np.searchsorted(self._starts, wanted, side="right") - 1
        pieces: list[tuple[Array, npt.NDArray[np.int64], Any]] = []
        for number in np.unique(shards).tolist():
            places = np.flatnonzero(shards == number)
            pieces.append((self._shard(number), wanted[places] - self._starts[number], places))
        return pieces

    def _shard(self, number: int) -> Array:
        # Mapped when it is first read, and not before.
        stored = self._view.shard(number)
        return stored.view(np.uint16) if self._half else stored


def compile_kernels(storage_dtype: np.dtype[np.floating]) -> None:
    """Compile, or load from numba's cache, what reads stored rows, on arrays of one value.

    Args:
        storage_dtype: float16 or float32.
    """
    half = storage_dtype == np.float16
    stored = np.zeros((1, 1), np.uint16 if half else np.float32)
    rows, vectors, out = np.zeros(1, np.int64), np.zeros((1, 1)), np.zeros((1, 1))
    if half:
        _products_half(stored, rows, vectors, 1.0, out, _SUBNORMAL, 0, 1)
    else:
        _products_single(stored, rows, vectors, 1.0, out, 0, 1)
    for number in (np.float64, np.float32):
        (_copy_half if half else _copy_single)(stored, rows, number(1), np.zeros((1, 1), number), 0, 1)
