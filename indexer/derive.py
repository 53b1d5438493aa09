"""Writes what is derived from an index directory: FAISS search indexes, spectra for nats of whole pools, codes, heads.

Everything here can be deleted and made again, and an entry that is sound and wanted as it is, is left alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from attribution.posterior import spectrum_of_blocks
from indexer.derive_leverages import compute_and_write_leverages, wanted_options
from indexer.progress import Progress, Silent
from sketchstore.codes_build import build_codes
from sketchstore.derived import StoredSpectrum
from sketchstore.derived_manifest import Kind, check_entry, entry_file
from sketchstore.errors import DerivedError
from sketchstore.faiss_build import check_factory, write_faiss
from sketchstore.heads import head_dim
from sketchstore.heads_build import build_heads
from sketchstore.reader import Index
from sketchstore.view import View

DEFAULT_FACTORY = "Flat"
CodesChoice = Literal["int8", "none"]
DEFAULT_CODES: CodesChoice = "int8"
FEWEST_DIRECTIONS = 8


@dataclass
class DeriveReport:
    """What happened to derived entries, by file below ``derived/``.

    Attributes:
        written: Built now.
        kept: Sound already.
        removed: Not wanted any more.
    """

    written: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)


def derive(
    index: Index,
    *,
    faiss: str | None = DEFAULT_FACTORY,
    spectra: bool = True,
    codes: CodesChoice = DEFAULT_CODES,
    rebuild: bool = False,
    progress: Progress | None = None,
) -> DeriveReport:
    """Bring the derived entries of an index to what is asked for: per view and partition, and codes and heads per view.

    Args:
        index: The open index.
        faiss: FAISS factory string; None removes the FAISS indexes.
        spectra: Whether there shall be spectra; False removes them.
        codes: "int8" writes 8-bit codes and heads of every view for which they pay (`codes_pay`, `heads_pay`), "none"
            removes all of them.
        rebuild: Build even what is sound.
        progress: Told how far it is.

    Returns:
        What was written, kept and removed.
    """
    if faiss is not None:
        check_factory(faiss, index.sketch_dim)
    with index.derived.deriving():
        return _bring(index, faiss, spectra, codes, rebuild, progress or Silent())


def _bring(
    index: Index, faiss: str | None, spectra: bool, codes: CodesChoice, rebuild: bool, progress: Progress
) -> DeriveReport:
    report = DeriveReport()
    partitions = [(view, label) for view in index.views.values() for label in view.partitions]
    # A spectrum takes the cube of its rows, a Flat index their number: what is done says nothing about the time left.
    progress.phase(
        "deriving search indexes, spectra, codes and heads", 2 * len(partitions) + 2 * len(index.views), even=False
    )
    for view, label in partitions:
        name = entry_file("faiss", view.name, label)
        if faiss is None:
            _remove(index, "faiss", view, label, report)
        elif rebuild or not _is_sound(index, "faiss", view, label, factory=faiss):
            write_faiss(index, view.name, label, faiss)
            report.written.append(name)
        else:
            report.kept.append(name)
        progress.advance(1)
        name = entry_file("spectrum", view.name, label)
        if not spectra:
            _remove(index, "spectrum", view, label, report)
        elif rebuild or not _is_sound(index, "spectrum", view, label):
            write_spectrum(index, view, label)
            report.written.append(name)
        else:
            report.kept.append(name)
        _bring_leverages(index, view, label, report, rebuild=rebuild)
        progress.advance(1)
    for view in index.views.values():
        rows = largest_partition(view)
        for kind, pays, build in _CODED:
            name = entry_file(kind, view.name, None)
            if codes == "none" or not pays(rows, index.sketch_dim):
                _remove(index, kind, view, None, report)
            elif rebuild or not _is_sound(index, kind, view, None):
                build(index, view.name)
                report.written.append(name)
            else:
                report.kept.append(name)
            progress.advance(1)
    return report


def codes_pay(partition_rows: int, sketch_dim: int) -> bool:
    """Whether scans of 8-bit codes carry the selection among so many rows.

    Up to d rows a selection works on the stored kernel matrix and reads few sketches; beyond, it scans them.

    Args:
        partition_rows: Rows of the largest partition of a view.
        sketch_dim: d.

    Returns:
        True for more than d rows.
    """
    return partition_rows > sketch_dim


def heads_pay(partition_rows: int, sketch_dim: int) -> bool:
    """Whether bounds from the leading directions spare a selection rows to look at.

    Args:
        partition_rows: Rows of the largest partition of a view.
        sketch_dim: d.

    Returns:
        True where codes pay and there are enough directions to hold a good part of the sketches.
    """
    return codes_pay(partition_rows, sketch_dim) and head_dim(sketch_dim) >= FEWEST_DIRECTIONS


_CODED: tuple[tuple[Kind, Callable[[int, int], bool], Callable[[Index, str], object]], ...] = (
    ("codes", codes_pay, build_codes),
    ("heads", heads_pay, build_heads),
)


def largest_partition(view: View) -> int:
    """Rows of the largest partition of a view.

    Args:
        view: The view.

    Returns:
        How many; 0 where no row has a label.
    """
    return max((view.partition_rows(label).numel() for label in view.partitions), default=0)


def write_spectrum(index: Index, view: View, label: int | None) -> None:
    """Compute and store the Gram matrix of a partition and its eigendecomposition, in float64.

    Args:
        index: The open index.
        view: The view.
        label: The partition's label, or None for all rows.
    """
    rows = view.partition_rows(label)
    chosen = None if label is None else rows
    spectrum = spectrum_of_blocks(
        lambda: (sketches for _, sketches in view.blocks(2048, rows=chosen)), rows.numel(), index.sketch_dim
    )
    stored = StoredSpectrum(spectrum.form, spectrum.gram, spectrum.eigenvalues, spectrum.eigenvectors)
    index.derived.write_spectrum(view.name, label, stored)


def _bring_leverages(index: Index, view: View, label: int | None, report: DeriveReport, *, rebuild: bool) -> None:
    # Leverages follow from the spectrum and the default noise: where there is none of either, there are none.
    name, wanted = entry_file("leverages", view.name, label), wanted_options(index, view, label)
    if wanted is None:
        _remove(index, "leverages", view, label, report)
    elif not rebuild and _is_sound(index, "leverages", view, label, **wanted):
        report.kept.append(name)
    elif compute_and_write_leverages(index, view, label):
        report.written.append(name)


def _is_sound(index: Index, kind: Kind, view: View, label: int | None, **options: object) -> bool:
    try:
        entry = index.derived.entry(kind, view.name, label)
        if entry is None or any(entry.options.get(name) != value for name, value in options.items()):
            return False
        check_entry(index.path, index.manifest, entry_file(kind, view.name, label), entry)
    except DerivedError:
        return False
    return True


def _remove(index: Index, kind: Kind, view: View, label: int | None, report: DeriveReport) -> None:
    try:
        there = index.derived.entry(kind, view.name, label) is not None
    except DerivedError:
        there = True
    if there:
        index.derived.remove(kind, view.name, label)
        report.removed.append(entry_file(kind, view.name, label))
