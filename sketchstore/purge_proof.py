"""Reads back what a purge wrote: every byte of a file is its header's or a row's that stays, so none is another's.

A file of arrays is compared with its header and the rows that stay. A table is compared with the one that is written
from the rows that stay alone: whatever Parquet keeps beside the values (dictionaries, statistics, gaps) is then theirs
too. Every other file of the new revision must be one that was taken over, because nothing of a purged row was in it.
"""

import io
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from sketchstore.arrays import Array, npy_header, tensor_header
from sketchstore.digests import digest_file
from sketchstore.errors import PurgeError
from sketchstore.examples import FIXED_COLUMNS, METADATA, PREVIEW_COLUMNS, ExampleTable
from sketchstore.layout import files_below
from sketchstore.manifest import BUILD_LOG
from sketchstore.reader import Index
from sketchstore.tables import ROW_GROUP_ROWS

Positions = Sequence[int] | npt.NDArray[np.int64]
_PIECE_BYTES = 8 << 20
_MESSAGE = (
    "{file}, as written anew, does not hold exactly the rows that stay; nothing was published, and the removed rows "
    "are where they were. This is a defect of the program or of the disk: check the index with `indexer verify`"
)


class PurgeProof:
    """What was read back so far, and what is wrong with it.

    Args:
        index: The index that rows leave.
    """

    def __init__(self, index: Index) -> None:
        self._index = index
        self._read: set[str] = set()

    def shard(self, path: Path, file: str, old: Array, gone: Positions) -> None:
        """Refuse a shard that is not, byte for byte, the old one without the rows that are gone.

        Args:
            path: The file as written.
            file: Its name.
            old: Stored rows of the old shard, [m, d].
            gone: Positions in it whose bytes may be nowhere.
        """
        self.tensors(path, file, {"sketches": old}, gone)

    def tensors(self, path: Path, file: str, old: Mapping[str, Array], gone: Positions) -> None:
        """Refuse a safetensors file that is not the old one without the rows that are gone.

        Args:
            path: The file as written.
            file: Its name.
            old: Arrays of the old file, or with other values those that must be there, by name; each [m, …].
            gone: Positions in all of them whose bytes may be nowhere.
        """
        shapes = {name: (values.dtype, _left(values, gone)) for name, values in old.items()}
        pieces = (piece for values in old.values() for piece in _rows(values, gone))
        self._compare(path, file, tensor_header(shapes), pieces)

    def column(self, path: Path, file: str, old: Array, gone: Positions) -> None:
        """Refuse a column that is not, byte for byte, the old one without the values that are gone.

        Args:
            path: The file as written.
            file: Its name.
            old: All values of the old column, [m, …].
            gone: Positions in it whose bytes may be nowhere.
        """
        self._compare(path, file, npy_header(old.dtype, _left(old, gone)), _rows(old, gone))

    def table(self, path: Path, file: str, old: ExampleTable, gone: Positions) -> None:
        """Refuse an examples table that is not, byte for byte, that of the lines that stay: ids, metadata, previews.

        Args:
            path: The file as written.
            file: Its name.
            old: The old table, all of its lines.
            gone: Lines of it whose bytes may be nowhere.

        Raises:
            PurgeError: If a byte differs, is missing or is left over.
        """
        kinds: dict[str, Any] = {field.name: field.type for field in old.parquet.schema_arrow}
        metadata = {name: kinds[name] for name in sorted(kinds) if name.startswith(METADATA)}
        schema = pa.schema(FIXED_COLUMNS | metadata | PREVIEW_COLUMNS)
        dropped, start, written = np.asarray(gone, dtype=np.int64), 0, 0
        with path.open("rb") as stream:
            found = _Compared(stream)
            with pq.ParquetWriter(cast(Any, found), schema, compression="zstd") as writer:
                for batch in old.parquet.iter_batches(batch_size=ROW_GROUP_ROWS):
                    inside = dropped[(dropped >= start) & (dropped < start + batch.num_rows)] - start
                    start += batch.num_rows
                    stays = np.delete(np.arange(batch.num_rows), inside)
                    if not len(stays):
                        continue
                    lines = pa.table(batch).take(
                        pa.array(stays, pa.int64())
                    )  # of its own memory, where no other line is
                    columns: dict[str, Any] = {name: lines.column(name) for name in schema.names}
                    columns["row"] = pa.array(range(written, written + len(stays)), pa.int64())
                    writer.write_table(pa.table(columns, schema=schema), row_group_size=ROW_GROUP_ROWS)
                    written += len(stays)
                if not written:
                    writer.write_table(schema.empty_table())
            if not found.same or stream.read(1):
                raise PurgeError(_MESSAGE.format(file=file))
        self._read.add(file)

    def nothing_else(self, content: Path, taken_over: Mapping[str, str]) -> None:
        """Refuse a revision with a file that was neither read back nor taken over as it was.

        The build's log is no such file: it holds times, rates and numbers of rows, nothing of a row.

        Args:
            content: The new revision as written, without its manifest.
            taken_over: Files of the old revision in which nothing of a purged row is, by their name in the new one.

        Raises:
            PurgeError: If there is one.
        """
        for file in files_below(content):
            if file in self._read or file == BUILD_LOG:
                continue
            old = taken_over.get(file)
            if old is None or not self._same(content / file, old):
                raise PurgeError(_MESSAGE.format(file=file))

    def _same(self, path: Path, old: str) -> bool:
        # Linked; where links fail, a copy.
        if os.path.samefile(path, self._index.files.directory / old):
            return True
        return digest_file(path) == self._index.manifest.files[old].blake3

    def _compare(self, path: Path, file: str, header: bytes, rows: Iterable[bytes]) -> None:
        """Compare a file with a header and the rows that stay.

        Raises:
            PurgeError: If a byte differs, is missing or is left over.
        """
        with path.open("rb") as stream:
            same = stream.read(len(header)) == header
            same = same and all(stream.read(len(expected)) == expected for expected in rows)
            if not same or stream.read(1):
                raise PurgeError(_MESSAGE.format(file=file))
        self._read.add(file)


class _Compared(io.RawIOBase):
    """Is given what must have been written, and compares it with what was."""

    def __init__(self, stream: io.BufferedReader) -> None:
        super().__init__()
        self._stream, self.same = stream, True

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        expected = bytes(data)
        self.same = self.same and self._stream.read(len(expected)) == expected
        return len(expected)


def _left(old: Array, gone: Positions) -> tuple[int, ...]:
    return (len(old) - len(gone), *old.shape[1:])


def _rows(old: Array, gone: Positions) -> Iterable[bytes]:
    stays: npt.NDArray[Any] = np.delete(np.arange(len(old)), gone)
    step = max(1, _PIECE_BYTES // max(1, old[:1].nbytes))
    for start in range(0, len(stays), step):
        yield np.ascontiguousarray(old[stays[start : start + step]]).tobytes()
