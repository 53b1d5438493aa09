"""derived/manifest.json: which derived files there are, and everything each was built from."""

import os
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, JsonValue, ValidationError

from sketchstore.digests import digest_file, digest_json
from sketchstore.errors import CorruptDerivedError, DerivedManifestError, StaleDerivedError
from sketchstore.layout import files_below
from sketchstore.manifest import DERIVED, Digest, FilePath, Manifest, Section, column_file
from sketchstore.view import partition_name

DERIVED_MANIFEST = "derived/manifest.json"
CURE = "Rebuild it with `indexer derive`, or delete derived/; nothing else is lost."
Kind = Literal["faiss", "spectrum", "leverages", "codes", "heads"]
_PLACES: dict[Kind, tuple[str, str]] = {
    "faiss": ("faiss", "faiss"),
    "spectrum": ("spectra", "safetensors"),
    "leverages": ("leverages", "safetensors"),
    "codes": ("codes", "safetensors"),
    "heads": ("heads", "safetensors"),
}


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
    digest: Digest | None = None
    """BLAKE3 of the entries' canonical JSON; None in what was written before there was one."""


def entry_file(kind: Kind, view: str, label: int | None) -> str:
    """Where a derived entry lies.

    Args:
        kind: What is derived.
        view: The view.
        label: The partition's label, or None for all rows.

    Returns:
        Path below derived/.
    """
    return _place(kind, view, partition_name(label))


def _place(kind: Kind, view: str, partition: str) -> str:
    folder, suffix = _PLACES[kind]
    return f"{folder}/{view}/{partition}.{suffix}"


def read_derived_manifest(path: Path) -> DerivedManifest:
    """Read derived/manifest.json.

    Args:
        path: The index directory.

    Returns:
        Its entries; none where there is no derived/.

    Raises:
        DerivedManifestError: If it is not JSON of this format.
    """
    if not os.path.lexists(path / DERIVED_MANIFEST):
        return DerivedManifest()
    if not (path / DERIVED_MANIFEST).is_file():
        raise DerivedManifestError(DERIVED_MANIFEST, f"is no file. {CURE}")
    try:
        text = (path / DERIVED_MANIFEST).read_bytes()
    except FileNotFoundError:
        return DerivedManifest()
    try:
        found = DerivedManifest.model_validate_json(text, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "file"
        raise DerivedManifestError(DERIVED_MANIFEST, f"{where}: {first['msg']}. {CURE}") from error
    if found.digest not in (None, digest_entries(found.entries)):
        raise DerivedManifestError(DERIVED_MANIFEST, f"its entries do not have the digest that it states. {CURE}")
    return found


def digest_entries(entries: Mapping[str, Entry]) -> str:
    """Digest of what derived/manifest.json lists.

    Args:
        entries: Entries by file name below derived/.

    Returns:
        64 hexadecimal digits.
    """
    return digest_json({file: entry.model_dump(mode="json") for file, entry in entries.items()})


def unlisted(path: Path, entries: Container[str]) -> list[str]:
    """Files that an interrupted derivation left: finished, and not in the list, so that nobody reads them.

    Args:
        path: The index directory.
        entries: What is listed.

    Returns:
        Paths below derived/, without those whose name begins with a dot.
    """
    return [
        file
        for file in files_below(path / DERIVED)
        if file != "manifest.json" and file not in entries and not Path(file).name.startswith(".")
    ]


def built_from(manifest: Manifest, kind: str, view: str, partition: str, options: Mapping[str, JsonValue]) -> str:
    """Digest of everything a derived entry is built from.

    Args:
        manifest: The index's manifest.
        kind: What is derived.
        view: The view.
        partition: Its partition.
        options: What the builder was asked for.

    Returns:
        The key, 64 hexadecimal digits.
    """
    entry = manifest.views[view]
    removed = {"removed": [list(each) for each in manifest.removed]} if manifest.removed else {}
    return digest_json(
        {
            **removed,
            "kind": kind,
            "view": view,
            "partition": partition,
            "options": dict(options),
            "sketches": [manifest.files[shard.file].blake3 for shard in entry.shards],
            "scale_exponent": entry.scale_exponent,
            "labels": None if partition == "all" else manifest.files[column_file("labels")].blake3,
        }
    )


def check_entry(path: Path, manifest: Manifest, file: str, entry: Entry, *, digest: bool = True) -> None:
    """Refuse a derived entry that is damaged, or that was built from other bytes.

    Args:
        path: The index directory.
        manifest: Its manifest.
        file: The entry's file below derived/.
        entry: What derived/manifest.json says about it.
        digest: Whether to read it; else its length is believed.

    Raises:
        StaleDerivedError: If it was built from other sketches, labels, scale or options.
        CorruptDerivedError: If the file is missing, has another length or digest, or is listed as something else.
    """
    name = f"{DERIVED}/{file}"
    if file != _place(entry.kind, entry.view, entry.partition):
        raise CorruptDerivedError(name, f"is listed as {entry.kind} of {entry.view}, {entry.partition}. {CURE}")
    if entry.view not in manifest.views or entry.built_from != built_from(
        manifest, entry.kind, entry.view, entry.partition, entry.options
    ):
        raise StaleDerivedError(name, f"was built from other sketches than this index holds. {CURE}")
    target = path / DERIVED / file
    if not target.is_file():
        raise CorruptDerivedError(name, f"is missing. {CURE}")
    if target.stat().st_size != entry.bytes:
        raise CorruptDerivedError(name, f"has {target.stat().st_size} bytes, must have {entry.bytes}. {CURE}")
    if digest and digest_file(target) != entry.blake3:
        raise CorruptDerivedError(name, f"its BLAKE3 digest is not {entry.blake3}. {CURE}")
