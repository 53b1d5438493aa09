import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attribution.candidates import DenseCandidates
from attribution.errors import BudgetError, NoiseVarianceError, NotFiniteError, ShapeError, ZeroQueryError
from attribution.infogain import select_infogain
from tests import oracles
from tests.attribution.test_information import NOISES


def infogain_naive(query, sketches, noise, budget):
    """Method.md section 4, first row of the table, transcribed: updates of c_n and v_n in float64."""
    c, v, picks = sketches @ query, (sketches**2).sum(dim=1), []
    for _ in range(budget):
        values = c**2 / (noise + v)
        values[picks] = -1.0
        a = int((values == values.max()).nonzero()[0])
        if values[a] == 0:
            break
        column = oracles.covariance(sketches, sketches[[a]], sketches[picks], noise)[:, 0]
        c, v = c - column * c[a] / (noise + v[a]), v - column**2 / (noise + v[a])
        picks.append(a)
    return picks


def values_given(query, sketches, picks, noise):
    """Eq. 8 of every candidate given earlier picks."""
    acquired = sketches[picks]
    covariance = oracles.covariance(query.unsqueeze(0), sketches, acquired, noise)[0]
    values = covariance**2 / (noise + oracles.variance(sketches, acquired, noise))
    values[picks] = -1.0
    return values


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_pick_is_a_best_one(case, noise, dtype):
    sketches, query = case
    steps = list(select_infogain(query, DenseCandidates(sketches, dtype), noise, budget=sketches.shape[0]))
    picks = [step.position for step in steps]
    assert len(set(picks)) == len(picks)
    for t, step in enumerate(steps):
        values = values_given(query, sketches, picks[:t], noise)
        # The oracle solves systems of condition ≤ 1e5; values below 1e-13 of the prior variance are its rounding.
        assert float(values[step.position]) == pytest.approx(
            float(values.max()), rel=1e-9, abs=1e-13 * float(query @ query)
        )
        assert step.cumulative_nats == pytest.approx(
            oracles.info_gain(query, sketches[picks[: t + 1]], noise), rel=1e-9
        )
        assert step.query_variance == pytest.approx(
            oracles.query_variance(query, sketches[picks[: t + 1]], noise), rel=1e-9
        )
        covariance = oracles.covariance(query.unsqueeze(0), sketches[[step.position]], sketches[picks[:t]], noise)
        assert step.covariance == pytest.approx(float(covariance), rel=1e-8, abs=1e-12)


def test_picks_are_those_of_the_naive_updates(case, noise):
    sketches, query = case
    budget = min(4, sketches.shape[0])
    picks = [step.position for step in select_infogain(query, DenseCandidates(sketches), noise, budget=budget)]
    assert picks == infogain_naive(query, sketches, noise, budget)


def test_a_stored_gram_matrix_gives_the_same_steps(case, noise):
    sketches, query = case
    gram = sketches @ sketches.T
    for budget in (1, sketches.shape[0]):
        plain = list(select_infogain(query, DenseCandidates(sketches), noise, budget=budget))
        stored = select_infogain(
            query, DenseCandidates(sketches), noise, budget=budget, kernel_column=lambda position: gram[:, position]
        )
        assert list(stored) == plain


@pytest.mark.parametrize("noise", NOISES)
def test_extreme_noise_keeps_every_pick_a_best_one(case, noise):
    sketches, query = case
    budget = min(4, sketches.shape[0])
    steps = list(select_infogain(query, DenseCandidates(sketches), noise, budget=budget))
    picks = [step.position for step in steps]
    for t in range(len(picks)):
        values = values_given(query, sketches, picks[:t], noise)
        # At σ² = 1e-9 the oracle's condition is 1e10 and K − K(K + σ²I)⁻¹K cancels: 1e-16 · 1e10 of the prior.
        slack = (1e-6 if noise < 1e-3 else 1e-12) * float(query @ query)
        assert float(values[picks[t]]) >= float(values.max()) * (1 - 1e-9) - slack


def test_equal_rows_are_taken_lowest_first():
    rows = torch.ones(6, 3, dtype=torch.float64)
    steps = select_infogain(torch.ones(3, dtype=torch.float64), DenseCandidates(rows), 2.0, budget=6)
    assert [step.position for step in steps] == [0, 1, 2, 3, 4, 5]


def test_selection_stops_where_nothing_informs_the_query():
    query = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    zeros = DenseCandidates(torch.zeros(4, 3, dtype=torch.float64))
    assert list(select_infogain(query, zeros, 1.0, budget=4)) == []
    orthogonal = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 2.0], [3.0, 0.0, 0.0]], dtype=torch.float64)
    steps = list(select_infogain(query, DenseCandidates(orthogonal), 1.0, budget=3))
    assert [step.position for step in steps] == [2]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), rows=st.integers(1, 40), dim=st.integers(1, 12), exponent=st.integers(-6, 6))
def test_nominating_in_float32_changes_nothing(seed, rows, dim, exponent):
    generator = torch.Generator().manual_seed(seed)
    sketches = torch.randn(rows, dim, generator=generator, dtype=torch.float64).float().double()
    query = torch.randn(dim, generator=generator, dtype=torch.float64)
    chosen = [
        list(select_infogain(query, DenseCandidates(sketches, dtype), 10.0**exponent, budget=min(8, rows)))
        for dtype in (torch.float32, torch.float64)
    ]
    assert chosen[0] == chosen[1], "float32 nominated, but did not leave the decision to float64"


def test_query_and_negated_query_select_the_same_set(case, noise):
    sketches, query = case
    budget = min(5, sketches.shape[0])
    plus = list(select_infogain(query, DenseCandidates(sketches), noise, budget=budget))
    minus = list(select_infogain(-query, DenseCandidates(sketches), noise, budget=budget))
    assert [step.position for step in plus] == [step.position for step in minus]
    assert [step.covariance for step in plus] == [-step.covariance for step in minus]


def test_the_same_steps_on_any_thread_count(generator):
    sketches = torch.randn(300, 600, generator=generator).double()
    query = torch.randn(600, generator=generator).double()
    before = torch.get_num_threads()
    try:
        selections = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            selections.append(list(select_infogain(query, DenseCandidates(sketches), 60.0, budget=12)))
    finally:
        torch.set_num_threads(before)
    assert selections[0] == selections[1]


def test_sketches_beyond_the_range_of_float32_are_nominated_in_float64():
    sketches = torch.tensor([[1e25, 0.0], [0.0, 1e-25], [2e25, 1.0]], dtype=torch.float64)
    steps = select_infogain(torch.tensor([1.0, 1.0], dtype=torch.float64), DenseCandidates(sketches), 1e40, budget=1)
    assert [step.position for step in steps] == [2]


@pytest.mark.parametrize("noise", [0.0, -1.0, float("nan"), float("inf"), False, "1"])
def test_a_noise_that_is_not_positive_is_refused(noise):
    candidates = DenseCandidates(torch.ones(2, 3, dtype=torch.float64))
    with pytest.raises(NoiseVarianceError, match="noise_variance must be"):
        list(select_infogain(torch.ones(3, dtype=torch.float64), candidates, noise, budget=1))


@pytest.mark.parametrize("budget", [0, -1, 3, 1.5, True])
def test_a_budget_that_cannot_be_spent_is_refused(budget):
    candidates = DenseCandidates(torch.ones(2, 3, dtype=torch.float64))
    with pytest.raises(BudgetError, match="budget"):
        list(select_infogain(torch.ones(3, dtype=torch.float64), candidates, 1.0, budget=budget))


def test_a_query_without_direction_is_refused():
    candidates = DenseCandidates(torch.ones(2, 3, dtype=torch.float64))
    with pytest.raises(ZeroQueryError, match="all zeros"):
        list(select_infogain(torch.zeros(3), candidates, 1.0, budget=1))
    with pytest.raises(NotFiniteError, match="value 1 is nan"):
        list(select_infogain(torch.tensor([1.0, float("nan"), 0.0]), candidates, 1.0, budget=1))
    with pytest.raises(ShapeError, match="query has 2 dimensions, the candidates have 3"):
        list(select_infogain(torch.ones(2), candidates, 1.0, budget=1))
    with pytest.raises(ShapeError, match="one sketch"):
        list(select_infogain(torch.ones(1, 3), candidates, 1.0, budget=1))


def test_candidates_that_are_not_finite_sketches_are_refused():
    with pytest.raises(NotFiniteError, match="row 1"):
        DenseCandidates(torch.tensor([[1.0], [float("inf")]]))
    with pytest.raises(ShapeError, match="c, d"):
        DenseCandidates(torch.ones(3))
