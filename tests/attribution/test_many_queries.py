import math

import pytest
import torch

from attribution.candidates import DenseCandidates
from attribution.errors import BudgetError, DependentQueriesError, NotFiniteError, ShapeError, UnknownOptionError
from attribution.infogain import select_infogain
from attribution.infoloss import select_infoloss
from attribution.many_queries import RULES, joint_nats, select_many, select_many_infoloss
from attribution.posterior import SetPosterior, cross_products, spectrum_of
from tests import oracles
from tests.attribution.cases import noise_of


@pytest.fixture
def system(generator):
    sketches = torch.randn(25, 9, generator=generator, dtype=torch.float64)
    return sketches, torch.randn(4, 9, generator=generator, dtype=torch.float64)


def posteriors_of(queries, sketches, noise):
    posterior = SetPosterior(spectrum_of(sketches), noise)
    return [
        posterior.of_query(q, cross_products([sketches], q), lambda positions: sketches[positions]) for q in queries
    ]


@pytest.mark.parametrize("relative", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("weighting", ["inverse_variance", "uniform"])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_picks_are_those_of_the_oracle(system, rule, weighting, relative, dtype):
    sketches, queries = system
    noise = noise_of(sketches, relative)
    steps = select_many(queries, DenseCandidates(sketches, dtype), noise, budget=6, rule=rule, weighting=weighting)
    expected = oracles.greedy_many(queries, sketches, noise, 6, rule=rule, inverse_variance=weighting != "uniform")
    assert [step.position for step in steps] == expected


@pytest.mark.parametrize("rule", RULES)
def test_every_steps_variances_and_nats_are_exact(system, rule):
    sketches, queries = system
    picks: list[int] = []
    for step in select_many(queries, DenseCandidates(sketches), 3.0, budget=5, rule=rule):
        kept = [i for i in range(25) if i not in picks] if rule == "infoloss" else picks
        for q, query in enumerate(queries):
            covariance = oracles.covariance(query.unsqueeze(0), sketches[[step.position]], sketches[kept], 3.0)
            # σ² − v of the oracle is well conditioned at this noise; the rest is float64.
            assert float(step.covariances[q]) == pytest.approx(float(covariance), rel=1e-8, abs=1e-11)
        picks.append(step.position)
        for q, query in enumerate(queries):
            if rule == "infoloss":
                nats = oracles.info_loss(query, sketches, picks, 3.0)
            else:
                nats = oracles.info_gain(query, sketches[picks], 3.0)
            assert float(step.cumulative_nats[q]) == pytest.approx(nats, rel=1e-8, abs=1e-12)


def test_one_query_selects_as_the_single_rules_do(case, noise):
    sketches, query = case
    budget = min(5, sketches.shape[0])
    single = [step.position for step in select_infogain(query, DenseCandidates(sketches), noise, budget=budget)]
    many = select_many(query.unsqueeze(0), DenseCandidates(sketches), noise, budget=budget)
    assert [step.position for step in many] == single
    posterior = posteriors_of(query.unsqueeze(0), sketches, noise)[0]
    lost = [step.position for step in select_infoloss(posterior, torch.arange(sketches.shape[0]), budget=budget)]
    many = select_many(query.unsqueeze(0), DenseCandidates(sketches), noise, budget=budget, rule="infoloss")
    # 1/v weighs one query by a constant: equal but for the rounding of the weight, which the cases' ties survive.
    assert [step.position for step in many] == lost


def test_joint_scores_are_what_the_determinant_loses(system):  # Eqs. 89 and 92
    sketches, queries = system
    picks: list[int] = []
    before = float(torch.logdet(oracles.covariance(queries, queries, sketches[:0], 2.0)))
    for step in select_many(queries, DenseCandidates(sketches), 2.0, budget=5, rule="joint"):
        picks.append(step.position)
        after = float(torch.logdet(oracles.covariance(queries, queries, sketches[picks], 2.0)))
        # Log-determinants of a 4 × 4 matrix of condition ~1e2.
        assert joint_nats(step.score) == pytest.approx((before - after) / 2, rel=1e-9)
        before = after


def test_one_query_makes_the_joint_rule_infogain(system):
    sketches, queries = system
    chosen = [
        [s.position for s in select_many(queries[:1], DenseCandidates(sketches), 1.0, budget=6, rule=rule)]
        for rule in ("joint", "infogain")
    ]
    assert chosen[0] == chosen[1]


def test_scores_of_many_queries_may_exceed_one(system):
    sketches, queries = system
    repeated = queries[:1].repeat(40, 1)
    step = next(iter(select_many(repeated, DenseCandidates(sketches), 0.1, budget=1)))
    assert step.score > 1


def test_dependent_queries_have_no_joint_rule(system):
    sketches, queries = system
    for dependent in (queries[[0, 1, 0]], torch.cat([queries, queries, queries])):
        with pytest.raises(DependentQueriesError, match="dependent"):
            list(select_many(dependent, DenseCandidates(sketches), 1.0, budget=1, rule="joint"))


@pytest.mark.parametrize("rule", RULES)
def test_quotas_limit_the_picks_of_each_label(system, rule):
    sketches, queries = system
    labels = torch.arange(25) % 3
    steps = select_many(
        queries, DenseCandidates(sketches), 1.0, budget=5, rule=rule, quotas={0: 2, 2: 3}, labels=labels
    )
    picked = [int(labels[step.position]) for step in steps]
    assert sorted(picked) == [0, 0, 2, 2, 2]


def test_quotas_that_bind_nothing_change_nothing(system):
    sketches, queries = system
    labels = torch.arange(25) % 2
    free = select_many(queries, DenseCandidates(sketches), 1.0, budget=5)
    bound = select_many(queries, DenseCandidates(sketches), 1.0, budget=5, quotas={0: 25, 1: 25}, labels=labels)
    assert [step.position for step in bound] == [step.position for step in free]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("made", [1, 4, 6])
def test_a_resumed_selection_goes_on_bit_for_bit(system, rule, made):
    sketches, queries = system
    options = {"budget": 6, "rule": rule, "quotas": {0: 4, 1: 3}, "labels": torch.arange(25) % 2}
    whole = list(select_many(queries, DenseCandidates(sketches), 3.0, **options))
    assert len(whole) == 6
    picked = [step.position for step in whole[:made]]
    resumed = list(select_many(queries, DenseCandidates(sketches), 3.0, acquired=picked, **options))
    assert len(resumed) == 6 - made
    for step, expected in zip(resumed, whole[made:], strict=True):
        assert (step.rank, step.position, step.score) == (expected.rank, expected.position, expected.score)
        assert torch.equal(step.cumulative_nats, expected.cumulative_nats)
        assert torch.equal(step.query_variances, expected.query_variances)


def test_the_smallest_noise_there_is_makes_infinite_bounds_and_no_warning(system):
    sketches, queries = system

    def picks(noise):
        return [step.position for step in select_many(queries, DenseCandidates(sketches), noise, budget=6)]

    assert picks(5e-324) == picks(1e-300)


@pytest.mark.parametrize("acquired", [[25], [3, 3], [-1], list(range(7))])
def test_picks_that_no_selection_made_are_refused(system, acquired):
    sketches, queries = system
    with pytest.raises(BudgetError, match="acquired"):
        list(select_many(queries, DenseCandidates(sketches), 3.0, budget=6, acquired=acquired))


def test_infoloss_within_a_larger_set(system):
    sketches, queries = system
    posteriors = posteriors_of(queries, sketches, 2.0)
    pool = torch.tensor([1, 5, 6, 12, 20, 24])
    (step,) = select_many_infoloss(posteriors, pool, budget=1)
    values = torch.zeros(25, dtype=torch.float64)
    for query in queries:
        covariance = oracles.covariance(query.unsqueeze(0), sketches, sketches, 2.0)[0]
        share = covariance**2 / oracles.query_variance(query, sketches, 2.0)
        values += share / (2.0 - oracles.variance(sketches, sketches, 2.0))
    assert step.position == int(pool[values[pool].argmax()])
    # Sums of four solves of condition ~1e2.
    assert step.score == pytest.approx(float(values[step.position]), rel=1e-9)


def test_wrong_uses_are_refused(system):
    sketches, queries = system
    candidates = DenseCandidates(sketches)
    with pytest.raises(UnknownOptionError, match="rule 'best' does not exist"):
        list(select_many(queries, candidates, 1.0, budget=1, rule="best"))
    with pytest.raises(UnknownOptionError, match="weighting"):
        list(select_many(queries, candidates, 1.0, budget=1, weighting="none"))
    with pytest.raises(BudgetError, match="exceeds the 25 candidates"):
        list(select_many(queries, candidates, 1.0, budget=26))
    with pytest.raises(ShapeError, match="quotas need labels"):
        list(select_many(queries, candidates, 1.0, budget=1, quotas={0: 1}))
    with pytest.raises(BudgetError, match="exceeds the 2 picks"):
        list(select_many(queries, candidates, 1.0, budget=3, quotas={0: 2}, labels=torch.zeros(25, dtype=torch.int64)))
    with pytest.raises(BudgetError, match="negative"):
        list(select_many(queries, candidates, 1.0, budget=1, quotas={0: -1}, labels=torch.zeros(25)))
    with pytest.raises(NotFiniteError, match="queries must be finite"):
        list(select_many(queries * math.nan, candidates, 1.0, budget=1))
    with pytest.raises(ShapeError, match="at least one query"):
        list(select_many_infoloss([], torch.arange(3), budget=1))
    posteriors = [*posteriors_of(queries[:1], sketches, 1.0), *posteriors_of(queries[1:2], sketches, 1.0)]
    with pytest.raises(ShapeError, match="one SetPosterior"):
        list(select_many_infoloss(posteriors, torch.arange(3), budget=1))
