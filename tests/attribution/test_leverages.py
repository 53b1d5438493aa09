import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from attribution import leverages as module
from attribution.acquired import acquire
from attribution.errors import NotPositiveDefiniteError
from attribution.exact_sums import unit_roundoff
from attribution.infoloss import select_infoloss
from attribution.leverage_curves import KnownLeverages
from attribution.posterior import SetPosterior, cross_products, spectrum_of
from tests import oracles

#: σ² relative to the mean squared norm.
NOISES = [1e-6, 1e-4, 1e-2, 1.0, 1e2, 1e4, 1e6]


def rows_of(generator, rows=18, dim=5, rank=None):
    sketches = torch.randn(rows, dim, generator=generator, dtype=torch.float64)
    sketches[:, 0] *= 100  # a large eigenvalue and small ones, as real features have
    sketches[:, -1] *= 0.01
    if rank is not None:
        sketches[:, rank:] = 0.0
    sketches[1] = sketches[0]
    sketches[2] = 0.0
    return (sketches * 2**16).round() / 2**16


@pytest.mark.parametrize("route", ["triangular factor", "eigenvectors"])
@pytest.mark.parametrize("relative", NOISES)
@pytest.mark.parametrize("rank", [None, 3], ids=["full rank", "rank 3"])
def test_leverages_are_within_their_bound_of_rational_arithmetic(generator, monkeypatch, route, relative, rank):
    monkeypatch.setattr(module, "_LARGEST_ERROR", float("inf") if route == "triangular factor" else 0.0)
    sketches = rows_of(generator, rank=rank)
    noise = relative * float((sketches**2).sum(dim=1).mean())
    posterior = SetPosterior(spectrum_of(sketches), noise)
    found, _ = posterior.leverages.of(torch.arange(18), lambda positions: sketches[positions])
    true = oracles.leverages(sketches, noise)
    bound = posterior.leverages.relative_error
    # The oracle inverts the true Gram matrix, the stored one was accumulated in float64: 18 products, as one more τ.
    trace = float((1 / posterior.weights).sum())
    gram = 20 * unit_roundoff(torch.float64) * trace * float(posterior.weights.max())
    # Where directions are dropped, what their rows had there was rounding of the Gram matrix over σ².
    assert bool(((found - true).abs() <= (bound + gram) * true + gram * 1e-3).all())
    assert float(found[2]) == 0.0
    assert bound < 1e-3


@pytest.mark.parametrize("relative", NOISES)
def test_the_value_that_decides_is_within_the_bound(generator, relative):
    sketches = rows_of(generator, rows=60, dim=20)
    noise = relative * float((sketches**2).sum(dim=1).mean())
    posterior = SetPosterior(spectrum_of(sketches), noise)
    given = posterior.of_query(torch.ones(20, dtype=torch.float64), None, lambda positions: sketches[positions])
    everything = torch.arange(60)
    nominated, error = posterior.diagonal(everything, lambda positions: sketches[positions])
    decided = given.removal().pivots(everything)
    assert bool(((nominated - decided).abs() <= error).all())
    assert decided[0] == decided[1], "equal rows have equal bits"


def test_a_leverage_is_computed_once_however_many_ask(generator):
    sketches = rows_of(generator, rows=40)
    posterior = SetPosterior(spectrum_of(sketches), 1.0)
    read: list[int] = []
    lock = threading.Lock()

    def reader(positions):
        with lock:
            read.extend(positions.tolist())
        return sketches[positions]

    with ThreadPoolExecutor(4) as threads:
        asked = [torch.arange(first, first + 20) for first in (0, 10, 20, 0, 5, 20)]
        list(threads.map(lambda positions: posterior.leverages.of(positions, reader), asked))
    assert sorted(read) == list(range(40))


def test_known_leverages_are_taken_with_their_error(generator):
    sketches = rows_of(generator, rows=40)
    spectrum = spectrum_of(sketches)
    first = SetPosterior(spectrum, 1.0).leverages
    values, _ = first.of(torch.arange(40), lambda positions: sketches[positions])
    known = KnownLeverages(values, 1e-5 * values)
    second = SetPosterior(spectrum, 1.0, known).leverages

    def reader(positions):
        raise AssertionError("nothing is left to compute")

    found, errors = second.of(torch.tensor([3, 0, 39]), reader)
    assert torch.equal(found, known.values[[3, 0, 39]])
    # With the error of the value that decides, which is rounding.
    torch.testing.assert_close(errors, known.errors[[3, 0, 39]], rtol=1e-4, atol=0)
    assert bool((errors >= known.errors[[3, 0, 39]]).all())


def test_wide_errors_change_no_pick(generator, monkeypatch):
    # A bound of 10 %: nearly every candidate contends, and is settled by sums of fixed order.
    sketches = rows_of(generator, rows=60, dim=20)
    query, spectrum = sketches.sum(dim=0), spectrum_of(sketches)

    def steps(known):
        posterior = SetPosterior(spectrum, 5.0, known)
        given = posterior.of_query(query, None, lambda positions: sketches[positions])
        return list(select_infoloss(given, torch.arange(60), budget=8))

    exact = steps(None)
    true = oracles.leverages(sketches, 5.0)
    wrong = true * (1 + 0.1 * (2 * torch.rand(60, generator=generator, dtype=torch.float64) - 1))
    assert steps(KnownLeverages(wrong, 0.12 * wrong)) == exact


@pytest.mark.parametrize("shape", [(40, 60), (90, 30)], ids=["kernel form", "gram form"])
@pytest.mark.parametrize("kind", ["duplicates", "low rank"])
@pytest.mark.parametrize("exponent", range(-18, -6))
def test_what_a_set_knows_of_its_member_is_right_or_refused_at_tiny_noise(generator, shape, kind, exponent):
    sketches = torch.randn(*shape, generator=generator, dtype=torch.float64)
    if kind == "low rank":
        sketches = sketches[:, :10] @ torch.randn(10, shape[1], generator=generator, dtype=torch.float64)
    else:
        sketches[-5:] = sketches[:5]
    query, scale = sketches[3], float((sketches**2).sum(dim=1).mean())
    spectrum, cross = spectrum_of(sketches), cross_products([sketches], query)

    def available(noise):
        given = SetPosterior(spectrum, noise).of_query(query, cross, lambda positions: sketches[positions])
        return given.info_gain_nats

    noise = 10.0**exponent * scale
    try:
        found = available(noise)
    except NotPositiveDefiniteError as error:
        noise = error.smallest_noise_variance
        found = available(noise)
    whole = list(acquire(query, sketches, noise))[-1].cumulative_nats
    # At 1e-16 of the scale modified Gram–Schmidt, the other way to the same number, loses a percent for 90 rows.
    assert found >= whole * (1 - 1e-6)
    assert found == pytest.approx(whole, rel=1e-6 if noise > 1e-13 * scale else 1.0)


@pytest.mark.parametrize("shape", [(9, 20), (30, 8)], ids=["kernel form", "gram form"])
def test_a_noise_at_the_end_of_float64_is_refused_with_one_that_works(generator, shape):
    sketches = torch.randn(*shape, generator=generator, dtype=torch.float64)
    query, spectrum = sketches.sum(dim=0), spectrum_of(sketches)
    with pytest.raises(NotPositiveDefiniteError, match="at least") as caught:
        SetPosterior(spectrum, 5e-324)
    posterior = SetPosterior(spectrum, caught.value.smallest_noise_variance)
    given = posterior.of_query(query, cross_products([sketches], query), lambda positions: sketches[positions])
    steps = list(select_infoloss(given, torch.arange(shape[0]), budget=3))
    assert all(step.cumulative_nats >= 0 for step in steps)
