import math

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attribution.acquired import acquire
from attribution.errors import NotPositiveDefiniteError
from attribution.information import info_gain, info_gain_nats, info_loss, info_loss_nats
from tests import oracles

NOISES = [1e-9, 1e-6, 1e-3, 1.0, 1e3, 1e6, 1e9, 1e12]


def exact_variance(query, acquired, noise):
    """v(x_* | A) with 60 digits."""
    with mpmath.workdps(60):
        rows = mpmath.matrix(acquired.tolist()) if acquired.shape[0] else None
        star = mpmath.matrix(query.tolist())
        prior = (star.T * star)[0]
        if rows is None:
            return prior
        cross = rows * star
        gram = rows * rows.T + mpmath.mpf(noise) * mpmath.eye(acquired.shape[0])
        return prior - (cross.T * mpmath.lu_solve(gram, cross))[0]


def exact_gain(query, acquired, noise):
    with mpmath.workdps(60):
        return float(
            mpmath.log(exact_variance(query, acquired[:0], noise) / exact_variance(query, acquired, noise)) / 2
        )


@pytest.fixture
def small(generator):
    rows = torch.randn(7, 5, generator=generator, dtype=torch.float64)
    rows[3] = rows[1]  # a duplicate: K is singular
    rows[4] = 0.0
    return rows, torch.randn(5, generator=generator, dtype=torch.float64)


def test_info_gain_is_eq_6(case, noise):
    sketches, query = case
    # Condition up to 1e5 at relative noise 0.01.
    assert info_gain(query, sketches, noise) == pytest.approx(oracles.info_gain(query, sketches, noise), rel=1e-9)


def test_info_loss_is_eq_4(case, noise):
    sketches, query = case
    half = sketches.shape[0] // 2
    expected = oracles.info_loss(query, sketches, list(range(half, sketches.shape[0])), noise)
    # The oracle takes a ratio of variances: 1e-16 times the condition, absolute.
    assert info_loss(query, sketches[:half], sketches[half:], noise) == pytest.approx(expected, rel=1e-8, abs=1e-11)


@pytest.mark.parametrize("noise", NOISES)
def test_nats_keep_their_digits_from_tiny_to_huge_noise(small, noise):
    rows, query = small
    expected = exact_gain(query, rows, noise)
    # Orthogonalised sums: condition √(K/σ²) ≤ 1e5 enters, not its square.
    assert list(acquire(query, rows, noise))[-1].cumulative_nats == pytest.approx(expected, rel=1e-9)
    # One dense Cholesky: condition up to 1e10 at σ² = 1e-9, of which this system shows little.
    assert info_gain(query, rows, noise) == pytest.approx(expected, rel=1e-7 if noise < 1e-3 else 1e-11)


@pytest.mark.parametrize("noise", NOISES)
def test_losses_keep_their_digits_from_tiny_to_huge_noise(small, noise):
    rows, query = small
    kept, removed = rows[:5], rows[5:]
    with mpmath.workdps(60):
        ratio = exact_variance(query, kept, noise) / exact_variance(query, rows, noise)
        expected = float(mpmath.log(ratio) / 2)
    assert info_loss(query, kept, removed, noise) == pytest.approx(expected, rel=1e-7 if noise < 1e-3 else 1e-11)


def test_the_plain_ratio_would_lose_what_log1p_keeps():
    # Reduction of 1e-12 of the variance: 1 − 1e-12 keeps four digits of it.
    assert info_gain_nats(1.0, 1e-12) == pytest.approx(5e-13, rel=1e-11)
    assert info_loss_nats(1.0, 1e-12) == pytest.approx(5e-13, rel=1e-11)
    assert abs(-0.5 * math.log(1.0 - 1e-12) / 5e-13 - 1) > 1e-6


def test_a_reduction_beyond_the_variance_is_an_error_and_all_of_it_infinite():
    assert info_gain_nats(2.0, 2.0) == math.inf
    assert info_gain_nats(2.0, 2.0, posterior_variance=1e-30) == pytest.approx(0.5 * math.log(2e30))
    with pytest.raises(NotPositiveDefiniteError, match="larger one"):
        info_gain_nats(2.0, 2.1)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), order=st.permutations(range(6)))
def test_gain_of_a_set_does_not_depend_on_its_order(seed, order):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    query = torch.randn(4, generator=generator, dtype=torch.float64)
    # Six well-conditioned rows at σ² = 0.5.
    assert info_gain(query, rows[list(order)], 0.5) == pytest.approx(info_gain(query, rows, 0.5), rel=1e-11)
    steps = list(acquire(query, rows[list(order)], 0.5))
    assert steps[-1].cumulative_nats == pytest.approx(info_gain(query, rows, 0.5), rel=1e-11)


def test_information_of_nothing_is_zero(case):
    sketches, query = case
    assert info_gain(query, sketches[:0], 1.0) == 0.0
    assert info_loss(query, sketches, sketches[:0], 1.0) == 0.0
    assert list(acquire(query, sketches[:0], 1.0)) == []


def test_steps_of_an_ordered_set_sum_to_its_gain(case, noise):
    sketches, query = case
    steps = list(acquire(query, sketches, noise))
    for t, step in enumerate(steps, start=1):
        assert (step.rank, step.position) == (t, t - 1)
        assert step.cumulative_nats == pytest.approx(oracles.info_gain(query, sketches[:t], noise), rel=1e-9, abs=1e-15)
        assert step.query_variance == pytest.approx(oracles.query_variance(query, sketches[:t], noise), rel=1e-9)
    assert sum(step.step_nats for step in steps) == pytest.approx(steps[-1].cumulative_nats, rel=1e-11, abs=1e-15)


def test_infogain_and_infoloss_agree_to_leading_order_as_noise_grows(generator):  # the Lemma
    rows = torch.randn(20, 6, generator=generator, dtype=torch.float64)
    query = torch.randn(6, generator=generator, dtype=torch.float64)
    subset, rest = rows[:3], rows[3:]
    leading = float(((subset @ query) ** 2).sum() / (2 * query @ query))
    gaps = []
    for noise in (1e3, 1e4, 1e5, 1e6):
        gain, loss = info_gain(query, subset, noise), info_loss(query, rest, subset, noise)
        gaps.append(max(abs(gain - leading / noise), abs(loss - leading / noise)) * noise**2)
    # σ⁴ times the difference stays bounded: no trend over three decades.
    assert max(gaps) < 2 * min(gaps)


def test_gain_of_one_query_is_not_submodular():
    query = torch.tensor([1.0, 0.0], dtype=torch.float64)
    first = torch.tensor([[1.0, 1.0]], dtype=torch.float64)
    second = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    assert info_gain(query, second, 0.1) == 0.0
    added = info_gain(query, torch.cat([first, second]), 0.1) - info_gain(query, first, 0.1)
    assert added == pytest.approx(0.592, abs=5e-4)  # method.md section 4 states three digits
