"""Writes what is derived from an index directory: FAISS search indexes and the spectra that nats of whole pools need.

Everything here can be deleted and made again, and an entry that is sound and wanted as it is, is left alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from attribution.posterior import spectrum_of_blocks
from indexer.progress import Progress, Silent
from sketchstore.derived import Kind, StoredSpectrum, check_entry, entry_file
from sketchstore.errors import DerivedError
from sketchstore.faiss_build import check_factory, write_faiss
from sketchstore.reader import Index
from sketchstore.view import View

DEFAULT_FACTORY = "Flat"


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
    rebuild: bool = False,
    progress: Progress | None = None,
) -> DeriveReport:
    """Bring the derived entries of an index to what is asked for, one per view and partition.

    Args:
        index: The open index.
        faiss: FAISS factory string; None removes the FAISS indexes.
        spectra: Whether there shall be spectra; False removes them.
        rebuild: Build even what is sound.
        progress: Told how far it is.

    Returns:
        What was written, kept and removed.
    """
    report, progress = DeriveReport(), progress or Silent()
    if faiss is not None:
        check_factory(faiss, index.sketch_dim)
    partitions = [(view, label) for view in index.views.values() for label in view.partitions]
    progress.phase("deriving search indexes and spectra", 2 * len(partitions))
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
        progress.advance(1)
    return report


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
        lambda: (sketches for _, sketches in view.blocks(1024, rows=chosen)), rows.numel(), index.sketch_dim
    )
    stored = StoredSpectrum(spectrum.form, spectrum.gram, spectrum.eigenvalues, spectrum.eigenvectors)
    index.derived.write_spectrum(view.name, label, stored)


def _is_sound(index: Index, kind: Kind, view: View, label: int | None, *, factory: str | None = None) -> bool:
    try:
        entry = index.derived.entry(kind, view.name, label)
        if entry is None or (factory is not None and entry.options.get("factory") != factory):
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
