"""Leverages interpolated between a few noises, against rational arithmetic and dense float64."""

import pytest
import torch

from attribution import rotation_products
from attribution.exact_sums import unit_roundoff
from attribution.infoloss import select_infoloss
from attribution.leverage_curves import LeverageCurves, interpolate, leverage_curves, noise_nodes
from attribution.posterior import SetPosterior, spectrum_of
from attribution.spectrum import Spectrum
from tests import oracles

#: σ² relative to the mean squared norm: within the nodes (1e-4 to 1e5) and beyond them.
NOISES = [1e-6, 1e-3, 0.07, 1.0, 33.0, 1e4, 1e8]
KINDS = ["large and small", "clustered", "rank 3"]


def small_rows(generator, kind):
    rows = torch.randn(18, 5, generator=generator, dtype=torch.float64)
    if kind == "clustered":
        rows = torch.cat([torch.eye(5, dtype=torch.float64)] * 3 + [rows[:3]])
    elif kind == "rank 3":
        rows[:, 3:] = 0.0
    else:
        rows *= torch.tensor([100, 1, 1, 1, 0.01], dtype=torch.float64)
    rows[1], rows[2] = rows[0], 0.0
    return (rows * 2**16).round() / 2**16


def decaying_rows(generator, count=300, dim=150, decades=2.0):
    # Lengths of directions fall by so many decades.
    scales = 10 ** torch.linspace(0, -decades, dim, dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64))[0]
    rows = (torch.randn(count, dim, generator=generator, dtype=torch.float64) * scales) @ rotation
    return rows.float().double()


def curves_of(rows, nodes=None):
    spectrum = spectrum_of(rows)
    nodes = noise_nodes(spectrum, rows.shape[0]) if nodes is None else nodes
    return spectrum, leverage_curves(spectrum, [rows[:40], rows[40:]], nodes)


def dense(spectrum: Spectrum, rows, noise):
    return (rows @ spectrum.eigenvectors).square() @ torch.where(
        spectrum.resolved, 1 / (spectrum.eigenvalues + noise), 0.0
    )


def unit(rows):
    return float(rows.square().sum(dim=1).mean())


@pytest.mark.parametrize("relative", NOISES)
@pytest.mark.parametrize("kind", KINDS)
def test_interpolated_leverages_are_within_their_bound_of_rational_arithmetic(generator, kind, relative):
    rows = small_rows(generator, kind)
    noise = relative * unit(rows)
    spectrum, curves = curves_of(rows)
    known = curves.at(spectrum, noise)
    assert known is not None
    posterior = SetPosterior(spectrum, noise, known)
    true = oracles.leverages(rows, noise)
    found, errors = posterior.leverages.of(torch.arange(18), lambda positions: rows[positions])
    # The oracle inverts the true Gram matrix, the stored one was accumulated in float64.
    trace = float((1 / posterior.weights).sum())
    gram = 20 * unit_roundoff(torch.float64) * trace * float(posterior.weights.max())
    assert bool(((found - true).abs() <= errors + gram * true + gram * 1e-3).all())
    assert bool((errors <= 0.11 * true + gram).all())
    assert float(found[2]) == float(errors[2]) == 0.0


@pytest.mark.parametrize("relative", NOISES)
def test_float32_products_are_within_a_bound_that_is_of_use(generator, relative):
    rows = decaying_rows(generator)
    spectrum, curves = curves_of(rows)
    known = curves.at(spectrum, relative * unit(rows))
    assert known is not None
    true = dense(spectrum, rows, relative * unit(rows))
    assert bool(((known.values - true).abs() <= known.errors).all())
    assert bool((known.errors <= 0.02 * true).all())
    assert bool((curves.product_errors > 1e-7 * rows.norm(dim=1)).all()), "float32 would do here"


def test_rows_that_float32_leaves_uncertain_are_multiplied_in_float64(generator, monkeypatch):
    rows = decaying_rows(generator)
    rows[::7] = rows[0] * torch.linspace(1, 2, 43, dtype=torch.float64)[:, None]  # little leverage for their length
    spectrum, freely = curves_of(rows)
    shares = [freely.at(spectrum, float(noise)).errors / dense(spectrum, rows, noise) for noise in freely.nodes]
    share = float(torch.stack(shares).amax(dim=0).quantile(0.7))
    monkeypatch.setattr(rotation_products, "_LARGEST_SHARE", share)
    spectrum, curves = curves_of(rows)
    mended = curves.product_errors < 1e-12 * rows.norm(dim=1)
    assert 0 < int(mended.sum()) < 150
    assert torch.equal(curves.values[~mended], freely.values[~mended])
    for place, noise in enumerate(curves.nodes):
        known = curves.at(spectrum, float(noise))
        true = dense(spectrum, rows, noise)
        assert bool(((known.values - true).abs() <= known.errors).all())
        assert bool((known.errors <= 1.01 * share * true).all()), place


def test_where_float32_serves_few_rows_all_are_multiplied_in_float64(generator, monkeypatch):
    rows = decaying_rows(generator)
    monkeypatch.setattr(rotation_products, "_LARGEST_SHARE", 1e-6)
    spectrum, curves = curves_of(rows)
    assert bool((curves.product_errors < 1e-12 * rows.norm(dim=1)).all())
    known = curves.at(spectrum, unit(rows))
    true = dense(spectrum, rows, unit(rows))
    assert bool(((known.values - true).abs() <= known.errors).all())
    assert bool((known.errors <= 1e-6 * true).all())


@pytest.mark.parametrize("scale", [1e-30, 1e-22, 1e25], ids=str)
def test_what_float32_cannot_hold_is_multiplied_in_float64(generator, scale):
    rows = scale * decaying_rows(generator)
    spectrum, curves = curves_of(rows)
    known = curves.at(spectrum, unit(rows))
    true = dense(spectrum, rows, unit(rows))
    assert bool(((known.values - true).abs() <= known.errors).all())
    assert bool((known.errors <= 0.11 * true).all())


def test_refined_leverages_are_those_of_float64_products(generator):
    rows = decaying_rows(generator)
    spectrum, curves = curves_of(rows)
    noise = 0.3 * unit(rows)
    known = curves.at(spectrum, noise)
    leverages = SetPosterior(spectrum, noise, known).leverages
    chosen, others = torch.tensor([7, 2, 299]), torch.tensor([0, 1, 298])
    leverages.refine(chosen, lambda positions: rows[positions])
    found, errors = leverages.of(chosen, lambda positions: rows[positions])
    assert bool(((found - dense(spectrum, rows, noise)[chosen]).abs() <= errors).all())
    assert bool((errors <= 1e-9 * found).all())
    assert torch.equal(leverages.of(others, lambda positions: rows[positions])[0], known.values[others])


def test_tiles_of_any_shape_give_the_same_within_the_bound(generator, monkeypatch):
    rows = decaying_rows(generator, count=60, dim=50)
    _, whole = curves_of(rows)  # in one tile
    for name, size in (("_DEPTH", 17), ("_WIDTH", 21), ("_ROWS", 13)):
        monkeypatch.setattr(rotation_products, name, size)
    _, tiled = curves_of(rows)
    torch.testing.assert_close(tiled.values, whole.values, rtol=1e-3, atol=0)


@pytest.mark.parametrize("spread", [0.0, 3.0, 9.0, 13.0])
@pytest.mark.parametrize("relative", [1e-7, 1e-3, 0.1, 1.7, 1e3, 1e6])
def test_the_certificate_holds_for_every_eigenvalue_and_is_small(spread, relative):
    eigenvalues = torch.cat([torch.zeros(3), 10 ** torch.linspace(-spread, 0.0, 400, dtype=torch.float64)]).double()
    spectrum = Spectrum("gram", torch.diag(eigenvalues), eigenvalues, torch.eye(403, dtype=torch.float64))
    mean = float(eigenvalues.sum()) / 2000
    coefficients, error = interpolate(spectrum, noise_nodes(spectrum, 2000), relative * mean)
    kept = eigenvalues[3:].numpy().astype("longdouble")
    nodes = noise_nodes(spectrum, 2000).numpy().astype("longdouble")
    sums = (coefficients.numpy() / (kept[:, None] + nodes)).sum(axis=1)
    assert abs((kept + relative * mean) * sums - 1).max() <= error
    assert error < 2e-5 or relative < 1e-4


def test_a_noise_far_from_few_nodes_is_left_to_the_rows(generator):
    rows = decaying_rows(generator)
    spectrum, curves = curves_of(rows, torch.tensor([0.5, 1.0], dtype=torch.float64) * unit(rows))
    assert curves.at(spectrum, 0.5 * unit(rows)) is not None
    assert curves.at(spectrum, 10 * unit(rows)) is None
    none_known = SetPosterior(spectrum, 10 * unit(rows), curves.at(spectrum, 10 * unit(rows)))
    found, _ = none_known.leverages.of(torch.arange(300), lambda positions: rows[positions])
    torch.testing.assert_close(found, dense(spectrum, rows, 10 * unit(rows)), rtol=1e-9, atol=0)


@pytest.mark.parametrize("relative", [0.003, 0.2, 40.0])
def test_picks_and_nats_at_any_noise_are_those_of_the_dense_greedy(generator, relative):
    rows = decaying_rows(generator, count=90, dim=30, decades=1.5)
    rows[7] = rows[3]
    spectrum, curves = curves_of(rows)
    query = rows[::9].sum(dim=0)
    noise = relative * unit(rows)
    given = SetPosterior(spectrum, noise, curves.at(spectrum, noise)).of_query(query, None, lambda some: rows[some])
    steps = list(select_infoloss(given, torch.arange(90), budget=6))
    picks = [step.position for step in steps]
    assert picks == oracles.greedy_infoloss(query, rows, noise, 6)
    # Dense solves of condition up to 1e6.
    assert steps[-1].cumulative_nats == pytest.approx(oracles.info_loss(query, rows, picks, noise), rel=1e-8)
    without = SetPosterior(spectrum, noise).of_query(query, None, lambda some: rows[some])
    assert steps == list(select_infoloss(without, torch.arange(90), budget=6)), "bit for bit"


def test_curves_that_are_wrong_within_their_errors_change_no_pick(generator):
    rows = decaying_rows(generator, count=90, dim=30, decades=1.5)
    spectrum, curves = curves_of(rows)
    wrong = LeverageCurves(
        curves.nodes,
        curves.values * (1 + 0.1 * (torch.arange(90) % 2)[:, None]),
        curves.product_errors + 0.1 * torch.sqrt(dense(spectrum, rows, unit(rows)) / unit(rows)),
    )
    query = rows[:4].sum(dim=0)
    chosen = []
    for known in (curves.at(spectrum, unit(rows)), wrong.at(spectrum, unit(rows))):
        given = SetPosterior(spectrum, unit(rows), known).of_query(query, None, lambda some: rows[some])
        chosen.append(list(select_infoloss(given, torch.arange(90), budget=6)))
    assert chosen[0] == chosen[1]
