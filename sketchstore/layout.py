"""Files that survive a power cut: writing, listing, renaming and exchanging on the disk, in that order of care."""

import ctypes
import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path

PARTIAL_SUFFIX = ".partial"
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def sync_directory(path: Path) -> None:
    """Flush a directory's entries to the disk.

    Args:
        path: The directory.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_file(path: Path, data: bytes) -> None:
    """Write a file so that it is there whole or not at all, whatever happens in between.

    Args:
        path: The file; its folder is made.
        data: Its content.
    """
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
    os.replace(temporary, path)
    sync_directory(path.parent)


def sync_tree(path: Path) -> None:
    """Flush every file and folder below a directory, and the directory itself.

    Args:
        path: The directory.
    """
    for folder, _, names in os.walk(path, topdown=False):
        for name in names:
            descriptor = os.open(Path(folder) / name, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
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
