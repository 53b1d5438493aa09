"""Array files read through a memory map: safetensors by their header, .npy by theirs, never a pickle."""

import io
import json
import math
import mmap
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sketchstore.errors import (
    DtypeMismatchError,
    FileHeaderError,
    MissingFileError,
    ShapeMismatchError,
    TruncatedFileError,
)

Array = npt.NDArray[Any]

SAFETENSORS_DTYPES = {"I8": "|i1", "F16": "<f2", "F32": "<f4", "F64": "<f8", "I64": "<i8"}
SAFETENSORS_NAMES = {np.dtype(code): name for name, code in SAFETENSORS_DTYPES.items()}
MAX_HEADER_BYTES = 100_000_000
DATA_ALIGNMENT = 64
_MAP_NORESERVE = 0x4000 if sys.platform.startswith("linux") else 0  # mmap has no name for it before Python 3.13


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a safetensors file: element type, shape, and the first byte of its data in the file."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int


def tensor_header(tensors: Mapping[str, tuple[npt.DTypeLike, tuple[int, ...]]]) -> bytes:
    """The bytes before the data of a safetensors file, padded so that the data is 64-byte aligned.

    Args:
        tensors: Element type and shape by name, in the order of the data.

    Returns:
        Length (8 bytes, little-endian) and JSON header, with trailing spaces.
    """
    header: dict[str, Any] = {}
    end = 0
    for name, (dtype, shape) in tensors.items():
        element = np.dtype(dtype).newbyteorder("<")
        start, end = end, end + math.prod(shape) * element.itemsize
        header[name] = {"dtype": SAFETENSORS_NAMES[element], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % DATA_ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def read_tensor_header(path: Path, file: str) -> dict[str, TensorEntry]:
    """Read where the tensors of a safetensors file lie, checking that they fill it exactly.

    Args:
        path: The file.
        file: Its name in messages.

    Returns:
        Tensor entries by name.

    Raises:
        MissingFileError: If it is not there.
        FileHeaderError: If the header is not that of a safetensors file of known types.
        TruncatedFileError: If the tensors need more bytes than the file has.
    """
    try:
        with path.open("rb") as stream:
            total = os.fstat(stream.fileno()).st_size
            length = int.from_bytes(stream.read(8), "little")
            if total < 8 or length > min(MAX_HEADER_BYTES, total - 8):
                raise FileHeaderError(file, f"header length {length} does not fit a file of {total} bytes")
            text = stream.read(length)
    except FileNotFoundError as error:
        raise MissingFileError(file, "is not there") from error
    entries: dict[str, TensorEntry] = {}
    end = 0
    try:
        header = json.loads(text.decode("utf-8"))
        header.pop("__metadata__", None)
        for name, fields in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            dtype = np.dtype(SAFETENSORS_DTYPES[fields["dtype"]])
            shape = tuple(int(size) for size in fields["shape"])
            start, stop = fields["data_offsets"]
            if min(shape, default=0) < 0 or start != end or stop - start != math.prod(shape) * dtype.itemsize:
                _refuse(f"tensor {name!r}: offsets {start}–{stop} do not fit shape {list(shape)} {dtype}")
            entries[name] = TensorEntry(dtype, shape, 8 + length + start)
            end = stop
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FileHeaderError(file, f"is not a safetensors file of known types: {error}") from error
    if 8 + length + end > total:
        raise TruncatedFileError(file, f"has {total} bytes, its tensors end at {8 + length + end}")
    if 8 + length + end < total:
        raise FileHeaderError(file, f"has {total} bytes, its tensors end at {8 + length + end}")
    return entries


def _refuse(reason: str) -> None:
    raise ValueError(reason)


def map_tensor(
    path: Path, file: str, name: str, *, dtype: npt.DTypeLike | None = None, shape: tuple[int | None, ...] | None = None
) -> Array:
    """Map one tensor of a safetensors file into memory.

    The map is copy-on-write: torch may wrap it without a copy or a warning, and nothing ever reaches the file.

    Args:
        path: The file.
        file: Its name in messages.
        name: The tensor.
        dtype: The element type it must have.
        shape: The shape it must have; None on an axis allows any size.

    Returns:
        The tensor as a memory-mapped array.

    Raises:
        FileHeaderError: If the file has no such tensor.
    """
    entries = read_tensor_header(path, file)
    if name not in entries:
        raise FileHeaderError(file, f"has no tensor {name!r}; it has {sorted(entries)}")
    entry = entries[name]
    _check_array(file, name, entry.dtype, entry.shape, dtype, shape)
    if 0 in entry.shape:
        return np.empty(entry.shape, entry.dtype)
    return _mapped(path, entry.dtype, entry.offset, entry.shape)


def map_npy(
    path: Path, file: str, *, dtype: npt.DTypeLike | None = None, shape: tuple[int | None, ...] | None = None
) -> Array:
    """Map a .npy file into memory, copy-on-write, refusing pickles and Fortran order.

    Args:
        path: The file.
        file: Its name in messages.
        dtype: The element type it must have.
        shape: The shape it must have; None on an axis allows any size.

    Returns:
        The array, memory-mapped.

    Raises:
        MissingFileError: If it is not there.
        FileHeaderError: If it is not a .npy file of version 1.0 in C order.
        TruncatedFileError: If it is shorter than its header says.
    """
    try:
        with path.open("rb") as stream:
            version = np.lib.format.read_magic(stream)
            if version != (1, 0):
                raise FileHeaderError(file, f"is of .npy version {version}, must be (1, 0)")
            found_shape, fortran, found_dtype = np.lib.format.read_array_header_1_0(stream)
            offset = stream.tell()
            total = os.fstat(stream.fileno()).st_size
    except FileNotFoundError as error:
        raise MissingFileError(file, "is not there") from error
    except ValueError as error:
        raise FileHeaderError(file, f"is not a .npy file: {error}") from error
    if found_dtype.hasobject or (fortran and len(found_shape) > 1):
        raise FileHeaderError(file, "holds Python objects or is in Fortran order; neither is allowed")
    _check_array(file, "array", found_dtype, found_shape, dtype, shape)
    needed = offset + math.prod(found_shape) * found_dtype.itemsize
    if total < needed:
        raise TruncatedFileError(file, f"has {total} bytes, its array ends at {needed}")
    if total > needed:
        raise FileHeaderError(file, f"has {total} bytes, its array ends at {needed}")
    if 0 in found_shape:
        return np.empty(found_shape, found_dtype)
    return _mapped(path, found_dtype, offset, found_shape)


def _mapped(path: Path, dtype: np.dtype[Any], offset: int, shape: tuple[int, ...]) -> Array:
    # Without a reserve: a private map that may be written to counts as memory, which a file may well exceed. None of
    # it is ever written, so none is ever taken. And a plain array: numba takes ten times as long to know a memmap.
    with path.open("rb") as stream:
        flags, access = mmap.MAP_PRIVATE | _MAP_NORESERVE, mmap.PROT_READ | mmap.PROT_WRITE
        data = mmap.mmap(stream.fileno(), 0, flags=flags, prot=access)
    return np.frombuffer(data, dtype, math.prod(shape), offset).reshape(shape)


def _check_array(
    file: str,
    name: str,
    dtype: np.dtype[Any],
    shape: tuple[int, ...],
    wanted_dtype: npt.DTypeLike | None,
    wanted_shape: tuple[int | None, ...] | None,
) -> None:
    if wanted_dtype is not None and dtype != np.dtype(wanted_dtype).newbyteorder("<"):
        raise DtypeMismatchError(file, f"{name} is {dtype}, must be little-endian {np.dtype(wanted_dtype).name}")
    if wanted_shape is not None and (
        len(shape) != len(wanted_shape)
        or any(want is not None and size != want for size, want in zip(shape, wanted_shape, strict=True))
    ):
        wanted = ["any" if size is None else size for size in wanted_shape]
        raise ShapeMismatchError(file, f"{name} has shape {list(shape)}, must be {wanted}")


def tensor_file_bytes(tensors: Mapping[str, Array]) -> bytes:
    """A whole safetensors file: tensors in the given order, data 64-byte aligned.

    Args:
        tensors: Arrays by name, of element types int8, float16, float32, float64 or int64.

    Returns:
        The file's bytes.
    """
    header = tensor_header({name: (array.dtype, array.shape) for name, array in tensors.items()})
    return header + b"".join(
        np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes() for array in tensors.values()
    )


def npy_header(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    """The bytes before the data of a .npy file of version 1.0.

    Args:
        dtype: Element type.
        shape: Shape of the array.

    Returns:
        Magic, version and header, as numpy.save writes them.
    """
    buffer = io.BytesIO()
    fields = {"descr": dtype.newbyteorder("<").str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, fields)
    return buffer.getvalue()


def widened(stored: Array, dtype: torch.dtype = torch.float64) -> Tensor:
    """Stored values as float32 or float64, exactly.

    torch converts float16 eighty times faster than numpy, and to float64 only by way of float32.

    Args:
        stored: float16, float32 or float64 values.
        dtype: torch.float32 or torch.float64.

    Returns:
        A tensor; the array itself where its type is already the wanted one.
    """
    return torch.from_numpy(stored).to(dtype if stored.dtype == np.float64 else torch.float32).to(dtype)
