"""BLAKE3 digests of files and of JSON values: what makes an index directory checkable, byte for byte."""

import json
import os
from pathlib import Path
from typing import Any

import blake3

CHUNK_BYTES = 4 << 20


def digest_bytes(data: bytes | memoryview) -> str:
    """BLAKE3 of some bytes.

    Args:
        data: The bytes.

    Returns:
        64 lower-case hexadecimal digits.
    """
    return blake3.blake3(data).hexdigest()


def digest_file(path: str | os.PathLike[str]) -> str:
    """BLAKE3 of a file, read in chunks so that memory stays flat whatever its size.

    Args:
        path: The file.

    Returns:
        64 lower-case hexadecimal digits.
    """
    hasher = blake3.blake3()
    with Path(path).open("rb", buffering=0) as file:
        while chunk := file.read(CHUNK_BYTES):
            hasher.update(chunk)
    return hasher.hexdigest()


def canonical_json(value: Any) -> bytes:
    """The one spelling of a JSON value that digests are taken of (FORMAT.md, "Canonical JSON").

    Args:
        value: Anything JSON can hold; NaN and infinities are refused.

    Returns:
        UTF-8 bytes: keys sorted, no spaces, non-ASCII unescaped, floats as Python's repr.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def digest_json(value: Any) -> str:
    """BLAKE3 of a value's canonical JSON.

    Args:
        value: Anything JSON can hold.

    Returns:
        64 lower-case hexadecimal digits.
    """
    return digest_bytes(canonical_json(value))
