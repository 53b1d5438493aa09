"""Writes the leverages of a partition at the noise that questions get by default, so that InfoLoss need not wait."""

import torch

from attribution.errors import NotPositiveDefiniteError
from attribution.posterior import SetPosterior, Spectrum
from indexer.attributor.errors import NoNoiseUnitError
from indexer.attributor.noise import resolve_noise
from indexer.attributor.stored_rows import StoredRows
from sketchstore.leverages import StoredLeverages, write_leverages
from sketchstore.reader import Index
from sketchstore.view import View


def wanted_options(index: Index, view: View, label: int | None) -> dict[str, object] | None:
    """Name what leverages of a partition should be stored.

    Args:
        index: The open index.
        view: The view.
        label: The partition's label, or None for all rows.

    Returns:
        The noise variance that questions get by default and the digest of the spectrum's file; None where leverages
        are not needed: without a stored spectrum, with at most d rows, or where every row is zero.
    """
    spectrum = index.derived.entry("spectrum", view.name, label)
    if spectrum is None or spectrum.options.get("form") != "gram":
        return None
    try:
        noise = resolve_noise(index, view.name, label, None, None)
    except NoNoiseUnitError:
        return None
    return {"noise_variance": noise.variance, "spectrum": spectrum.blake3}


def compute_and_write_leverages(index: Index, view: View, label: int | None) -> bool:
    """Compute the leverages of a partition at the default noise from its stored spectrum, and store them.

    Args:
        index: The open index.
        view: The view.
        label: The partition's label, or None for all rows; one for which ``wanted_options`` names some.

    Returns:
        Whether they were stored; not where the default noise is too small for float64.
    """
    found = index.derived.spectrum(view.name, label)
    spectrum = Spectrum(found.form, found.gram, found.eigenvalues, found.eigenvectors)
    noise_variance = resolve_noise(index, view.name, label, None, None).variance
    try:
        leverages = SetPosterior(spectrum, noise_variance).leverages
    except NotPositiveDefiniteError:
        return False
    assert leverages is not None, "the gram form has leverages"
    rows, stored = view.partition_rows(label), StoredRows(view)
    values = leverages.of(torch.arange(rows.numel()), lambda places: stored.sketches(rows[places]))
    write_leverages(index.derived, view.name, label, noise_variance, StoredLeverages(values, leverages.relative_error))
    return True
