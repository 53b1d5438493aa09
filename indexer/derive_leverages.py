"""Writes the leverages of a partition, at every noise that questions may name, so that InfoLoss need not wait."""

import torch
from torch import Tensor

from attribution.errors import NotPositiveDefiniteError
from attribution.leverage_curves import NUM_NODES, LeverageCurves, leverage_curves, noise_nodes
from attribution.posterior import SetPosterior, Spectrum
from indexer.attributor.errors import NoNoiseUnitError
from indexer.attributor.noise import resolve_noise
from indexer.attributor.stored_rows import StoredRows
from sketchstore.leverages import StoredCurves, StoredLeverages, write_leverages
from sketchstore.reader import Index
from sketchstore.view import View

#: Rows read into float64 at a time.
_BLOCK_ROWS = 2048
#: Relative error of a leverage above which it is computed from its row.
_LARGEST_RELATIVE_ERROR = 0.1


def wanted_options(index: Index, view: View, label: int | None) -> dict[str, object] | None:
    """Name what leverages of a partition should be stored.

    Args:
        index: The open index.
        view: The view.
        label: The partition's label, or None for all rows.

    Returns:
        The noise variance that questions get by default, the digest of the spectrum's file and at how many noises
        leverages are kept; None where they are not needed: without a stored spectrum, with at most d rows, or where
        every row is zero.
    """
    spectrum = index.derived.entry("spectrum", view.name, label)
    if spectrum is None or spectrum.options.get("form") != "gram":
        return None
    try:
        noise = resolve_noise(index, view.name, label, None, None)
    except NoNoiseUnitError:
        return None
    return {"noise_variance": noise.variance, "spectrum": spectrum.blake3, "nodes": NUM_NODES}


def compute_and_write_leverages(index: Index, view: View, label: int | None) -> bool:
    """Compute the leverages of a partition from its stored spectrum, and store them.

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
        SetPosterior(spectrum, noise_variance)
    except NotPositiveDefiniteError:
        return False
    curves = curves_of_rows(view, view.partition_rows(label), spectrum)
    write_leverages(
        index.derived,
        view.name,
        label,
        noise_variance,
        _at_one_noise(view, view.partition_rows(label), spectrum, curves, noise_variance),
        StoredCurves(curves.nodes, curves.values, curves.product_errors),
    )
    return True


def curves_of_rows(view: View, rows: Tensor, spectrum: Spectrum) -> LeverageCurves:
    """Compute the leverages of some rows at several noises.

    Args:
        view: The view.
        rows: The rows, ascending.
        spectrum: Their spectrum, of the gram form.

    Returns:
        The leverages.
    """
    stored = StoredRows(view)
    blocks = (stored.sketches(part) for part in torch.split(rows, _BLOCK_ROWS))
    return leverage_curves(spectrum, blocks, noise_nodes(spectrum, rows.numel()))


def _at_one_noise(
    view: View, rows: Tensor, spectrum: Spectrum, curves: LeverageCurves, noise_variance: float
) -> StoredLeverages:
    # What programs that know no curves read: one bound for all rows. Rows that would make it large are computed.
    stored, places = StoredRows(view), torch.arange(rows.numel())

    def sketches(some: Tensor) -> Tensor:
        return stored.sketches(rows[some])

    known = SetPosterior(spectrum, noise_variance, curves.at(spectrum, noise_variance)).leverages
    computed = SetPosterior(spectrum, noise_variance).leverages
    assert known is not None, "the gram form has leverages"
    assert computed is not None, "the gram form has leverages"
    values, errors = known.of(places, sketches)
    poor = ~(errors <= _LARGEST_RELATIVE_ERROR * values)
    values[poor], errors[poor] = computed.of(places[poor], sketches)
    relative = torch.where(errors > 0, errors / values, 0.0)
    relative[poor] = computed.relative_error
    return StoredLeverages(values, float(relative.max()))
