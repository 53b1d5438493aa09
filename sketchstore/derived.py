"""Derived entries: FAISS indexes, spectra, codes and heads, deletable, rebuildable, checked before first use."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import filelock
import torch
from pydantic import JsonValue
from torch import Tensor

from sketchstore.arrays import map_tensor, tensor_file_bytes
from sketchstore.codes import Codes, map_codes
from sketchstore.derived_manifest import (
    CURE,
    DERIVED_MANIFEST,
    DerivedManifest,
    Entry,
    Kind,
    built_from,
    check_entry,
    digest_entries,
    entry_file,
    read_derived_manifest,
    unlisted,
)
from sketchstore.digests import digest_file
from sketchstore.errors import CorruptDerivedError, DerivedManifestError, MissingDerivedError, listed
from sketchstore.first_use import FirstUse, PublishedFiles, stamp_of
from sketchstore.heads import Heads, map_heads
from sketchstore.layout import files_below, finish_file, sync_file, write_file
from sketchstore.manifest import DERIVED, Manifest
from sketchstore.storing import storing
from sketchstore.view import View, partition_name

Form = Literal["kernel", "gram"]


@dataclass(frozen=True)
class StoredSpectrum:
    """A Gram matrix and its eigendecomposition, float64.

    ``kernel``: Φ Φᵀ [n, n] of the partition's rows in ascending order. ``gram``: ΦᵀΦ [d, d].
    """

    form: Form
    gram: Tensor
    eigenvalues: Tensor
    eigenvectors: Tensor


class Derived:
    """The derived entries of an index: read with a check before every first use, written atomically.

    Args:
        files: The files of the index directory.
        manifest: Its manifest.
        views: Its views.
    """

    def __init__(self, files: PublishedFiles, manifest: Manifest, views: Mapping[str, View]) -> None:
        self._files = files
        self._path = files.directory
        self._manifest = manifest
        self._views = views
        self._first_use = FirstUse()

    def entries(self) -> dict[str, Entry]:
        """What derived/manifest.json lists now.

        Returns:
            Entries by file below derived/.
        """
        return read_derived_manifest(self._path).entries

    def entry(self, kind: Kind, view: str, label: int | None = None) -> Entry | None:
        """One entry, unchecked.

        Args:
            kind: What is derived.
            view: The view.
            label: The partition's label, or None for all rows.

        Returns:
            The entry, or None where there is none.
        """
        return self.entries().get(entry_file(kind, view, label))

    def file(self, kind: Kind, view: str, label: int | None = None) -> tuple[Path, Entry]:
        """The file of an entry, checked against its digest before anyone parses it.

        Args:
            kind: What is derived.
            view: The view.
            label: The partition's label, or None for all rows.

        Returns:
            Path and entry.

        Raises:
            MissingDerivedError: If the index has no such entry.
        """
        name = entry_file(kind, view, label)
        entries = self.entries()
        if name not in entries:
            raise MissingDerivedError(
                f"index {self._manifest.name!r} has no {DERIVED}/{name}; it has {listed(entries)}. "
                "Build it with `indexer derive`."
            )
        return self._checked(name, entries[name]), entries[name]

    def check(self) -> None:
        """Compare all that is listed with its digests now, not before its first use.

        Raises:
            DerivedError: If an entry is damaged or stale.
        """
        for name, entry in self.entries().items():
            self._checked(name, entry)

    def _checked(self, name: str, entry: Entry) -> Path:
        target = self._path / DERIVED / name
        state = entry, stamp_of(target)
        self._first_use.check(name, state, lambda: check_entry(self._path, self._manifest, name, entry))
        return target

    def spectrum(self, view: str, label: int | None = None) -> StoredSpectrum:
        """A stored Gram matrix and its eigendecomposition.

        Args:
            view: The view.
            label: The partition's label, or None for all rows.

        Returns:
            The spectrum, memory-mapped.

        Raises:
            CorruptDerivedError: If its form is not one the format knows.
        """
        path, entry = self.file("spectrum", view, label)
        name = path.relative_to(self._path).as_posix()
        size = entry.rows if entry.options.get("form") == "kernel" else self._manifest.sketch_dim
        square = (size, size)
        form: Form
        match entry.options.get("form"):
            case "kernel":
                form = "kernel"
            case "gram":
                form = "gram"
            case other:
                raise CorruptDerivedError(name, f"form is {other!r}, must be 'kernel' or 'gram'. {CURE}")
        return StoredSpectrum(
            form=form,
            gram=torch.from_numpy(map_tensor(path, name, "gram", dtype="<f8", shape=square)),
            eigenvalues=torch.from_numpy(map_tensor(path, name, "eigenvalues", dtype="<f8", shape=(size,))),
            eigenvectors=torch.from_numpy(map_tensor(path, name, "eigenvectors", dtype="<f8", shape=square)),
        )

    def codes(self, view: str) -> Codes:
        """The 8-bit codes of a view, all rows.

        Args:
            view: The view.

        Returns:
            The codes, memory-mapped.
        """
        path, entry = self.file("codes", view)
        name = path.relative_to(self._path).as_posix()
        return map_codes(path, name, entry.rows, self._manifest.sketch_dim)

    def heads(self, view: str) -> Heads:
        """The heads of a view in its leading principal directions, all rows.

        Args:
            view: The view.

        Returns:
            The heads, memory-mapped.
        """
        path, entry = self.file("heads", view)
        name = path.relative_to(self._path).as_posix()
        return map_heads(path, name, entry.rows, self._manifest.sketch_dim)

    def write_spectrum(self, view: str, label: int | None, spectrum: StoredSpectrum) -> Path:
        """Store a Gram matrix and its eigendecomposition.

        Args:
            view: The view.
            label: The partition's label, or None for all rows.
            spectrum: Its tensors, float64.

        Returns:
            The file.
        """
        data = tensor_file_bytes(
            {
                "gram": spectrum.gram.numpy(),
                "eigenvalues": spectrum.eigenvalues.numpy(),
                "eigenvectors": spectrum.eigenvectors.numpy(),
            }
        )
        return self.write("spectrum", view, label, {"form": spectrum.form}, lambda path: path.write_bytes(data))

    def write(
        self,
        kind: Kind,
        view: str,
        label: int | None,
        options: Mapping[str, JsonValue],
        build: Callable[[Path], object],
        measured: Mapping[str, JsonValue] | None = None,
    ) -> Path:
        """Build one derived file and list it.

        The old entry leaves the list before its file is replaced, so a crash leaves a file that is not listed and
        never an entry that describes other bytes.

        Args:
            kind: What is derived.
            view: The view.
            label: The partition's label, or None for all rows.
            options: What it was built with; part of its key.
            build: Writes the file to the path it is given.
            measured: What was measured on it, such as recall.

        Returns:
            The file.
        """
        name = entry_file(kind, view, label)
        target = self._path / DERIVED / name
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.tmp")
        with storing(target):
            build(temporary)
        sync_file(temporary)
        partition = partition_name(label)
        entry = Entry(
            kind=kind,
            view=view,
            partition=partition,
            rows=self._views[view].partition_rows(label).numel(),
            options=dict(options),
            built_from=built_from(self._manifest, kind, view, partition, options),
            bytes=temporary.stat().st_size,
            blake3=digest_file(temporary),
            measured=None if measured is None else dict(measured),
        )
        with filelock.FileLock(self._path / DERIVED / ".lock"):
            self._list(remove=name)
            finish_file(temporary, target)
            self._list(add=(name, entry))
        return target

    def remove(self, kind: Kind, view: str, label: int | None = None) -> None:
        """Delete one derived entry; deleting what is not there is no error.

        Args:
            kind: What is derived.
            view: The view.
            label: The partition's label, or None for all rows.
        """
        name = entry_file(kind, view, label)
        if not (self._path / DERIVED).is_dir():
            return
        with filelock.FileLock(self._path / DERIVED / ".lock"):
            self._list(remove=name)
            (self._path / DERIVED / name).unlink(missing_ok=True)

    @contextmanager
    def deriving(self) -> Iterator[None]:
        """Keep other processes from deriving of this index meanwhile, and clear away what a kill of one left.

        Yields:
            Nothing; a process that came first is waited for.
        """
        folder = self._path / DERIVED
        folder.mkdir(exist_ok=True)
        with filelock.FileLock(folder / ".deriving"):
            for file in files_below(folder):
                if Path(file).name.startswith(".") and file not in (".lock", ".deriving"):
                    (folder / file).unlink()
            with suppress(DerivedManifestError):
                for file in unlisted(self._path, self.entries()):
                    (folder / file).unlink()
            yield

    def _list(self, *, remove: str | None = None, add: tuple[str, Entry] | None = None) -> None:
        try:
            entries = self.entries()
        except DerivedManifestError:
            entries = {}  # unreadable: what it listed is rebuilt, and reported as unlisted until then
        entries = {file: entry for file, entry in entries.items() if file != remove}
        if add is not None:
            entries[add[0]] = add[1]
        entries = dict(sorted(entries.items()))
        content = DerivedManifest(entries=entries, digest=digest_entries(entries)).model_dump(mode="json")
        write_file(self._path / DERIVED_MANIFEST, (json.dumps(content, indent=2) + "\n").encode())
