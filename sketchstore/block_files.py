"""Where the rows of a block lie in the shards and columns of an index that is being built, written and found again."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from sketchstore.arrays import Array, npy_header, tensor_header
from sketchstore.digests import digest_bytes
from sketchstore.errors import SketchBlockError
from sketchstore.journal import BlockLine
from sketchstore.layout import read_at, write_at
from sketchstore.manifest import column_file, shard_file
from sketchstore.plan import Block, BuildPlan


class BlockFiles:
    """Shards and columns of an unfinished build, filled block by block.

    Args:
        content: The directory that becomes the index.
        plan: The build plan.
    """

    def __init__(self, content: Path, plan: BuildPlan) -> None:
        self._content = content
        self._plan = plan

    def holds(self, line: BlockLine) -> bool:
        """Whether a block lies there as the journal says.

        Args:
            line: What the journal says.

        Returns:
            False if it is not a block of this plan, or any of its bytes are other ones.
        """
        if line.block >= self._plan.num_blocks or set(line.sketches) != set(self._plan.views):
            return False
        block = self._plan.block(line.block)
        for view, digest in line.sketches.items():
            pieces = [read_at(path, offset, size) for path, offset, _, size in self._pieces(view, block)]
            if digest_bytes(b"".join(pieces)) != digest:
                return False
        for name, digest in line.columns.items():
            path = self._content / column_file(name)
            if not path.is_file():
                return False
            values = np.load(path, mmap_mode="r", allow_pickle=False)
            if digest_bytes(values[block.start : block.stop].tobytes()) != digest:
                return False
        return True

    def write_sketches(self, view: str, block: Block, array: Array) -> None:
        """Store the sketches of a block, synced.

        Args:
            view: The view.
            block: The block.
            array: [rows, d] of the storage dtype, C-contiguous.
        """
        data = array.data.cast("B")
        per_row = self._plan.sketch.dim * array.itemsize
        for path, offset, number, size in self._pieces(view, block):
            header = self._header(number)
            total = len(header) + self._plan.shard_size(number) * per_row
            write_at(path, total, [(0, header), (offset, data[:size])])
            data = data[size:]

    def write_column(self, name: str, block: Block, array: Array, *, started: bool) -> None:
        """Store the values of a column that belong to a block, synced.

        Args:
            name: The column.
            block: The block.
            array: First axis the block's rows.
            started: Whether other blocks are written already.

        Raises:
            SketchBlockError: If they gave the column another type or shape.
        """
        header = npy_header(array.dtype, (self._plan.num_rows, *array.shape[1:]))
        per_row = array[:1].nbytes
        path = self._content / column_file(name)
        total = len(header) + self._plan.num_rows * per_row
        if path.exists() and started and read_at(path, 0, len(header)) != header:
            raise SketchBlockError(f"column {name!r}: {array.dtype} {list(array.shape)} differs from earlier blocks")
        offset = len(header) + block.start * per_row
        write_at(path, total, [(0, header), (offset, array.data.cast("B"))])

    def _pieces(self, view: str, block: Block) -> Iterator[tuple[Path, int, int, int]]:
        # Where a block lies: file, byte offset, shard number and byte length, piece by piece.
        per_row = self._plan.sketch.dim * np.dtype(self._plan.dtype).itemsize
        shard_rows = self._plan.build.shard_rows
        for number in range(block.start // shard_rows, (block.stop - 1) // shard_rows + 1):
            begin = number * shard_rows
            start, stop = max(block.start, begin), min(block.stop, begin + shard_rows)
            offset = len(self._header(number)) + (start - begin) * per_row
            yield self._content / shard_file(view, number), offset, number, (stop - start) * per_row

    def _header(self, number: int) -> bytes:
        return tensor_header({"sketches": (self._plan.dtype, (self._plan.shard_size(number), self._plan.sketch.dim))})
