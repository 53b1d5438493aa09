"""A directory held open, so that its files are found in it and in no other that takes its name meanwhile."""

import os
import weakref
from pathlib import Path

_DESCRIPTORS = Path("/proc/self/fd")


class HeldDirectory:
    """An index directory as it is now: a new revision published under its name does not show through.

    A new revision is a new directory that takes the old one's name. Files opened later by that name would be the new
    revision's. Linux finds them by the open directory instead; once the old directory is deleted, they are missing, and
    never other ones. Where a system has no such paths, the name has to do, and the digests catch what was mixed.

    Args:
        directory: The directory.

    Attributes:
        path: The directory, by a path that stays this very one while the object lives.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory
        if _DESCRIPTORS.is_dir():
            descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            self.path = _DESCRIPTORS / str(descriptor)
            weakref.finalize(self, os.close, descriptor)
