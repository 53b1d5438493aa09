"""Reading stored rows at the speed of memory: float64 products with one vector, and copies in float64 or float32.

numpy and torch widen float16 at 3 to 12 ns a value, which costs more than everything else in an answer. The kernels
here widen by integer arithmetic in registers, at a quarter of a nanosecond, straight from the memory map. They run in
the calling thread without the GIL, and a row's sum is formed the same way whatever stands beside it.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from numba import njit
from torch import Tensor

from sketchstore.errors import UnknownRowError
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
#: Sums may be split into lanes, always the same way, and use fused multiply-adds; nothing else is relaxed.
_LANES = {"reassoc", "contract"}


def _compiled(kernel: Callable[..., Any]) -> Callable[..., Any]:
    jit: Any = njit
    try:
        function: Callable[..., Any] = jit(nogil=True, cache=True, fastmath=_LANES)(kernel)
    except RuntimeError:  # numba finds no folder for its cache (read-only installation without a home): compile anew
        function = jit(nogil=True, fastmath=_LANES)(kernel)
    return function


@_compiled
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


@_compiled
def _shift(half, words):  # type: ignore[no-untyped-def]
    """Float16 bits to float32 bits, exactly: value = words · 2¹¹², where float16 subnormals are float32 subnormals."""
    for j in range(half.shape[0]):
        bits = np.uint32(half[j])
        words[j] = ((bits & _SIGN) << _16) | ((bits & _REST) << _13)


@_compiled
def _dot_difference(values, offsets, vector):  # type: ignore[no-untyped-def]
    total = 0.0
    for j in range(vector.shape[0]):
        total += np.float64(values[j] - offsets[j]) * vector[j]
    return total


@_compiled
def _dot(values, vector):  # type: ignore[no-untyped-def]
    total = 0.0
    for j in range(vector.shape[0]):
        total += np.float64(values[j]) * vector[j]
    return total


@_compiled
def _products_half(stored, rows, vector, scale, out, subnormal):  # type: ignore[no-untyped-def]
    words, offsets = np.empty(_BLOCK, np.uint32), np.empty(_BLOCK, np.uint32)
    values, minus = words.view(np.float32), offsets.view(np.float32)
    dim = stored.shape[1]
    # Shifting is twice as fast, but not for a thread that some library has set to flush subnormals to zero.
    flushes = np.float64(subnormal[0]) * _UNSHIFT == 0.0
    for i in range(rows.shape[0]):
        total = 0.0
        for left in range(0, dim, _BLOCK):
            right = min(left + _BLOCK, dim)
            if flushes:
                _widen(stored[rows[i], left:right], words, offsets)
                total += _dot_difference(values, minus, vector[left:right])
            else:
                _shift(stored[rows[i], left:right], words)
                total += _dot(values, vector[left:right])
        out[i] = total * scale if flushes else total * _UNSHIFT * scale


@_compiled
def _products_single(stored, rows, vector, scale, out, subnormal):  # type: ignore[no-untyped-def]
    for i in range(rows.shape[0]):
        out[i] = _dot(stored[rows[i]], vector) * scale


@_compiled
def _copy_half(stored, rows, scale, out):  # type: ignore[no-untyped-def]
    words, offsets = np.empty(_BLOCK, np.uint32), np.empty(_BLOCK, np.uint32)
    values, minus = words.view(np.float32), offsets.view(np.float32)
    dim = stored.shape[1]
    for i in range(rows.shape[0]):
        for left in range(0, dim, _BLOCK):
            right = min(left + _BLOCK, dim)
            _widen(stored[rows[i], left:right], words, offsets)
            for j in range(right - left):
                out[i, left + j] = (values[j] - minus[j]) * scale


@_compiled
def _copy_single(stored, rows, scale, out):  # type: ignore[no-untyped-def]
    for i in range(rows.shape[0]):
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
        # Plain arrays: numba takes ten times as long to recognise a memmap.
        stored = [np.asarray(view.shard(number)) for number in range(view.num_shards)]
        self._shards: list[Array] = [shard.view(np.uint16) if self._half else shard for shard in stored]
        self._starts = np.cumsum([0, *(shard.shape[0] for shard in stored)])

    @property
    def bytes_per_row(self) -> int:
        """What reading one row costs."""
        return self.dim * self._view.storage_dtype.itemsize

    def products(self, rows: Tensor, vector: Tensor) -> Tensor:
        """Multiply stored rows with a vector, in float64.

        Args:
            rows: Row numbers, int64 [m].
            vector: float64 [d], in measurement units.

        Returns:
            φ_n · vector, float64 [m], measurement².
        """
        kernel = _products_half if self._half else _products_single
        values = np.ascontiguousarray(vector.numpy(), dtype=np.float64)
        out = np.empty(rows.numel())
        for stored, local, places in self._by_shard(rows):
            part = np.empty(local.size)
            kernel(stored, local, values, self._view.scale, part, _SUBNORMAL)
            out[places] = part
        return torch.from_numpy(out)

    def read(self, rows: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
        """Copy stored rows, exactly.

        Args:
            rows: Row numbers, int64 [m].
            dtype: torch.float64 or torch.float32.

        Returns:
            Sketches in measurement units, shape [m, d].
        """
        kernel = _copy_half if self._half else _copy_single
        number = np.float64 if dtype == torch.float64 else np.float32
        scale = number(self._view.scale)
        pieces = self._by_shard(rows)
        out = np.empty((rows.numel(), self.dim), number)
        for stored, local, places in pieces:
            if isinstance(places, slice):
                kernel(stored, local, scale, out)
            else:
                part = np.empty((local.size, self.dim), number)
                kernel(stored, local, scale, part)
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

    def _by_shard(self, rows: Tensor) -> list[tuple[Array, npt.NDArray[np.int64], Any]]:
        # By shard: its bits or values, rows within it, and their places among ``rows``.
        wanted = rows.numpy()
        if wanted.size and (wanted.min() < 0 or wanted.max() >= self._view.num_rows):
            raise UnknownRowError(f"the rows are 0 to {self._view.num_rows - 1}")
        if len(self._shards) == 1:
            return [(self._shards[0], wanted, slice(None))]
        shards = np.searchsorted(self._starts, wanted, side="right") - 1
        pieces: list[tuple[Array, npt.NDArray[np.int64], Any]] = []
        for number in np.unique(shards).tolist():
            places = np.flatnonzero(shards == number)
            pieces.append((self._shards[number], wanted[places] - self._starts[number], places))
        return pieces
