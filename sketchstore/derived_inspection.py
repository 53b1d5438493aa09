"""What is wrong below derived/: damaged, stale and unlisted files, codes and heads that are not of the sketches."""

from collections.abc import Iterator
from pathlib import Path

import torch

from sketchstore.codes import LARGEST_CODE, OPTIONS, encode, map_codes
from sketchstore.derived_manifest import (
    CURE,
    DERIVED_MANIFEST,
    Entry,
    check_entry,
    read_derived_manifest,
    unlisted,
)
from sketchstore.errors import CorruptDerivedError, CorruptIndexError, DerivedManifestError
from sketchstore.first_use import PublishedFiles
from sketchstore.heads import MAX_DEPARTURE, departure, head_options, least_errors, map_heads, project
from sketchstore.manifest import DERIVED, Manifest
from sketchstore.view import View


def find_derived_damage(
    path: Path, manifest: Manifest, *, digests: bool = True, values: bool = False
) -> Iterator[CorruptIndexError]:
    """Everything wrong below derived/.

    Args:
        path: The index directory.
        manifest: Its manifest.
        digests: Whether to read the files; else their lengths are believed.
        values: Whether to compare codes and heads with the sketches, which are read for it, and to name files that are
            not listed.

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
            check_entry(path, manifest, file, entry, digest=digests)
            if values and entry.kind == "codes":
                check_codes(path, manifest, file, entry)
            if values and entry.kind == "heads":
                check_heads(path, manifest, file, entry)
        except CorruptIndexError as error:
            yield error
    if values:  # what is not listed is never read: an interrupted derivation leaves it, and the index can be used
        for file in unlisted(path, derived.entries):
            yield CorruptDerivedError(f"{DERIVED}/{file}", f"is not listed in {DERIVED_MANIFEST}. {CURE}")


def check_codes(path: Path, manifest: Manifest, file: str, entry: Entry) -> None:
    """Refuse codes that are not those of the stored sketches, or errors that do not bound the distance.

    Args:
        path: The index directory.
        manifest: Its manifest.
        file: The entry's file below derived/, already checked against its digest.
        entry: What derived/manifest.json says about it.

    Raises:
        CorruptDerivedError: If a code or scale is another one, or an error is too small, NaN or infinite.
    """
    name = f"{DERIVED}/{file}"
    if entry.options != OPTIONS:
        raise CorruptDerivedError(name, f"options are {entry.options}, must be {OPTIONS}. {CURE}")
    codes = map_codes(path / DERIVED / file, name, manifest.num_rows, manifest.sketch_dim)
    view = View(PublishedFiles(path), manifest, entry.view, torch.empty(0, dtype=torch.int64))
    for rows, sketches in view.blocks():
        block = slice(int(rows[0]), int(rows[-1]) + 1)
        again = encode(sketches, slack=1.0)
        errors = torch.from_numpy(codes.errors[block])
        wrong = (torch.from_numpy(codes.codes[block]) != again.codes).any(dim=1)
        wrong |= torch.from_numpy(codes.scales[block]) != again.scales
        low = ~((errors >= again.errors) & errors.isfinite())
        for what, found in (("codes or scale are not those of the sketch", wrong), ("error is no upper bound", low)):
            if found.any():
                raise CorruptDerivedError(name, f"row {int(rows[found][0])}: its {what}. {CURE}")


def check_heads(path: Path, manifest: Manifest, file: str, entry: Entry) -> None:
    """Refuse heads that say something untrue of the stored sketches.

    Args:
        path: The index directory.
        manifest: Its manifest.
        file: The entry's file below derived/, already checked against its digest.
        entry: What derived/manifest.json says about it.

    Raises:
        CorruptDerivedError: If the basis is not orthonormal, or an error or a tail is too small, NaN or infinite.
    """
    name = f"{DERIVED}/{file}"
    if entry.options != (options := head_options(manifest.sketch_dim)):
        raise CorruptDerivedError(name, f"options are {entry.options}, must be {options}. {CURE}")
    heads = map_heads(path / DERIVED / file, name, manifest.num_rows, manifest.sketch_dim)
    basis = torch.from_numpy(heads.basis)
    if not (found := departure(basis)) <= MAX_DEPARTURE:
        raise CorruptDerivedError(
            name, f"basis is not orthonormal: an entry of B Bᵀ − I is {found:.2g}, at most {MAX_DEPARTURE:g}. {CURE}"
        )
    view = View(PublishedFiles(path), manifest, entry.view, torch.empty(0, dtype=torch.int64))
    for rows, sketches in view.blocks():
        block = slice(int(rows[0]), int(rows[-1]) + 1)
        codes, scales = torch.from_numpy(heads.codes[block]), torch.from_numpy(heads.scales[block])
        errors, tails = torch.from_numpy(heads.errors[block]), torch.from_numpy(heads.tails[block])
        projected = project(sketches, basis, slack=1.0)
        outside = (codes.amin(dim=1) < -LARGEST_CODE) | ~((scales >= 0) & scales.isfinite())
        loose = ~((errors >= least_errors(projected, codes, scales)) & errors.isfinite())
        short = ~((tails >= projected.tails) & tails.isfinite())
        for what, wrong in (
            ("code is −128, or its scale is negative, NaN or infinite", outside),
            ("error is no upper bound", loose),
            ("tail is no upper bound", short),
        ):
            if wrong.any():
                raise CorruptDerivedError(name, f"row {int(rows[wrong][0])}: its {what}. {CURE}")
