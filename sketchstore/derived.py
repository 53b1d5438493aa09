"""Derived entries: FAISS indexes and spectra, deletable and rebuildable, each keyed by all it was built from."""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import filelock
import torch
from pydantic import Field, JsonValue, ValidationError
from torch import Tensor

from sketchstore.arrays import map_tensor, tensor_file_bytes
from sketchstore.digests import digest_file, digest_json
from sketchstore.errors import (
    CorruptDerivedError,
    DerivedError,
    DerivedManifestError,
    MissingDerivedError,
    StaleDerivedError,
    listed,
)
from sketchstore.layout import files_below, finish_file, write_file
from sketchstore.manifest import DERIVED, Digest, FilePath, Manifest, Section, column_file
from sketchstore.view import View, partition_name

DERIVED_MANIFEST = "derived/manifest.json"
Kind = Literal["faiss", "spectrum"]
Form = Literal["kernel", "gram"]


class Entry(Section):
    """One derived file. ``built_from`` digests the sketches, scale, rows and options it was built from."""

    kind: Kind
    view: str
    partition: str
    rows: Annotated[int, Field(ge=0)]
    options: dict[str, JsonValue]
    built_from: Digest
    bytes: Annotated[int, Field(ge=0)]
    blake3: Digest
    measured: dict[str, JsonValue] | None = None


class DerivedManifest(Section):
    """derived/manifest.json: entries by file name below derived/."""

    format: Literal["nattribute-derived"] = "nattribute-derived"
    format_version: Literal[1] = 1
    entries: dict[FilePath, Entry] = Field(default_factory=dict)


@dataclass(frozen=True)
class StoredSpectrum:
    """A Gram matrix and its eigendecomposition, float64.

    ``kernel``: Φ Φᵀ [n, n] of the partition's rows in ascending order. ``gram``: ΦᵀΦ [d, d].
    """

    form: Form
    gram: Tensor
    eigenvalues: Tensor
    eigenvectors: Tensor


def entry_file(kind: Kind, view: str, label: int | None) -> str:
    """Where a derived entry lies.

    Args:
        kind: "faiss" or "spectrum".
        view: The view.
        label: The partition's label, or None for all rows.

    Returns:
        Path below derived/.
    """
    folder, suffix = ("faiss", "faiss") if kind == "faiss" else ("spectra", "safetensors")
    return f"{folder}/{view}/{partition_name(label)}.{suffix}"


def read_derived_manifest(path: Path) -> DerivedManifest:
    """Read derived/manifest.json.

    Args:
        path: The index directory.

    Returns:
        Its entries; none where there is no derived/.

    Raises:
        DerivedManifestError: If it is not JSON of this format.
    """
    try:
        text = (path / DERIVED_MANIFEST).read_bytes()
    except FileNotFoundError:
        return DerivedManifest()
    try:
        return DerivedManifest.model_validate_json(text, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "file"
        raise DerivedManifestError(DERIVED_MANIFEST, f"{where}: {first['msg']}. {CURE}") from error


CURE = "Rebuild it with `indexer derive`, or delete derived/; nothing else is lost."


def built_from(manifest: Manifest, kind: str, view: str, partition: str, options: Mapping[str, JsonValue]) -> str:
    """Digest of everything a derived entry is built from.

    Args:
        manifest: The index's manifest.
        kind: "faiss" or "spectrum".
        view: The view.
        partition: Its partition.
        options: What the builder was asked for.

    Returns:
        The key, 64 hexadecimal digits.
    """
    entry = manifest.views[view]
    return digest_json(
        {
            "kind": kind,
            "view": view,
            "partition": partition,
            "options": dict(options),
            "sketches": [manifest.files[shard.file].blake3 for shard in entry.shards],
            "scale_exponent": entry.scale_exponent,
            "labels": None if partition == "all" else manifest.files[column_file("labels")].blake3,
        }
    )


def find_derived_damage(path: Path, manifest: Manifest) -> Iterator[DerivedError]:
    """Everything wrong below derived/.

    Args:
        path: The index directory.
        manifest: Its manifest.

    Yields:
        One error per damaged, stale or unlisted file.
    """
    try:
        derived = read_derived_manifest(path)
    except DerivedManifestError as error:
        yield error
        return
    for file, entry in derived.entries.items():
        try:
            check_entry(path, manifest, file, entry)
        except DerivedError as error:
            yield error
    for file in files_below(path / DERIVED):
        if file != "manifest.json" and file not in derived.entries and not Path(file).name.startswith("."):
            yield CorruptDerivedError(f"{DERIVED}/{file}", f"is not listed in {DERIVED_MANIFEST}. {CURE}")


def check_entry(path: Path, manifest: Manifest, file: str, entry: Entry) -> None:
    """Refuse a derived entry that is damaged, or that was built from other bytes.

    Args:
        path: The index directory.
        manifest: Its manifest.
        file: The entry's file below derived/.
        entry: What derived/manifest.json says about it.

    Raises:
        StaleDerivedError: If it was built from other sketches, labels, scale or options.
        CorruptDerivedError: If the file is missing, or has another length or digest.
    """
    name = f"{DERIVED}/{file}"
    if entry.view not in manifest.views or entry.built_from != built_from(
        manifest, entry.kind, entry.view, entry.partition, entry.options
    ):
        raise StaleDerivedError(name, f"was built from other sketches than this index holds. {CURE}")
    target = path / DERIVED / file
    if not target.is_file():
        raise CorruptDerivedError(name, f"is missing. {CURE}")
    if target.stat().st_size != entry.bytes:
        raise CorruptDerivedError(name, f"has {target.stat().st_size} bytes, must have {entry.bytes}. {CURE}")
    if digest_file(target) != entry.blake3:
        raise CorruptDerivedError(name, f"its BLAKE3 digest is not {entry.blake3}. {CURE}")


class Derived:
    """The derived entries of an index: read with a check before every first use, written atomically.

    Args:
        path: The index directory.
        manifest: Its manifest.
        views: Its views.
    """

    def __init__(self, path: Path, manifest: Manifest, views: Mapping[str, View]) -> None:
        self._path = path
        self._manifest = manifest
        self._views = views
        self._checked: dict[str, tuple[str, int, int, int]] = {}

    def entries(self) -> dict[str, Entry]:
        """What derived/manifest.json lists now.

        Returns:
            Entries by file below derived/.
        """
        return read_derived_manifest(self._path).entries

    def entry(self, kind: Kind, view: str, label: int | None = None) -> Entry | None:
        """One entry, unchecked.

        Args:
            kind: "faiss" or "spectrum".
            view: The view.
            label: The partition's label, or None for all rows.

        Returns:
            The entry, or None where there is none.
        """
        return self.entries().get(entry_file(kind, view, label))

    def file(self, kind: Kind, view: str, label: int | None = None) -> tuple[Path, Entry]:
        """The file of an entry, checked against its digest before anyone parses it.

        Args:
            kind: "faiss" or "spectrum".
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
        entry, target = entries[name], self._path / DERIVED / name
        stamp = _stamp(target, entry)
        if stamp is None or self._checked.get(name) != stamp:
            check_entry(self._path, self._manifest, name, entry)
            if stamp is not None:
                self._checked[name] = stamp
        return target, entry

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
            kind: "faiss" or "spectrum".
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
        build(temporary)
        descriptor = os.open(temporary, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
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
            kind: "faiss" or "spectrum".
            view: The view.
            label: The partition's label, or None for all rows.
        """
        name = entry_file(kind, view, label)
        if not (self._path / DERIVED).is_dir():
            return
        with filelock.FileLock(self._path / DERIVED / ".lock"):
            self._list(remove=name)
            (self._path / DERIVED / name).unlink(missing_ok=True)

    def _list(self, *, remove: str | None = None, add: tuple[str, Entry] | None = None) -> None:
        try:
            entries = self.entries()
        except DerivedManifestError:
            entries = {}  # unreadable: what it listed is rebuilt, and reported as unlisted until then
        entries = {file: entry for file, entry in entries.items() if file != remove}
        if add is not None:
            entries[add[0]] = add[1]
        content = DerivedManifest(entries=dict(sorted(entries.items()))).model_dump(mode="json")
        write_file(self._path / DERIVED_MANIFEST, (json.dumps(content, indent=2) + "\n").encode())


def _stamp(path: Path, entry: Entry) -> tuple[str, int, int, int] | None:
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return entry.blake3 + entry.built_from, status.st_ino, status.st_size, status.st_mtime_ns
