"""The journal of a build: one synced line per finished block or file, with digests, so that resume trusts nothing.

A line is a JSON object whose last member is the BLAKE3 digest of the object without it.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from sketchstore.digests import digest_bytes
from sketchstore.manifest import ColumnName, Digest, FilePath, Section, ViewName
from sketchstore.storing import storing

_DIGEST = b',"digest":"'


class BlockLine(Section):
    """A finished block: digest of its stored bytes in every view and column, and its subnormal entries."""

    block: Annotated[int, Field(ge=0)]
    sketches: dict[ViewName, Digest]
    subnormal: dict[ViewName, Annotated[int, Field(ge=0)]]
    columns: dict[ColumnName, Digest]


class FileLine(Section):
    """A finished file that is written whole."""

    file: FilePath
    blake3: Digest


@dataclass
class Journal:
    """Finished blocks and files, as far as the journal on the disk is readable."""

    path: Path
    blocks: dict[int, BlockLine]
    files: dict[FilePath, str]

    @classmethod
    def open(cls, path: Path) -> "Journal":
        """Read a journal, cutting off the line that a kill left unfinished or something damaged, and what is behind it.

        Args:
            path: The journal; it is made if there is none.

        Returns:
            The journal, ready for more lines.
        """
        journal = cls(path, {}, {})
        content = path.read_bytes() if path.exists() else b""
        kept = 0
        for line in content.splitlines(keepends=True):
            if not line.endswith(b"\n") or not journal._take(line):
                break
            kept += len(line)
        with storing(path), path.open("ab") as stream:
            stream.truncate(kept)
            os.fsync(stream.fileno())
        return journal

    def _take(self, line: bytes) -> bool:
        head, _, digest = line.rpartition(_DIGEST)
        text = head + b"}"
        if digest != digest_bytes(text).encode() + b'"}\n':
            return False
        try:
            if b'"block"' in text:
                block = BlockLine.model_validate_json(text)
                self.blocks[block.block] = block
            else:
                file = FileLine.model_validate_json(text)
                self.files[file.file] = file.blake3
        except ValidationError:
            return False
        return True

    def append(self, line: BlockLine | FileLine) -> None:
        """Add a line and sync it: what it describes must already be on the disk.

        Args:
            line: What was finished.
        """
        text = json.dumps(line.model_dump(mode="json"), separators=(",", ":")).encode()
        text = text[:-1] + _DIGEST + digest_bytes(text).encode() + b'"}\n'
        with storing(self.path), self.path.open("ab") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        self._take(text)
