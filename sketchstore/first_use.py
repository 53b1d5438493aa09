"""Files that are compared with their digests before their first use: once, by one thread, while the others wait."""

import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from sketchstore.digests import digest_file
from sketchstore.errors import (
    CorruptIndexError,
    DigestMismatchError,
    MissingFileError,
    OversizedFileError,
    SwappedFilesError,
    TruncatedFileError,
)
from sketchstore.held import HeldDirectory
from sketchstore.manifest import FileEntry

Stamp = tuple[int, int, int]
_Refusal = tuple[type[CorruptIndexError], str, str]


def stamp_of(path: Path) -> Stamp | None:
    """What tells one state of a file from another without reading it.

    Args:
        path: The file.

    Returns:
        Inode, length and time of the last change; None where there is no file.
    """
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


class FirstUse:
    """Runs a check once for every state of a file, however many threads ask; a refusal is kept and raised again."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._checking: dict[str, threading.Lock] = {}
        self._found: dict[str, tuple[object, _Refusal | None]] = {}

    def check(self, name: str, state: object, check: Callable[[], object]) -> None:
        """Run a check, unless it has been run for this state.

        Args:
            name: The file.
            state: Compared with the state at the last check.
            check: Raises a CorruptIndexError if the file must not be used.

        Raises:
            CorruptIndexError: What the check raised, now or before.
        """
        with self._lock:
            checking = self._checking.setdefault(name, threading.Lock())
        with checking:
            if name not in self._found or self._found[name][0] != state:
                self._found[name] = state, _refusal(check)
            refusal = self._found[name][1]
        # A new one each time: an exception that several threads raise collects all their tracebacks, and one that is
        # kept holds, through its own, the index that keeps it.
        if refusal is not None:
            kind, file, message = refusal
            raise kind(file, message)


def _refusal(check: Callable[[], object]) -> _Refusal | None:
    try:
        check()
    except CorruptIndexError as error:
        return type(error), error.file, error.message
    return None


class PublishedFiles:
    """The files of an index directory, each given out once its bytes have been found to be those published.

    Args:
        directory: The index directory, or one that is held.
        entries: The manifest's lengths and digests; None trusts every file.
    """

    def __init__(self, directory: Path | HeldDirectory, entries: Mapping[str, FileEntry] | None = None) -> None:
        self._held = directory  # as long as somebody may ask for a file
        self.directory = directory.path if isinstance(directory, HeldDirectory) else directory
        self._entries = entries
        self._first_use = FirstUse()

    def path(self, file: str) -> Path:
        """Where a file lies, checked before this is told for the first time.

        Args:
            file: Its path inside the directory, one that the manifest lists.

        Returns:
            Its path.
        """
        target = self.directory / file
        if self._entries is not None:
            entries = self._entries
            self._first_use.check(file, stamp_of(target), lambda: check_file(self.directory, entries, file))
        return target

    def stamp(self, file: str) -> Stamp | None:
        """What tells the state of a file from another; not checked.

        Args:
            file: Its path inside the directory.

        Returns:
            Its stamp; None where it is not there.
        """
        return stamp_of(self.directory / file)


def check_file(directory: Path, entries: Mapping[str, FileEntry], file: str, *, digest: bool = True) -> None:
    """Refuse a file that is not the one published.

    Args:
        directory: The index directory.
        entries: The manifest's lengths and digests.
        file: Its path inside the directory.
        digest: Whether to read it; else its length is believed.

    Raises:
        MissingFileError: If it is not there.
        SwappedFilesError: If it has the bytes of another file of this index.
        TruncatedFileError: If it is shorter.
        OversizedFileError: If it is longer.
        DigestMismatchError: If it has the right length and other bytes.
    """
    entry, target = entries[file], directory / file
    if not target.is_file():
        raise MissingFileError(file, "is missing; restore it, or rebuild the index")
    size = target.stat().st_size
    if digest and any(other.bytes == size for other in entries.values()):
        found = digest_file(target)
        if found == entry.blake3:
            return
        owner = next((other for other, each in entries.items() if each.blake3 == found), None)
        if owner is not None:
            raise SwappedFilesError(file, f"holds the bytes of {owner}")
        if size == entry.bytes:
            raise DigestMismatchError(file, f"its BLAKE3 digest is {found}, the manifest says {entry.blake3}")
    lengths = f"has {size} bytes, the manifest says {entry.bytes}"
    if size < entry.bytes:
        raise TruncatedFileError(file, lengths)
    if size > entry.bytes:
        raise OversizedFileError(file, lengths)
