"""Selections for many queries on the float32 table: the picks of a float64 scan, whatever the table rounded."""

import math

import pytest
import torch

from attribution.acquired import acquire
from attribution.candidates import DenseCandidates
from attribution.covariance_table import DenseTable, check_table_size, table_bytes
from attribution.errors import TableSizeError
from attribution.many_gain import ManyGainSystem
from attribution.many_loss import ManyLossSystem, ManyPosterior
from attribution.many_pursuit import ManyPursuit
from attribution.many_queries import select_many, select_many_infoloss
from attribution.posterior import SetPosterior, cross_products, spectrum_of
from tests import oracles
from tests.attribution.cases import noise_of

SUM_RULES = ("infogain", "infogain_approx", "infoloss")


def instance(seed):
    """Random rows of few bits with duplicates, zero rows and queries among them; labels; queries."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low, high):
        return int(torch.randint(low, high, (1,), generator=generator))

    count, dim = draw(6, 25), draw(2, 12)
    sketches = (torch.randn(count, dim, generator=generator, dtype=torch.float64) * 64).round() / 64
    queries = (torch.randn(draw(1, 7), dim, generator=generator, dtype=torch.float64) * 64).round() / 64
    for _ in range(draw(0, 5)):
        sketches[draw(0, count)] = sketches[draw(0, count)]
    if seed % 3 == 0:
        sketches[draw(0, count)] = 0.0
    if seed % 4 == 0:
        queries[0] = sketches[sketches.any(dim=1)][0]
    labels = torch.randint(0, 3, (count,), generator=generator)
    noise = noise_of(sketches, (0.01, 1.0, 100.0)[draw(0, 3)])
    return sketches, queries, labels, noise, draw(1, 7)


@pytest.mark.parametrize("rule", SUM_RULES)
def test_picks_of_200_random_instances_are_those_of_a_float64_scan_and_ties_the_lowest_row(rule):
    for seed in range(200):
        sketches, queries, labels, noise, budget = instance(seed)
        quotas = {label: 1 + seed % 2 for label in (0, 1, 2)} if seed % 3 == 1 else None
        if quotas is not None:
            budget = min(budget, sum(min(quotas[label], int((labels == label).sum())) for label in quotas))
        inverse = seed % 5 != 0
        steps = select_many(
            queries,
            DenseCandidates(sketches, torch.float32 if seed % 2 else torch.float64),
            noise,
            budget=budget,
            rule=rule,
            weighting="inverse_variance" if inverse else "uniform",
            quotas=quotas,
            labels=labels,
        )
        picks: list[int] = []
        for step in steps:
            values = oracles.many_values(queries, sketches, noise, picks, rule=rule, inverse_variance=inverse)
            allowed = [n for n in range(len(values)) if n not in picks]
            if quotas is not None:
                used = {label: sum(int(labels[pick]) == label for pick in picks) for label in quotas}
                allowed = [n for n in allowed if used[int(labels[n])] < quotas[int(labels[n])]]
            largest = max(float(values[n]) for n in allowed)
            # Equal rows get values equal but for the rounding of the oracle's solves, of condition 1e4 at most.
            tied = [n for n in allowed if float(values[n]) >= largest * (1 - 1e-9)]
            assert step.position == tied[0], f"seed {seed}, step {step.rank}: {tied} tie"
            assert step.score == pytest.approx(largest, rel=1e-9)
            picks.append(step.position)
        assert len(picks) == budget or not sketches[[n for n in range(len(labels)) if n not in picks]].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rule", SUM_RULES)
def test_bounds_from_the_float32_table_hold_the_float64_scores(rule, dtype, generator):
    sketches = torch.randn(300, 20, generator=generator, dtype=torch.float64) * torch.logspace(0, -4, 20)
    queries = torch.randn(30, 20, generator=generator, dtype=torch.float64) * torch.logspace(0, -4, 20)
    candidates, noise = DenseCandidates(sketches, dtype), noise_of(sketches, 0.1)
    system: ManyGainSystem | ManyLossSystem
    if rule == "infoloss":
        posterior = SetPosterior(spectrum_of(sketches), noise)
        given = ManyPosterior.of_queries(posterior, queries, lambda positions: sketches[positions])
        system = ManyLossSystem(given, torch.arange(300), 60, torch.reciprocal, candidates)
    else:
        system = ManyGainSystem(queries, candidates, noise, 60, torch.reciprocal)
    pursuit = ManyPursuit(system, DenseTable(candidates, 30), divide=rule != "infogain_approx")
    for step in range(60):
        lower, upper = pursuit.bounds()
        weights = system.weights()
        for position, found in zip(range(300), system.evaluate(torch.arange(300)), strict=True):
            score = float((weights * found.targets**2).sum())
            score = score if rule == "infogain_approx" else score / found.pivot
            assert lower[position] <= score <= upper[position], f"row {position}, step {step}"
        choice = pursuit.choose()
        assert choice is not None
        pursuit.accept(choice.position)
    # Bounds that hold everything would be no bounds: most rows must be told from the best.
    assert (upper < lower.max()).mean() > 0.9


def test_nats_stay_exact_where_variances_cancel(generator):
    sketches = torch.randn(40, 25, generator=generator, dtype=torch.float64)
    queries = torch.cat([sketches[:5], torch.randn(3, 25, generator=generator, dtype=torch.float64)])
    noise = 1e-9 * noise_of(sketches, 1.0)
    picks = []
    for step in select_many(queries, DenseCandidates(sketches), noise, budget=30, weighting="uniform"):
        picks.append(step.position)
        for q, query in enumerate(queries):
            *_, last = acquire(query, sketches[picks], noise)
            assert float(step.cumulative_nats[q]) == pytest.approx(last.cumulative_nats, rel=1e-10)
            # Both are sums of squares; what remains is 1e-9 of what was, so six digits of residuals are left.
            assert float(step.query_variances[q]) == pytest.approx(last.query_variance, rel=1e-6)


def test_infoloss_within_a_set_with_exclusions_is_that_of_the_smaller_set(generator):
    for count, dim in ((30, 9), (12, 20)):
        sketches = torch.randn(count, dim, generator=generator, dtype=torch.float64)
        queries = torch.randn(4, dim, generator=generator, dtype=torch.float64)
        posterior = SetPosterior(spectrum_of(sketches), 2.0)
        kept = torch.tensor([n for n in range(count) if n not in (1, 7)])
        posteriors = [
            posterior.of_query(
                query, cross_products([sketches], query), lambda positions, rows=sketches: rows[positions]
            ).without([1, 7])
            for query in queries
        ]
        found = list(select_many_infoloss(posteriors, kept, budget=5))
        alone = list(select_many(queries, DenseCandidates(sketches[kept]), 2.0, budget=5, rule="infoloss"))
        assert [step.position for step in found] == [int(kept[step.position]) for step in alone]
        for one, other in zip(found, alone, strict=True):
            # Two ways to the same posterior, of condition ~1e2.
            torch.testing.assert_close(one.cumulative_nats, other.cumulative_nats, rtol=1e-9, atol=0)


def test_scores_at_the_edges_of_float32_are_told_apart(generator):
    sketches = torch.randn(20, 6, generator=generator, dtype=torch.float64)
    queries = torch.randn(3, 6, generator=generator, dtype=torch.float64)
    noise = noise_of(sketches, 1.0)
    usual = [step.position for step in select_many(queries, DenseCandidates(sketches), noise, budget=6)]
    for factor in (2.0**-70, 2.0**70):
        scaled = DenseCandidates(sketches * factor)
        steps = select_many(queries * factor, scaled, noise * factor**2, budget=6)
        assert [step.position for step in steps] == usual


def test_nothing_left_to_inform_ends_the_selection():
    sketches = torch.tensor([[1.0, 0.0], [0.0, 0.0], [2.0, 0.0]], dtype=torch.float64)
    query = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    for rule in SUM_RULES:
        assert list(select_many(query, DenseCandidates(sketches), 1.0, budget=2, rule=rule)) == []


@pytest.mark.parametrize("rule", SUM_RULES)
def test_a_table_beyond_the_limit_is_refused_and_says_how_many_queries_fit(rule, generator):
    candidates = DenseCandidates(torch.randn(10, 4, generator=generator, dtype=torch.float64))
    queries = torch.randn(7, 4, generator=generator, dtype=torch.float64)
    with pytest.raises(TableSizeError, match=r"4 × 7 × 10 = 280 bytes; the limit is 279\. Give at most 6 queries"):
        list(select_many(queries, candidates, 1.0, budget=1, rule=rule, max_table_bytes=279))
    assert len(list(select_many(queries[:6], candidates, 1.0, budget=1, rule=rule, max_table_bytes=279))) == 1


def test_a_table_occupies_what_is_stated(generator):
    table = DenseTable(DenseCandidates(torch.randn(50, 4, generator=generator, dtype=torch.float64)), 30)
    table.fill(torch.ones(30, 4, dtype=torch.float64))
    assert table.values.nbytes == table_bytes(50, 30) == 6000
    check_table_size(50, 30, 6000)
    assert table_bytes(50_000, 1_000) == 200_000_000
    assert math.isfinite(float(table.squares(torch.ones(30, dtype=torch.float64)).sum()))
