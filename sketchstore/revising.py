"""The next revision of an index directory: made beside it from files kept and files written, published in one step.

Until it is published the old revision is whole, and a kill leaves nothing but a folder that the next attempt clears.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from sketchstore.digests import digest_file
from sketchstore.errors import (
    BuildInProgressError,
    CorruptIndexError,
    FormatVersionError,
    IndexExistsError,
    UnfinishedBuildError,
    UpkeepError,
)
from sketchstore.layout import finish_file, sync_file, sync_tree, write_file
from sketchstore.manifest import (
    BUILD_LOG,
    FORMAT_VERSION,
    MANIFEST,
    FileEntry,
    Manifest,
    Source,
    read_manifest,
    revision_of,
)
from sketchstore.publish import take_name
from sketchstore.reader import Index
from sketchstore.storing import storing
from sketchstore.unfinished import PLAN, appending_path, clear, partial_path, put_back, take_lock

DRAFT = "revision"


class Draft:
    """A revision that is not published yet.

    Args:
        target: Where it will be published.
        partial: ``name.partial`` beside it, locked.

    Attributes:
        target: Where it will be published.
        content: Where it is made.
        files: Lengths and digests of the files it has so far.
        taken_over: Those that are files of a published index as they were, with their names there.
    """

    def __init__(self, target: Path, partial: Path) -> None:
        self.target = target
        self.files: dict[str, FileEntry] = {}
        self._partial = partial
        self.content = partial / DRAFT
        self.taken_over: dict[str, str] = {}

    def keep(self, index: Index, file: str, name: str | None = None) -> None:
        """Take over a file of a published index as it is: linked, so that nothing is copied; copied where links fail.

        Its bytes are not read: the digest goes with it, and whoever uses it first compares.

        Args:
            index: The index.
            file: The file in it.
            name: Its name in the new revision; None for the same.
        """
        name = file if name is None else name
        source, target = index.files.directory / file, self.content / name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source, target)
        except OSError:  # another file system, or one without links
            with storing(target):
                shutil.copyfile(source, target)
        self.files[name], self.taken_over[name] = index.manifest.files[file], file

    def write(self, file: str, data: bytes) -> None:
        """Write a file.

        Args:
            file: Its name.
            data: Its content.
        """
        write_file(self.content / file, data)
        self._finished(file)

    @contextmanager
    def writing(self, file: str) -> Iterator[Path]:
        """Write a file piece by piece.

        Args:
            file: Its name.

        Yields:
            A path to write to; the file has its name when the block ends.
        """
        target = self.content / file
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.tmp")
        with storing(target):
            yield temporary
        sync_file(temporary)
        finish_file(temporary, target)
        self._finished(file)

    def _finished(self, file: str) -> None:
        path = self.content / file
        self.files[file] = FileEntry(bytes=path.stat().st_size, blake3=digest_file(path))

    def log(self, index: Index | None, facts: Mapping[str, JsonValue]) -> None:
        """Carry on the log of an index, or begin one, with a line about this revision.

        Args:
            index: The index whose log goes on.
            facts: What to say; the time is added.
        """
        log = self.content / BUILD_LOG
        with storing(log):
            if index is not None and (index.files.directory / BUILD_LOG).is_file():
                shutil.copyfile(index.files.directory / BUILD_LOG, log)  # linked, two directories would share one log
            with log.open("a", encoding="utf-8") as stream:
                stream.write(log_line(facts))

    def publish(self, fields: Mapping[str, Any]) -> str:
        """Write the manifest, sync everything, and take the index's name in one step.

        Args:
            fields: The manifest's fields; ``files``, ``format_version`` and ``revision`` are filled in.

        Returns:
            The revision.
        """
        revision, text = manifest_text(
            {**fields, "files": {name: each.model_dump() for name, each in sorted(self.files.items())}}
        )
        write_file(self.content / MANIFEST, text)
        sync_tree(self.content)
        take_name(self.content, self.target, self._partial)
        return revision


def fields_of(manifest: Manifest) -> dict[str, Any]:
    """A manifest's fields as JSON values, with the source that a manifest of version 1 does not spell out.

    Args:
        manifest: The manifest.

    Returns:
        The fields, to be changed.
    """
    fields = manifest.model_dump(mode="json")
    fields["sources"] = [source.model_dump(mode="json") for source in sources_of(manifest)]
    return fields


def sources_of(manifest: Manifest) -> tuple[Source, ...]:
    """Where the rows of an index came from.

    Args:
        manifest: Its manifest, of any version.

    Returns:
        The sources, in the order in which they came.
    """
    whole = Source(
        recipe=manifest.recipe,
        first_row=0,
        rows=manifest.num_places,
        block_rows=manifest.build.block_rows,
        id_prefix="",
        data_order=manifest.digests.data_order,
    )
    return manifest.sources or (whole,)


def log_line(facts: Mapping[str, JsonValue]) -> str:
    """Write a line of build-log.jsonl.

    Args:
        facts: What to say; the time is added.

    Returns:
        The line.
    """
    return json.dumps({"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **facts}) + "\n"


def manifest_text(fields: Mapping[str, Any]) -> tuple[str, bytes]:
    """Write a manifest of the newest format version.

    Args:
        fields: Its fields as JSON values; ``format_version`` and ``revision`` are filled in.

    Returns:
        The revision and the file's content.
    """
    complete = {**fields, "format_version": FORMAT_VERSION, "revision": "0" * 32}
    complete = Manifest.model_validate(complete).model_dump(mode="json")
    complete["revision"] = revision_of(complete)
    return complete["revision"], (json.dumps(complete, indent=2, ensure_ascii=False) + "\n").encode()


def check_unchanged(index: Index) -> None:
    """Refuse to follow a revision that is not the index's any more.

    Args:
        index: The index as it was read.

    Raises:
        UpkeepError: If its directory holds another revision by now.
    """
    if read_manifest(index.path).revision != index.revision:
        raise UpkeepError(f"index {index.name!r} was changed by somebody else meanwhile; do it again.")


def sweep(target: Path) -> None:
    """Delete what a killed change of an index left beside it: after a purge, the rows that were purged.

    An unfinished build stays, and so does what somebody is working on.

    Args:
        target: The index directory.
    """
    partial = partial_path(target.resolve())
    if partial.is_dir() and not (partial / PLAN).exists():
        with suppress(BuildInProgressError), take_lock(partial):
            clear(partial, target.resolve())
    _sweep_appended(target.resolve())


def _sweep_appended(target: Path) -> None:
    # Rows sketched for an append that was killed right after it published them: they are in the index, and what is
    # left of them beside it would outlive their removal. Rows not yet published are kept for --resume; the digest of
    # the data covers ids, which no other source of the index shares.
    work = appending_path(target)
    rows = work / "rows"
    if not ((rows / MANIFEST).is_file() and (target / MANIFEST).is_file()):
        return
    with suppress(CorruptIndexError, FormatVersionError):
        published = {source.data_order for source in read_manifest(target).sources}
        if read_manifest(rows).digests.data_order in published:
            shutil.rmtree(work)


@contextmanager
def locked(target: Path) -> Iterator[Path]:
    """Keep everybody else from building or changing an index meanwhile.

    Args:
        target: The index directory.

    Yields:
        ``name.partial`` beside it, for work in progress; deleted at the end.

    Raises:
        UnfinishedBuildError: If an unfinished build lies there.
    """
    partial = partial_path(target)
    if (partial / PLAN).exists():
        raise UnfinishedBuildError(
            f"{partial} holds an unfinished build of this index. Finish it with `indexer build --resume`, or delete it."
        )
    partial.mkdir(parents=True, exist_ok=True)
    lock = take_lock(partial)
    try:
        put_back(partial, target)
        yield partial
    finally:
        clear(partial, target)
        lock.release()


@contextmanager
def drafted(target: str | os.PathLike[str], *, follows: Index | None) -> Iterator[Draft]:
    """Begin the next revision of an index, or a new index.

    Args:
        target: The index directory.
        follows: The index as it was read, whose next revision this is; None for a new index.

    Yields:
        The draft. Leaving the block without ``publish`` discards it.

    Raises:
        IndexExistsError: If a new index is to be where something is.
    """
    path = Path(target).resolve()  # the directory itself, not a link that leads to it
    if follows is None and os.path.lexists(path):
        raise IndexExistsError(f"{path} exists. Choose another --out.")
    with locked(path) as partial:
        if follows is not None:
            check_unchanged(follows)
        shutil.rmtree(partial / DRAFT, ignore_errors=True)
        (partial / DRAFT).mkdir()
        yield Draft(path, partial)
