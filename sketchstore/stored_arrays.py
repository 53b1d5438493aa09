"""Writing shards and columns of a new revision from those of published ones, a piece in memory at a time."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sketchstore.arrays import Array, npy_header, tensor_header

_PIECE_BYTES = 8 << 20


def write_column(path: Path, parts: Sequence[Array]) -> None:
    """Write a .npy file of arrays one after the other.

    Args:
        path: The file.
        parts: Arrays of one type, the same but for their first axis.
    """
    rows = sum(len(part) for part in parts)
    with path.open("wb") as stream:
        stream.write(npy_header(parts[0].dtype, (rows, *parts[0].shape[1:])))
        for piece in _pieces(parts):
            stream.write(np.ascontiguousarray(piece).tobytes())


def write_shard(path: Path, parts: Sequence[Array]) -> int:
    """Write a shard of sketches.

    Args:
        path: The file.
        parts: Stored values [m, d] of one type, one after the other.

    Returns:
        Its rows.
    """
    rows = sum(len(part) for part in parts)
    with path.open("wb") as stream:
        stream.write(tensor_header({"sketches": (parts[0].dtype, (rows, parts[0].shape[1]))}))
        for piece in _pieces(parts):
            stream.write(np.ascontiguousarray(piece).tobytes())
    return rows


def _pieces(parts: Sequence[Array]) -> Iterable[Any]:
    for part in parts:
        line = part.itemsize * math.prod(part.shape[1:])
        step = max(1, _PIECE_BYTES // max(1, line))
        for start in range(0, len(part), step):
            yield part[start : start + step]
