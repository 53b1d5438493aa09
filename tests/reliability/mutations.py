"""Single mutations of index directories: what accidents and bugs do to a file, drawn by seed, undone after each."""

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sketchstore.layout import files_below

PAGE = 4096
_TYPES = (b"F32", b"F16", b"F64", b"I64", b"I8", b"<f8", b"<i8", b"<f4", b"<f2")


@dataclass(frozen=True)
class Mutation:
    """What is done to which file; ``also`` is the other file of a swap."""

    kind: str
    file: str
    also: str = ""


def _flip(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _zero(data: bytes, rng: random.Random) -> bytes:
    # A page that was never written: where it holds zeros already, its first byte is another instead.
    start = rng.randrange(len(data)) // PAGE * PAGE
    page = data[start : start + PAGE]
    return data[:start] + (bytes(len(page)) if any(page) else b"\x01" + page[1:]) + data[start + PAGE :]


def _other_type(data: bytes, rng: random.Random) -> bytes:
    # Another element type in the header, which stays as long as it was; a digit of a shape where no type is named.
    head = data[:512]
    here = [name for name in _TYPES if name in head]
    if not here:
        return _flip(data, rng)
    old = rng.choice(here)
    new = rng.choice([name for name in _TYPES if len(name) == len(old) and name != old and name[:1].isalpha() ==
                      old[:1].isalpha()] or [b"X" * len(old)])  # fmt: skip
    return head.replace(old, new, 1) + data[512:]


def _other_shape(data: bytes, rng: random.Random) -> bytes:
    head = bytearray(data[:512])
    digits = [place for place in range(8, len(head)) if chr(head[place]).isdigit()] or [rng.randrange(len(head))]
    place = rng.choice(digits)
    head[place] = ord(str((head[place] - 48 + rng.randrange(1, 10)) % 10)) if chr(head[place]).isdigit() else 0
    return bytes(head) + data[512:] if bytes(head) != data[:512] else _flip(data, rng)


def _edit_field(data: bytes, rng: random.Random) -> bytes:
    # A value somewhere in a JSON file, as somebody with an editor would change it; nothing is signed again.
    value = json.loads(data)
    spots = list(_leaves(value))
    holder, key = rng.choice(spots)
    old = holder[key]
    if isinstance(old, bool) or old is None:
        holder[key] = "x" if old is None else not old
    elif isinstance(old, int | float):
        holder[key] = old + rng.choice([1, -1, 0.5])
    else:
        holder[key] = f"{old}x" if old else "x"
    return json.dumps(value, indent=2).encode()


def _leaves(value: Any) -> Iterator[tuple[Any, Any]]:
    for key in value if isinstance(value, dict) else range(len(value)):
        if isinstance(value[key], dict | list) and value[key]:
            yield from _leaves(value[key])
        else:
            yield value, key


REWRITES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "flip": _flip,
    "truncate": lambda data, rng: data[: rng.randrange(len(data))],
    "extend": lambda data, rng: data + rng.randbytes(rng.randrange(1, 100)),
    "zero a page": _zero,
    "other type": _other_type,
    "other shape": _other_shape,
    "edit": _edit_field,
}
PLACES = ("missing", "folder", "link", "pipe", "swap")


def draw(path: Path, count: int, rng: random.Random) -> Iterator[Mutation]:
    """Draw mutations of a directory: every file gets its share, every kind in turn."""
    files = [file for file in files_below(path) if not Path(file).name.startswith(".")]
    kinds = [*REWRITES, *PLACES]
    for number in range(count):
        file = files[number % len(files)]
        kind = kinds[(number // len(files)) % len(kinds)]
        if kind == "edit" and not file.endswith("manifest.json"):
            kind = "flip"
        yield Mutation(kind, file, rng.choice(_others(path, file, files)) if kind == "swap" else "")


def _others(path: Path, file: str, files: list[str]) -> list[str]:
    # Files of the same bytes, as labels and predictions that agree, may be swapped without any harm.
    data = (path / file).read_bytes()
    return [other for other in files if other != file and (path / other).read_bytes() != data]


@contextmanager
def mutated(path: Path, mutation: Mutation, rng: random.Random) -> Iterator[None]:
    """Have a directory mutated for a while."""
    target, data = path / mutation.file, (path / mutation.file).read_bytes()
    other = path / mutation.also if mutation.also else None
    moved = None if other is None else other.read_bytes()
    if mutation.kind in REWRITES:
        target.write_bytes(REWRITES[mutation.kind](data, rng))
    elif other is not None and moved is not None:
        target.write_bytes(moved)
        other.write_bytes(data)
    else:
        target.unlink()
        match mutation.kind:
            case "folder":
                target.mkdir()
            case "pipe":
                os.mkfifo(target)
            case "link":
                beside = path.with_name("beside")
                beside.write_bytes(data)
                target.symlink_to(beside)
    try:
        yield
    finally:
        if target.is_dir():
            shutil.rmtree(target)
        elif os.path.lexists(target):
            target.unlink()
        target.write_bytes(data)
        if other is not None and moved is not None:
            other.write_bytes(moved)
