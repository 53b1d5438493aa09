import itertools

import pytest
import torch

from attribution import function_space, weight_space
from attribution.errors import NotPositiveDefiniteError, ShapeError
from tests import oracles

# Both forms solve systems of condition (λ_max + σ²)/σ² ≤ 1e5 in these cases: 1e-16 · 1e5, and a margin.
CLOSE = {"rtol": 1e-9, "atol": 1e-9}


def test_function_space_covariance_is_eq_9(case, noise):
    sketches, query = case
    acquired = sketches[: sketches.shape[0] // 2]
    expected = oracles.covariance(query.unsqueeze(0), sketches, acquired, noise)
    torch.testing.assert_close(
        function_space.covariance(query.unsqueeze(0), sketches, acquired, noise), expected, **CLOSE
    )


def test_function_space_variance_is_eq_10(case, noise):
    sketches, _ = case
    acquired = sketches[: sketches.shape[0] // 2]
    expected = oracles.variance(sketches, acquired, noise)
    torch.testing.assert_close(function_space.variance(sketches, acquired, noise), expected, **CLOSE)


def test_weight_space_equals_function_space_by_woodbury(case, noise):  # Eq. 12 = Eq. 9
    sketches, query = case
    for acquired in (sketches[:0], sketches[:1], sketches):
        for name in ("covariance", "variance", "residual"):
            arguments = {
                "covariance": (query.unsqueeze(0), sketches, acquired, noise),
                "variance": (sketches, acquired, noise),
                "residual": (query, acquired, noise),
            }[name]
            torch.testing.assert_close(
                getattr(weight_space, name)(*arguments), getattr(function_space, name)(*arguments), **CLOSE
            )


def test_precision_is_identity_plus_scaled_gram(case, noise):  # Eq. 13
    sketches, _ = case
    expected = torch.eye(sketches.shape[1], dtype=torch.float64)
    for row in sketches:
        expected = expected + torch.outer(row, row) / noise
    torch.testing.assert_close(weight_space.precision(sketches, noise), expected, rtol=1e-12, atol=1e-12)


def test_residual_equals_precision_solve(case, noise):  # Eq. 15 = Eq. 13⁻¹ φ_*
    sketches, query = case
    torch.testing.assert_close(
        function_space.residual(query, sketches, noise), oracles.residual(query, sketches, noise), **CLOSE
    )


def test_inner_product_with_the_residual_is_the_posterior_covariance(case, noise):  # Eq. 15, second statement
    sketches, query = case
    acquired = sketches[::2]
    residual = function_space.residual(query, acquired, noise)
    expected = oracles.covariance(query.unsqueeze(0), sketches, acquired, noise)[0]
    torch.testing.assert_close(sketches @ residual, expected, **CLOSE)


def test_given_nothing_the_residual_is_the_query(case):
    sketches, query = case
    assert torch.equal(function_space.residual(query, sketches[:0], 1.0), query)
    torch.testing.assert_close(weight_space.residual(query, sketches[:0], 1.0), query)


def test_linear_response_overstates_reduction_by_one_plus_variance_over_noise(case, noise):  # Eq. 14
    sketches, query = case
    acquired, candidate = sketches[:-1], sketches[-1:]
    covariance = float(function_space.covariance(query.unsqueeze(0), candidate, acquired, noise))
    if covariance == 0:
        return
    linear_response = covariance**2 / noise
    before = oracles.query_variance(query, acquired, noise)
    true = before - oracles.query_variance(query, sketches, noise)
    factor = 1 + float(oracles.variance(candidate, acquired, noise)[0]) / noise
    # `true` is a difference of variances: it carries the rounding of `before`, 1e-15 relative times the condition.
    assert linear_response == pytest.approx(true * factor, rel=1e-6, abs=1e-11 * before * factor)


def test_adding_an_example_never_increases_query_variance(case, noise):
    sketches, query = case
    variances = [
        float(function_space.variance(query.unsqueeze(0), sketches[:t], noise)[0]) for t in range(sketches.shape[0] + 1)
    ]
    # Rounding of one variance, relative to the prior.
    assert all(later <= earlier + 1e-12 * variances[0] for earlier, later in itertools.pairwise(variances))


def test_a_factorisation_that_rounding_defeats_names_a_noise_that_works():
    sketches = torch.ones(3, 4)  # float32, rank 1: K + 1e-12 I has no factor
    query = torch.tensor([1.0, 2.0, 3.0, 4.0])
    with pytest.raises(NotPositiveDefiniteError, match="It has one from") as caught:
        function_space.residual(query, sketches, 1e-12)
    function_space.residual(query, sketches, caught.value.smallest_noise_variance)


def test_mixed_dimensions_are_refused():
    with pytest.raises(ShapeError, match="4, 4 and 3"):
        function_space.variance(torch.ones(2, 4), torch.ones(2, 3), 1.0)
    with pytest.raises(ShapeError, match="one row per example"):
        function_space.variance(torch.ones(4), torch.ones(2, 4), 1.0)
    with pytest.raises(ShapeError, match="t, d"):
        weight_space.precision(torch.ones(4), 1.0)
