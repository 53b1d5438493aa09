"""Files that survive a power cut: writing, listing, renaming and exchanging on the disk, in that order of care."""

import ctypes
import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sketchstore.storing import storing

PARTIAL_SUFFIX = ".partial"
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def sync_directory(path: Path) -> None:
    """Flush a directory's entries to the disk.

    Args:
        path: The directory.
    """
    sync_file(path)


def sync_file(path: Path) -> None:
    """Flush what was written to a file, or to a directory's entries.

    Args:
        path: The file or directory.
    """
    with storing(path), _descriptor(path, os.O_RDONLY) as descriptor:
        os.fsync(descriptor)


def write_file(path: Path, data: bytes) -> None:
    """Write a file so that it is there whole or not at all, whatever happens in between.

    Args:
        path: The file; its folder is made.
        data: Its content.
    """
    with storing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.tmp")
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
    finish_file(temporary, path)


def finish_file(temporary: Path, path: Path) -> None:
    """Give a written and synced temporary file its name.

    Args:
        temporary: The file, already synced.
        path: Its name from now on.
    """
    with storing(path):
        os.replace(temporary, path)
    sync_directory(path.parent)


def sync_tree(path: Path) -> None:
    """Flush every file and folder below a directory, and the directory itself.

    Args:
        path: The directory.
    """
    for folder, _, names in os.walk(path, topdown=False):
        for name in names:
            sync_file(Path(folder) / name)
        sync_directory(Path(folder))


def files_below(path: Path) -> Iterator[str]:
    """Every file below a directory.

    Args:
        path: The directory.

    Yields:
        Paths inside it with forward slashes, sorted.
    """
    yield from sorted(
        (Path(folder) / name).relative_to(path).as_posix() for folder, _, names in os.walk(path) for name in names
    )


def links_below(path: Path) -> Iterator[str]:
    """Every symbolic link below a directory, to files or folders.

    Args:
        path: The directory.

    Yields:
        Paths inside it with forward slashes, sorted.
    """
    found = (Path(folder) / name for folder, folders, names in os.walk(path) for name in (*folders, *names))
    yield from sorted(each.relative_to(path).as_posix() for each in found if each.is_symlink())


def folders_below(path: Path) -> Iterator[str]:
    """Every folder below a directory.

    Args:
        path: The directory.

    Yields:
        Paths inside it with forward slashes, sorted.
    """
    yield from sorted(
        (Path(folder) / name).relative_to(path).as_posix() for folder, folders, _ in os.walk(path) for name in folders
    )


def exchange(first: Path, second: Path) -> bool:
    """Swap two paths in one step, so that a reader finds the one or the other and never neither.

    Args:
        first: A path that exists.
        second: Another, on the same file system.

    Returns:
        False where the system has no such call; nothing is changed then.

    Raises:
        OSError: If the system has the call and it fails.
    """
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        return False
    names = os.fsencode(first), os.fsencode(second)
    if libc.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
        return False
    raise OSError(number, os.strerror(number), str(first), None, str(second))


@contextmanager
def _descriptor(path: Path, flags: int) -> Iterator[int]:
    descriptor = os.open(path, flags, 0o644)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _made(path: Path) -> Iterator[int]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with _descriptor(path, os.O_RDWR | os.O_CREAT) as descriptor:
        yield descriptor


def write_at(path: Path, total: int, pieces: list[tuple[int, bytes | memoryview]]) -> None:
    """Write pieces of a file that will have ``total`` bytes, and sync it.

    Args:
        path: The file; it and its folder are made.
        total: Its length once it is finished.
        pieces: Offsets and bytes.
    """
    with storing(path), _made(path) as descriptor:
        if os.fstat(descriptor).st_size != total:
            os.ftruncate(descriptor, total)
        for offset, data in pieces:
            rest = memoryview(data)
            while rest:
                written = os.pwrite(descriptor, rest, offset)
                rest, offset = rest[written:], offset + written
        os.fsync(descriptor)


def read_at(path: Path, offset: int, size: int) -> bytes:
    """Read a piece of a file.

    Args:
        path: The file.
        offset: First byte.
        size: Number of bytes.

    Returns:
        The bytes; fewer where the file ends earlier or is not there.
    """
    try:
        with path.open("rb") as stream:
            stream.seek(offset)
            return stream.read(size)
    except FileNotFoundError:
        return b""
