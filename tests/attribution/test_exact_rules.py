"""The exact rules on random instances with everything odd in them, against the naive dense greedy of the oracles."""

import pytest
import torch

from attribution.candidates import DenseCandidates
from attribution.infogain import select_infogain
from attribution.infoloss import select_infoloss
from attribution.posterior import SetPosterior, cross_products, spectrum_of
from tests import oracles

INSTANCES = 200


def instance(seed):
    """Sketches with duplicates, negated twins and zero rows, coarse enough for ties; a query; σ²."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low, high):
        return int(torch.randint(low, high, (1,), generator=generator))

    rows, dim = draw(4, 24), draw(2, 24)
    sketches = (torch.randn(rows, dim, generator=generator, dtype=torch.float64) * 4).round() / 4
    for _ in range(draw(0, 5)):
        sketches[draw(0, rows)] = sketches[draw(0, rows)] * (1, 1, -1, 0)[draw(0, 4)]
    sketches[draw(0, rows)] = torch.randn(dim, generator=generator, dtype=torch.float64).float().double()
    query = torch.randn(dim, generator=generator, dtype=torch.float64)
    relative = 10 ** float(torch.rand(1, generator=generator) * 5 - 2.5)
    return sketches, query, relative * float((sketches**2).sum(dim=1).mean())


def assert_greedy(picks, values_given, budget):
    """Every pick is the lowest row whose value is the largest; the end comes where nothing informs."""
    for t in range(budget):
        values = values_given(picks[:t])
        values[picks[:t]] = -1.0
        best = float(values.max())
        if t == len(picks):
            # Values of the oracle's rounding, 1e-16 of the scale times a condition of at most 1e5, squared.
            assert best < 1e-18
            return
        # Twins differ in the oracle by its rounding; no two others come as near by chance.
        tied = (values >= best * (1 - 1e-9)).nonzero().squeeze(1)
        assert picks[t] == int(tied[0]), f"step {t}: {values[tied].tolist()} at {tied.tolist()}"
    assert len(picks) == budget


def gain_values(sketches, query, noise):
    def values(picks):
        covariance = oracles.covariance(query.unsqueeze(0), sketches, sketches[picks], noise)[0]
        return covariance**2 / (noise + oracles.variance(sketches, sketches[picks], noise)) / float(query @ query)

    return values


def loss_values(sketches, query, noise):
    def values(picks):
        kept = sketches[[n for n in range(sketches.shape[0]) if n not in picks]]
        covariance = oracles.covariance(query.unsqueeze(0), sketches, kept, noise)[0]
        return covariance**2 / (noise - oracles.variance(sketches, kept, noise)) / float(query @ query)

    return values


@pytest.mark.parametrize("seeds", [range(first, first + 20) for first in range(0, INSTANCES, 20)], ids=str)
def test_infogain_picks_are_those_of_the_dense_greedy(seeds):
    for seed in seeds:
        sketches, query, noise = instance(seed)
        budget = min(6, sketches.shape[0])
        steps = select_infogain(query, DenseCandidates(sketches), noise, budget=budget)
        assert_greedy([step.position for step in steps], gain_values(sketches, query, noise), budget)


@pytest.mark.parametrize("seeds", [range(first, first + 20) for first in range(0, INSTANCES, 20)], ids=str)
def test_infoloss_picks_are_those_of_the_dense_greedy(seeds):
    forms = set()
    for seed in seeds:
        sketches, query, noise = instance(seed)
        rows = sketches.shape[0]
        budget = min(6, rows)
        posterior = SetPosterior(spectrum_of(sketches), noise)
        forms.add(posterior.is_kernel)
        given = posterior.of_query(query, cross_products([sketches], query), lambda positions, x=sketches: x[positions])
        steps = list(select_infoloss(given, torch.arange(rows), budget=budget, candidates=DenseCandidates(sketches)))
        picks = [step.position for step in steps]
        assert_greedy(picks, loss_values(sketches, query, noise), budget)
        if picks:
            expected = oracles.info_loss(query, sketches, picks, noise)
            assert steps[-1].cumulative_nats == pytest.approx(expected, rel=1e-8, abs=1e-11)
    assert forms == {True, False}


@pytest.mark.parametrize("shape", [(520, 560), (600, 540)], ids=["kernel form", "gram form"])
def test_infoloss_steps_are_the_same_on_any_number_of_threads(shape, generator):
    sketches = torch.randn(*shape, generator=generator).double()
    sketches[50:60] = sketches[40:50]  # twins, which only sums of fixed order tell from one another
    query = torch.randn(shape[1], generator=generator).double()
    spectrum = spectrum_of(sketches)
    before, selections = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            posterior = SetPosterior(spectrum, 60.0)
            given = posterior.of_query(query, cross_products([sketches], query), lambda positions: sketches[positions])
            steps = list(select_infoloss(given, torch.arange(shape[0]), budget=12))
            selections.append((steps, given.info_gain_nats, given.increase([7, 45, 55])))
    finally:
        torch.set_num_threads(before)
    assert selections[0] == selections[1] == selections[2]
