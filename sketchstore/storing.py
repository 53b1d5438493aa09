"""What a write to the disk says when it fails: which file, why, and that nothing published is half changed."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sketchstore.errors import IndexDirectoryError

_CURES = {
    errno.ENOSPC: "the disk is full. Free some space there",
    errno.EDQUOT: "the quota of this user is used up. Free some space there",
    errno.EFBIG: "the file would be longer than this process (`ulimit -f`) or the file system allows. Raise the limit",
    errno.EIO: "the disk reports an error. Check it, or choose another",
    errno.EROFS: "the file system is mounted read-only. Mount it writable",
}


class StorageError(IndexDirectoryError, OSError):
    """The system did not store what it was given; a published index is as it was, or the next revision, and whole.

    Args:
        path: The file or folder.
        error: What the system said.
    """

    def __init__(self, path: Path, error: OSError) -> None:
        path = Path(os.path.realpath(path.parent)) / path.name  # a directory that is held open has another name
        reason = _CURES.get(error.errno or 0, f"{error.strerror or error}. Put that right")
        super().__init__(
            f"{path} cannot be stored: {reason}, then run the same command again (build and append: with --resume). "
            "A published index is never left half changed."
        )
        self.errno = error.errno
        self.path = path


@contextmanager
def storing(path: Path) -> Iterator[None]:
    """Name the file in what goes wrong while it is stored: the system's own error on a write or a sync does not.

    Args:
        path: The file or folder.

    Yields:
        Nothing.

    Raises:
        StorageError: If the system refuses.
        OSError: Errors of this package that say themselves what is wrong pass.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error, IndexDirectoryError):
            raise
        raise StorageError(path, error) from error
