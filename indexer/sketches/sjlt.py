"""Sparse signed buckets: each parameter goes to s positions of the sketch, with signs, scaled by 1/√s.

Copy k of parameter q lies in the k-th of s equal parts of the sketch, at a place and with a sign from the Philox call
with counter (q low, q high, k div 2, 2). The variance of inner products is that of dense signs (docs/sketches.md), at
s additions per parameter instead of d: the family for queries by example on a large model. The CPU kernel packs
position and sign into one table and adds sixteen rows with one vector operation, near the speed of reading memory.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from indexer.layers.factors import Factors
from indexer.sketches import kernels
from indexer.sketches.base import check_add, check_factored, tiles
from indexer.sketches.philox import Stream, key, parameter_words
from indexer.sketches.spec import SketchSpec
from indexer.sketches.threads import KernelThreads

TILE_PARAMETERS = 1024
"""Parameters whose gradients of sixteen rows are transposed together: 64 KiB, which stay in the second cache."""
TABLE_PARAMETERS = 65_536
"""Parameters of one table of codes, which are cut at multiples of it: 512 KiB with four buckets and d up to 32,768."""
TABLES_BYTES = 256 * 1024**2
"""What tables may take together; beyond it, the one that was not used for longest is made again when needed."""
DEVICE_TILE_PARAMETERS = 16_384
"""Parameters whose positions and signs a GPU makes together."""
FACTORED_ROWS = 8
"""Rows of a weight whose codes are gathered together; the kernel wants four at least."""
FEW_ROWS = 4
"""Fewer rows than this are added one by one; sixteen lanes side by side cost what four such rows do."""


class SjltSketch:
    """Sparse Johnson–Lindenstrauss transform (Kane and Nelson's block construction).

    Attributes:
        spec: Family, dimension, seed and number of buckets.
        num_parameters: P.
        threads: The pool that splits the CPU kernels.
    """

    def __init__(self, spec: SketchSpec, num_parameters: int, num_threads: int | None = None) -> None:
        spec.check_fits(num_parameters)
        self.spec = spec
        self.num_parameters = num_parameters
        self.threads = KernelThreads(num_threads)
        self._tables: dict[int, kernels.Array] = {}
        self._lock = threading.Lock()

    @property
    def buckets(self) -> int:
        """s, the positions per parameter."""
        return int(self.spec.options["buckets"])

    @property
    def scale(self) -> float:
        """1/√s, which makes E[RᵀR] = I."""
        return 1.0 / math.sqrt(self.buckets)

    def add(self, gradients: Tensor, offset: int, out: Tensor) -> None:
        """Add each gradient at its positions; see `Sketch.add`.

        A row's sum does not depend on the rows beside it. On a GPU, additions to one position come in no fixed order:
        sketches there repeat to float32 rounding only.

        Args:
            gradients: Tangent features of consecutive parameters, float32 [b, p].
            offset: Index of the first of them.
            out: Sketches so far, float32 [b, d].
        """
        check_add(self, gradients, offset, out)
        if gradients.device.type == "cpu":
            slab, total = gradients.detach(), out if out.stride(1) == 1 else out.contiguous()
            slab = slab if slab.stride(1) == 1 else slab.contiguous()
            self._scatter(slab.numpy(), offset, total.numpy())
            if total is not out:
                out.copy_(total)
            return
        for start, stop in tiles(gradients.shape[1], DEVICE_TILE_PARAMETERS):
            slab = gradients[:, start:stop] * self.scale
            positions, signs = self.entries(offset + start, stop - start, gradients.device)
            for copy in range(self.buckets):
                out.index_add_(1, positions[:, copy], slab * signs[:, copy])

    def add_factored(self, factors: Factors, offset: int, out: Tensor) -> None:
        """Add gradients of a weight that are formed nowhere but in registers; on the CPU.

        Args:
            factors: What the gradients [b, rows, columns] are made of, float32.
            offset: Index of the weight's first parameter.
            out: Sketches so far, float32 [b, d], changed in place.

        Raises:
            SketchSpecError: If shapes, types or the range of parameters do not fit.
        """
        check_factored(self, factors, offset, out)
        left, right = (side.detach().contiguous().numpy() for side in (factors.left, factors.right))
        sketches = out if out.stride(1) == 1 else out.contiguous()
        total = sketches.numpy()
        lanes, scale = kernels.LANES, np.float32(self.scale)
        columns, positions = lanes * factors.columns.numpy(), lanes * factors.positions.numpy()
        width = len(columns)

        def part(start: int, stop: int) -> None:
            sides = [np.empty(lanes * side.shape[1], np.float32) for side in (left, right)]
            tile = np.empty(kernels.ROWS_AT_ONCE * kernels.PRODUCT_COLUMNS * lanes, np.float32)
            totals = np.empty(lanes * self.spec.dim, np.float32)
            for first in range(start, stop, lanes):
                last = min(first + lanes, stop)
                kernels.to_lanes(_padded(left[first:last]), scale, sides[0])
                kernels.to_lanes(_padded(right[first:last]), np.float32(1.0), sides[1])
                totals[:] = 0.0
                for top, bottom in tiles(factors.num_rows, FACTORED_ROWS):
                    codes = self._codes(offset + top * width, (bottom - top) * width)
                    kernels.scatter_products(
                        sides[0], lanes * factors.row_step, lanes * factors.position_step, sides[1], columns, positions,
                        top, codes, tile, totals,
                    )  # fmt: skip
                kernels.add_lanes(totals, total[first:last])

        self.threads.split(part, left.shape[0], multiple=lanes)
        if sketches is not out:
            out.copy_(sketches)

    def entries(self, offset: int, num_parameters: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Positions and signs by torch alone, on any device.

        Args:
            offset: Index of the first parameter.
            num_parameters: How many, p.
            device: Where to compute.

        Returns:
            Positions, int64 [p, s], and signs, float32 [p, s].
        """
        copies = self.buckets
        calls = (copies + 1) // 2
        words = parameter_words(self.spec.seed, Stream.SJLT, offset, num_parameters, calls, device)
        pairs = words.reshape(num_parameters, -1, 2)[:, :copies]
        width = self.spec.dim // copies
        first = torch.arange(copies, device=device) * width
        positions = first + ((pairs[..., 0] * width) >> 32)
        return positions, (1 - 2 * (pairs[..., 1] & 1)).to(torch.float32)

    def columns(self, offset: int, num_parameters: int) -> Tensor:
        """Part of R, scale included; see `Sketch.columns`.

        Args:
            offset: Index of the first parameter.
            num_parameters: How many, p.

        Returns:
            float32 [p, d].
        """
        columns = np.zeros((num_parameters, self.spec.dim), np.float32)
        for begin, end, codes in self._pieces(offset, num_parameters):
            parameters = np.arange(begin, end)
            for copy in codes.astype(np.int64):
                columns[parameters, copy >> 1] = self.scale * (1 - 2 * (copy & 1))
        return torch.from_numpy(columns)

    def _scatter(self, gradients: kernels.Array, offset: int, out: kernels.Array) -> None:
        pieces = list(self._pieces(offset, gradients.shape[1]))
        lanes, rows, scale = kernels.LANES, gradients.shape[0], np.float32(self.scale)

        def few(start: int, stop: int) -> None:
            for row in range(start, stop):
                total = np.zeros(self.spec.dim, np.float32)
                for begin, end, codes in pieces:
                    kernels.scatter_row(gradients[row, begin:end], codes, scale, total)
                out[row] += total

        def many(start: int, stop: int) -> None:
            totals, transposed = np.empty((2, lanes * max(self.spec.dim, TILE_PARAMETERS)), np.float32)
            for first in range(start, stop, lanes):
                last = min(first + lanes, stop)
                if last - first < FEW_ROWS:
                    few(first, last)
                    continue
                totals[:] = 0.0
                for begin, end, codes in pieces:
                    part = gradients[first:last, begin:end]
                    kernels.scatter_lanes(_padded(part), codes, scale, transposed, totals)
                kernels.add_lanes(totals, out[first:last])

        if rows < FEW_ROWS:
            self.threads.split(few, rows)
        else:
            self.threads.split(many, rows, multiple=lanes)

    def _codes(self, offset: int, num_parameters: int) -> kernels.Array:
        # Codes of consecutive parameters; always a part of a longer array, for which the kernels are compiled
        table, inside = divmod(offset, TABLE_PARAMETERS)
        codes = self._table(table)[:, inside : inside + num_parameters]
        if codes.shape[1] == num_parameters and not codes.flags.c_contiguous:
            return codes
        gathered = np.empty((self.buckets, num_parameters + 1), codes.dtype)
        done = 0
        while done < num_parameters:
            table, inside = divmod(offset + done, TABLE_PARAMETERS)
            codes = self._table(table)[:, inside : inside + num_parameters - done]
            gathered[:, done : done + codes.shape[1]] = codes
            done += codes.shape[1]
        return gathered[:, :num_parameters]

    def _pieces(self, offset: int, num_parameters: int) -> Iterator[tuple[int, int, kernels.Array]]:
        # A slab in parts of one tile each: start and end within the slab, and the codes between them.
        begin = 0
        while begin < num_parameters:
            table, inside = divmod(offset + begin, TABLE_PARAMETERS)
            end = min(num_parameters, begin + TABLE_PARAMETERS - inside, begin + TILE_PARAMETERS)
            yield begin, end, self._table(table)[:, inside : inside + end - begin]
            begin = end

    def _table(self, number: int) -> kernels.Array:
        # Codes of parameters number · TABLE_PARAMETERS, …; the ones used last are kept, so that batches share them.
        with self._lock:
            table = self._tables.pop(number, None)
            if table is None:
                table = self._filled(number)
            self._tables[number] = table
            while len(self._tables) > 1 and len(self._tables) * table.nbytes > TABLES_BYTES:
                del self._tables[next(iter(self._tables))]
        return table

    def _filled(self, number: int) -> kernels.Array:
        first = number * TABLE_PARAMETERS
        count = min(TABLE_PARAMETERS, self.num_parameters - first)
        codes = np.empty((self.buckets, count), np.uint16 if self.spec.dim <= 2**15 else np.uint32)
        k0, k1 = (np.uint32(word) for word in key(self.spec.seed))
        width = self.spec.dim // self.buckets

        def fill(start: int, stop: int) -> None:
            part = codes[:, start:stop]
            kernels.fill_buckets(part, np.uint64(first + start), Stream.SJLT.value, k0, k1, width)

        self.threads.split(fill, count)
        return codes


def _padded(rows: kernels.Array) -> kernels.Array:
    missing = kernels.LANES - len(rows)
    return rows if not missing else np.concatenate((rows, np.zeros((missing, rows.shape[1]), np.float32)))
