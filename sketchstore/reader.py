"""Opening an index directory: check it, then read sketches, examples, queries and derived entries lazily."""

import os
from collections.abc import Set
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from sketchstore.arrays import map_npy
from sketchstore.derived import Derived
from sketchstore.errors import (
    FormatVersionError,
    IndexNotFoundError,
    UnknownColumnError,
    UnknownViewError,
    UnpublishedIndexError,
    listed,
)
from sketchstore.examples import ExampleTable
from sketchstore.first_use import PublishedFiles, Stamp
from sketchstore.held import HeldDirectory
from sketchstore.inspection import Damage, find_damage
from sketchstore.layout import PARTIAL_SUFFIX
from sketchstore.manifest import DERIVED, MANIFEST, QUERY_REPRESENTATIONS, Manifest, column_file, read_manifest
from sketchstore.publish import REPLACED
from sketchstore.queries import QueryStore
from sketchstore.view import View

Check = Literal["digests", "use", "sizes"]
#: What is the same file in two revisions: the digest that the manifest gives it, and what the disk says of it.
KnownFile = tuple[str, Stamp | None]
WEIGHTS = "model.safetensors"


class Index:
    """An open index directory, read-only, at the revision it had when it was opened.

    Args:
        path: The directory.
        manifest: Its manifest, already checked.
        files: Its files; by default all of them are trusted.
    """

    def __init__(self, path: Path, manifest: Manifest, files: PublishedFiles | None = None) -> None:
        self.path = path
        self.manifest = manifest
        self.files = files or PublishedFiles(HeldDirectory(path))
        self.name = manifest.name
        self.revision = manifest.revision
        self.num_rows = manifest.num_rows
        self.sketch_dim = manifest.sketch_dim
        self._kept = manifest.kept
        self.labels = self.column("labels")
        self.views = {name: View(self.files, manifest, name, self.labels) for name in manifest.views}
        self.examples = ExampleTable(self.files, "examples.parquet", manifest.num_rows, "train", self._kept)
        self.queries = (
            QueryStore(
                self.files,
                manifest.queries,
                manifest.sketch_dim,
                has_representations=QUERY_REPRESENTATIONS in manifest.files,
            )
            if manifest.queries
            else None
        )
        self.derived = Derived(self.files, manifest, self.views)

    def __repr__(self) -> str:
        return f"Index({self.name!r}, revision {self.revision}, {self.num_rows} rows, views {listed(self.views)})"

    def view(self, name: str) -> View:
        """One view.

        Args:
            name: The view.

        Returns:
            The view.

        Raises:
            UnknownViewError: If the index has no such view.
        """
        if name not in self.views:
            raise UnknownViewError(f"index {self.name!r} has no view {name!r}; its views are {listed(self.views)}")
        return self.views[name]

    def column(self, name: str) -> Tensor:
        """Per-row values, memory-mapped; a copy where rows were removed.

        Args:
            name: The column, such as ``labels``, ``one_minus_p`` or ``squared_norms.own``.

        Returns:
            Tensor whose first axis is the rows. Writing to it changes this process's copy only.

        Raises:
            UnknownColumnError: If the index has no such column.
        """
        if name not in self.manifest.columns:
            raise UnknownColumnError(
                f"index {self.name!r} has no column {name!r}; its columns are {listed(self.manifest.columns)}"
            )
        column, file = self.manifest.columns[name], column_file(name)
        values = map_npy(self.files.path(file), file, dtype=column.dtype, shape=column.shape)
        return torch.from_numpy(self._kept.take(values))

    @cached_property
    def predicted_labels(self) -> Tensor | None:
        """The label the model gives to every row, int64 [n]; None where none were stored."""
        return self.column("predicted_labels") if "predicted_labels" in self.manifest.columns else None

    def known_files(self) -> frozenset[KnownFile]:
        """The files of this revision as they are now, told from all others without reading them.

        Returns:
            Each file's digest, as published, with its stamp.
        """
        return frozenset((entry.blake3, self.files.stamp(file)) for file, entry in self.manifest.files.items())

    def check_files(self, known: Set[KnownFile] = frozenset()) -> None:
        """Compare files with their digests now, not before their first use; for an index opened with ``check="use"``.

        Args:
            known: Files of another revision. One that is the same file on the disk is left for its first use.

        Raises:
            CorruptIndexError: If a file is not as published.
        """
        for file, entry in self.manifest.files.items():
            if (entry.blake3, self.files.stamp(file)) not in known:
                self.files.path(file)
        self.derived.check()

    @property
    def has_weights(self) -> bool:
        """Whether the model's weights lie in the index."""
        return WEIGHTS in self.manifest.files

    @property
    def weights_path(self) -> Path | None:
        """The model's weights, or None for an index built without them."""
        return self.files.path(WEIGHTS) if self.has_weights else None


def _directory(path: str | os.PathLike[str]) -> Path:
    directory = Path(path)
    if not directory.exists() and (left := directory.with_name(directory.name + PARTIAL_SUFFIX) / REPLACED).is_dir():
        raise IndexNotFoundError(
            f"there is no index directory at {directory}: a change was interrupted while nothing had its name. Its "
            f"last revision lies in {left}, whole; move it back."
        )
    if not directory.is_dir():
        raise IndexNotFoundError(f"there is no index directory at {directory}. Build one with `indexer build`.")
    if directory.name.endswith(PARTIAL_SUFFIX):
        raise UnpublishedIndexError(f"{directory} is an unfinished build. Finish it with `indexer build --resume`.")
    if not (directory / MANIFEST).exists():
        inside = sorted(file.parent.name for file in directory.glob(f"*/{MANIFEST}") if file.parent.name != DERIVED)
        if inside:
            raise IndexNotFoundError(f"{directory} is a folder of indexes: {listed(inside)}. Name one of them.")
        if not any(directory.glob("*/")):
            raise IndexNotFoundError(f"{directory} has no {MANIFEST}: it is not an index directory.")
    return directory


def open_index(path: str | os.PathLike[str], *, check: Check = "digests", derived: bool = True) -> Index:
    """Open an index directory, refusing it at the first thing that is not as published.

    ``check="digests"`` reads every file once and compares it with the manifest. ``check="use"`` does so for the norms
    and labels, and for every other file before its first use, in whichever thread needs it first: a damaged one is
    refused then. ``check="sizes"`` reads the manifest, the norms, the labels and the files' lengths only, and believes
    the rest.

    Args:
        path: The index directory.
        check: How much to check.
        derived: Whether damaged or stale derived entries are refused too; ``indexer derive`` repairs them.

    Returns:
        The open index.

    Raises:
        CorruptIndexError: If a file is not as published: one subclass per kind of damage, naming the file.
    """
    directory = _directory(path)
    held = HeldDirectory(directory)  # all that is read now and later is of one revision
    for error in find_damage(held.path, depth=check, derived=derived):
        raise error
    manifest = read_manifest(held.path)
    return Index(directory, manifest, PublishedFiles(held, manifest.files if check == "use" else None))


def verify_index(path: str | os.PathLike[str]) -> list[Damage]:
    """Everything wrong with an index directory, found by reading all of it.

    Beyond what ``open_index`` checks, this reads the values: NaN and infinities, norms and their means, ids, query
    rows, and whether derived entries were built from these bytes.

    Args:
        path: The index directory.

    Returns:
        Every damage found; empty for a sound directory.
    """
    try:
        found = list(find_damage(_directory(path), depth="values"))
    except FormatVersionError as error:
        return [Damage(MANIFEST, "format_version", str(error))]
    return [Damage(error.file, error.kind, error.message) for error in found]
