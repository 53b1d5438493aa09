import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attribution.candidates import DenseCandidates
from attribution.errors import BudgetError, NotPositiveDefiniteError, ShapeError
from attribution.infoloss import select_infoloss
from attribution.posterior import SetPosterior, cross_products, spectrum_of, spectrum_of_blocks
from tests import oracles
from tests.attribution.cases import noise_of


def posterior_of(query, sketches, noise):
    posterior = SetPosterior(spectrum_of(sketches), noise)
    return posterior.of_query(query, cross_products([sketches], query), lambda positions: sketches[positions])


def infoloss_naive(query, sketches, noise, budget):
    """Method.md section 3, last bullet but two, transcribed: P inverted once, then downdated."""
    inverse = torch.linalg.inv(sketches @ sketches.T + noise * torch.eye(sketches.shape[0], dtype=torch.float64))
    alpha, picks = inverse @ (sketches @ query), []
    for _ in range(budget):
        values = alpha**2 / inverse.diagonal()
        values[picks] = -1.0
        a = int(values.argmax())
        picks.append(a)
        column, pivot, share = inverse[:, a].clone(), float(inverse[a, a]), float(alpha[a])
        inverse, alpha = inverse - torch.outer(column, column) / pivot, alpha - column * share / pivot
        inverse[a, a] = 1.0  # removed: only its value must not divide by zero
    return picks


def test_forms_agree_with_the_oracle_on_variance_and_available_nats(case, noise):
    sketches, query = case
    posterior = posterior_of(query, sketches, noise)
    assert posterior.variance == pytest.approx(oracles.query_variance(query, sketches, noise), rel=1e-9)
    assert posterior.info_gain_nats == pytest.approx(oracles.info_gain(query, sketches, noise), rel=1e-9)


def test_leaving_a_set_out_is_eq_54(case, noise):
    sketches, query = case
    posterior = posterior_of(query, sketches, noise)
    rows = sketches.shape[0]
    for left_out in ([], [0], list(range(0, rows, 2)), list(range(rows))):
        kept = [i for i in range(rows) if i not in left_out]
        direct = oracles.query_variance(query, sketches[kept], noise)
        # Eq. 54 literally, with every covariance given T solved for.
        cross = oracles.covariance(query.unsqueeze(0), sketches[left_out], sketches, noise)[0]
        inner = noise * torch.eye(len(left_out), dtype=torch.float64)
        inner = inner - oracles.covariance(sketches[left_out], sketches[left_out], sketches, noise)
        formula = float(cross @ torch.linalg.solve(inner, cross))
        increase = posterior.increase(left_out)
        # Both references subtract variances of the size of the prior at condition ≤ 1e5.
        slack = 1e-10 * posterior.prior_variance
        assert increase == pytest.approx(formula, rel=1e-7, abs=slack)
        assert posterior.variance + increase == pytest.approx(direct, rel=1e-8, abs=slack)
        without = posterior.without(left_out)
        assert without.variance == pytest.approx(direct, rel=1e-8, abs=slack)
        expected = oracles.info_gain(query, sketches[kept], noise)
        assert without.info_gain_nats == pytest.approx(expected, rel=1e-8, abs=1e-10)
        expected = oracles.info_loss(query, sketches, left_out, noise)
        assert posterior.info_loss_nats(left_out) == pytest.approx(expected, rel=1e-7, abs=1e-9)


def test_every_removal_is_a_best_one(case, noise):
    sketches, query = case
    rows = sketches.shape[0]
    steps = list(select_infoloss(posterior_of(query, sketches, noise), torch.arange(rows), budget=min(rows, 8)))
    picks = [step.position for step in steps]
    assert len(set(picks)) == len(picks)
    for t, step in enumerate(steps):
        kept = sketches[[i for i in range(rows) if i not in picks[:t]]]
        covariance = oracles.covariance(query.unsqueeze(0), sketches, kept, noise)[0]
        values = covariance**2 / (noise - oracles.variance(sketches, kept, noise))
        values[picks[:t]] = -1.0
        # σ² − v of the oracle cancels to 1e-16 · (1 + K/σ²), and its covariances carry the condition, ≤ 1e5.
        slack = 1e-9 * float(query @ query)
        assert float(values[step.position]) == pytest.approx(float(values.max()), rel=1e-8, abs=slack)
        assert step.score == pytest.approx(float(values[step.position]), rel=1e-7, abs=slack)
        expected = oracles.info_loss(query, sketches, picks[: t + 1], noise)
        assert step.cumulative_nats == pytest.approx(expected, rel=1e-8, abs=1e-9)


def test_removals_are_those_of_the_naive_downdates(case, noise):
    sketches, query = case
    budget = min(3, sketches.shape[0])
    picks = [step.position for step in select_infoloss(posterior_of(query, sketches, noise), None, budget=budget)]
    naive = infoloss_naive(query, sketches, noise, budget)
    losses = [oracles.info_loss(query, sketches, chosen, noise) for chosen in (picks, naive)]
    # Duplicates tie exactly here but not in the naive inverse: equal value, perhaps the other twin.
    assert losses[0] == pytest.approx(losses[1], rel=1e-9, abs=1e-12)


def test_kernel_and_gram_forms_select_the_same(generator):
    sketches = torch.randn(12, 12, generator=generator, dtype=torch.float64)
    query = torch.randn(12, generator=generator, dtype=torch.float64)
    wide = torch.cat([sketches, torch.zeros(12, 5, dtype=torch.float64)], dim=1)
    narrow = torch.cat([sketches, torch.zeros(4, 12, dtype=torch.float64)])
    kernel = posterior_of(torch.cat([query, torch.zeros(5, dtype=torch.float64)]), wide, 0.7)
    gram = posterior_of(query, narrow, 0.7)
    assert (kernel.posterior.is_kernel, gram.posterior.is_kernel) == (True, False)
    pool = torch.arange(12)
    steps = [list(select_infoloss(posterior, pool, budget=12)) for posterior in (kernel, gram)]
    for left, right in zip(*steps, strict=True):
        assert left.position == right.position
        assert left.cumulative_nats == pytest.approx(right.cumulative_nats, rel=1e-10)  # two routes, well conditioned
        assert left.covariance == pytest.approx(right.covariance, rel=1e-9)


def test_removals_continue_from_what_is_already_left_out(generator):
    sketches = torch.randn(20, 7, generator=generator, dtype=torch.float64)
    query = torch.randn(7, generator=generator, dtype=torch.float64)
    noise = noise_of(sketches, 0.1)
    left = posterior_of(query, sketches, noise).without([3, 11, 4])
    kept = [i for i in range(20) if i not in (3, 11, 4)]
    steps = list(select_infoloss(left, torch.tensor(kept), budget=5))
    assert [step.position for step in steps] == [
        kept[i] for i in oracles.greedy_infoloss(query, sketches[kept], noise, 5)
    ]
    again = left.without([steps[0].position])
    assert again.variance == pytest.approx(steps[0].query_variance, rel=1e-10)


def test_a_pool_within_d_is_chosen_from_with_all_of_d_conditioned_on(generator):
    sketches = torch.randn(40, 10, generator=generator, dtype=torch.float64)
    query = torch.randn(10, generator=generator, dtype=torch.float64)
    pool = torch.arange(0, 40, 3)
    posterior = posterior_of(query, sketches, 4.0)
    for candidates in (None, DenseCandidates(sketches[pool], torch.float32)):
        picks = [step.position for step in select_infoloss(posterior, pool, budget=4, candidates=candidates)]
        state = list(range(40))
        for pick in picks:
            kept = sketches[state]
            covariance = oracles.covariance(query.unsqueeze(0), sketches, kept, 4.0)[0]
            values = covariance**2 / (4.0 - oracles.variance(sketches, kept, 4.0))
            free = [int(p) for p in pool if int(p) in state]
            assert pick == max(free, key=lambda n: float(values[n]))
            state.remove(pick)


def test_selection_stops_where_no_removal_matters():
    query = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    rows = torch.tensor([[0.0, 1.0, 0.0], [0.0, 1.0, 2.0], [3.0, 0.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    for sketches in (rows, rows[:, [0, 1, 2, 2, 2]] * torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0])):
        star = torch.cat([query, torch.zeros(sketches.shape[1] - 3, dtype=torch.float64)])
        steps = list(select_infoloss(posterior_of(star, sketches.double(), 0.3), torch.arange(4), budget=4))
        assert [step.position for step in steps] == [2]


@pytest.mark.parametrize("noise", [1e-9, 1e-4, 1.0, 1e6, 1e12])
def test_extreme_noise_loses_no_less_than_the_naive_rule(case, noise):
    sketches, query = case
    posterior = posterior_of(query, sketches, noise)
    budget = min(3, sketches.shape[0])
    steps = list(select_infoloss(posterior, torch.arange(sketches.shape[0]), budget=budget))
    losses = [step.cumulative_nats for step in steps]
    assert all(loss >= 0 for loss in losses)
    assert losses == sorted(losses)
    if noise >= 1.0 and losses:
        expected = oracles.info_loss(query, sketches, [step.position for step in steps], noise)
        # The oracle's ratio loses 1e-16 absolute, 4e-5 relative at σ² = 1e12 (method.md section 3).
        assert losses[-1] == pytest.approx(expected, rel=1e-8, abs=1e-13)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), rows=st.integers(1, 20), dim=st.integers(1, 20))
def test_losses_of_steps_sum_to_the_loss_of_the_set(seed, rows, dim):
    generator = torch.Generator().manual_seed(seed)
    sketches = torch.randn(rows, dim, generator=generator, dtype=torch.float64)
    query = torch.randn(dim, generator=generator, dtype=torch.float64)
    posterior = posterior_of(query, sketches, 0.5)
    steps = list(select_infoloss(posterior, torch.arange(rows), budget=rows))
    total = posterior.info_loss_nats([step.position for step in steps])
    # Nats of up to 20 well-conditioned steps.
    assert sum(step.step_nats for step in steps) == pytest.approx(total, rel=1e-9, abs=1e-12)
    assert total == pytest.approx(0.0 if not steps else steps[-1].cumulative_nats, rel=1e-9, abs=1e-12)


def test_a_noise_within_the_rounding_of_the_gram_matrix_is_refused_with_one_that_works(generator):
    left = torch.randn(30, 4, generator=generator, dtype=torch.float64)
    right = torch.randn(4, 40, generator=generator, dtype=torch.float64)
    spectrum = spectrum_of(1e5 * left @ right)  # rank 4 of 30: 26 eigenvalues are rounding of 1e12
    with pytest.raises(NotPositiveDefiniteError, match="below the rounding of the Gram matrix") as caught:
        SetPosterior(spectrum, 1e-9)
    SetPosterior(spectrum, caught.value.smallest_noise_variance)


def test_a_spectrum_streams_the_same_from_any_blocks(generator):
    for shape in ((30, 8), (8, 30)):
        sketches = torch.randn(*shape, generator=generator)
        whole = spectrum_of(sketches)
        parts = spectrum_of_blocks(lambda rows=sketches: torch.split(rows, 3), *shape)
        assert whole.form == parts.form == ("kernel" if shape[0] <= shape[1] else "gram")
        # Sums of ≤ 30 float64 products in another order.
        torch.testing.assert_close(whole.gram, parts.gram, rtol=0, atol=1e-12)
        rebuilt = (parts.eigenvectors * parts.eigenvalues) @ parts.eigenvectors.T
        torch.testing.assert_close(rebuilt, parts.gram, rtol=0, atol=1e-11)


def test_blocks_that_do_not_fit_are_refused():
    with pytest.raises(ShapeError, match="hold 2 rows, 3 were announced"):
        spectrum_of_blocks(lambda: [torch.ones(2, 4)], 3, 4)
    with pytest.raises(ShapeError, match=r"\[b, 4\]"):
        spectrum_of_blocks(lambda: [torch.ones(2, 5)], 2, 4)
    with pytest.raises(ShapeError, match="empty"):
        spectrum_of_blocks(list, 0, 4)


def test_wrong_uses_are_refused():
    sketches = torch.eye(4, 6, dtype=torch.float64)
    query = torch.ones(6, dtype=torch.float64)
    posterior = posterior_of(query, sketches, 1.0)
    with pytest.raises(ShapeError, match="cross_products"):
        posterior.posterior.of_query(query, None, lambda positions: sketches[positions])
    with pytest.raises(BudgetError, match="exceeds the 4 candidates"):
        list(select_infoloss(posterior, None, budget=5))
    with pytest.raises(ShapeError, match="each position once"):
        list(select_infoloss(posterior, torch.tensor([1, 1]), budget=1))
    with pytest.raises(ShapeError, match="each example once"):
        posterior.increase([2, 2])
    with pytest.raises(ShapeError, match="each example once"):
        posterior.without([1]).increase([1])
    with pytest.raises(ShapeError, match="candidates has 1 rows, pool names 2"):
        list(select_infoloss(posterior, torch.tensor([0, 1]), budget=1, candidates=DenseCandidates(sketches[:1])))
    tall = SetPosterior(spectrum_of(torch.eye(6, 4, dtype=torch.float64)), 1.0)
    with pytest.raises(ShapeError, match="4 dimensions"):
        tall.of_query(query, None, lambda positions: sketches[positions])
    gram = tall.of_query(torch.ones(4), None, lambda positions: torch.eye(6, 4, dtype=torch.float64)[positions])
    with pytest.raises(ShapeError, match="give pool"):
        list(select_infoloss(gram, None, budget=1))
