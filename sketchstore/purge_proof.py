"""Reads back what a purge wrote: every byte of a file is its header's or a row's that stays, so none is another's."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sketchstore.arrays import Array, npy_header, tensor_header
from sketchstore.errors import PurgeError

_PIECE_BYTES = 8 << 20


def prove_shard(path: Path, file: str, old: Array, gone: npt.NDArray[np.int64]) -> None:
    """Refuse a shard that is not, byte for byte, the old one without the rows that are gone.

    Args:
        path: The file as written.
        file: Its name, for the message.
        old: Stored rows of the old shard, [m, d].
        gone: Positions in it whose bytes may be nowhere.
    """
    rows = len(old) - len(gone)
    _prove(path, file, tensor_header({"sketches": (old.dtype, (rows, old.shape[1]))}), old, gone)


def prove_column(path: Path, file: str, old: Array, gone: npt.NDArray[np.int64]) -> None:
    """Refuse a column that is not, byte for byte, the old one without the values that are gone.

    Args:
        path: The file as written.
        file: Its name, for the message.
        old: All values of the old column, [m, …].
        gone: Positions in it whose bytes may be nowhere.
    """
    _prove(path, file, npy_header(old.dtype, (len(old) - len(gone), *old.shape[1:])), old, gone)


def prove_ids(found: list[Any], file: str, old: list[Any], gone: npt.NDArray[np.int64]) -> None:
    """Refuse a table whose rows are not the old ones without those that are gone.

    Args:
        found: Ids of the table as written.
        file: Its name, for the message.
        old: Ids of the old table.
        gone: Positions in it that may be nowhere.

    Raises:
        PurgeError: If they are others.
    """
    dropped = set(gone.tolist())
    if found != [id for place, id in enumerate(old) if place not in dropped]:
        raise PurgeError(_MESSAGE.format(file=file))


_MESSAGE = (
    "{file}, as written anew, does not hold exactly the rows that stay; nothing was published, and the removed rows "
    "are where they were. This is a defect of the program or of the disk: check the index with `indexer verify`"
)


def _prove(path: Path, file: str, header: bytes, old: Array, gone: npt.NDArray[np.int64]) -> None:
    """Compare a file with a header and the rows that stay.

    Raises:
        PurgeError: If a byte differs, is missing or is left over.
    """
    stays: npt.NDArray[Any] = np.delete(np.arange(len(old)), gone)
    step = max(1, _PIECE_BYTES // max(1, old[:1].nbytes))
    with path.open("rb") as stream:
        same = stream.read(len(header)) == header
        for start in range(0, len(stays), step):
            expected = np.ascontiguousarray(old[stays[start : start + step]]).tobytes()
            same = same and stream.read(len(expected)) == expected
        if not same or stream.read(1):
            raise PurgeError(_MESSAGE.format(file=file))
