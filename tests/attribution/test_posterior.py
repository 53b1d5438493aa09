"""What the posterior given T says of T's own members, all of T known or some left out, against explicit solves."""

import pytest
import torch

from attribution.posterior import SetPosterior, cross_products, spectrum_of
from tests import oracles


@pytest.fixture(params=[0, 1, 3], ids=lambda count: f"{count} left out")
def members(request, case, noise):
    """A posterior without some rows, those rows, and the others."""
    sketches, query = case
    out = list(range(sketches.shape[0]))[1 : 1 + request.param]
    kept = [row for row in range(sketches.shape[0]) if row not in out]
    posterior = SetPosterior(spectrum_of(sketches), noise)
    given = posterior.of_query(query, cross_products([sketches], query), lambda places: sketches[places].double())
    return (given.without(out) if out else given), torch.tensor(kept)


def test_covariances_with_the_query_are_eq_9(case, noise, members):
    sketches, query = case
    given, kept = members
    wanted = oracles.covariance(query[None], sketches[kept], sketches[kept], noise)[0]
    # Solves of condition up to 1e4 relative to the largest value.
    tolerance = 1e-10 * float((sketches @ query).abs().max())
    torch.testing.assert_close(given.covariances(kept), wanted, rtol=1e-8, atol=tolerance)
    residual = given.direction()
    assert (residual is None) == (sketches.shape[0] <= sketches.shape[1])
    if residual is not None:
        torch.testing.assert_close(sketches[kept] @ residual, wanted, rtol=1e-8, atol=tolerance)


def test_variances_are_eq_10_and_the_fast_ones_within_their_bound(case, noise, members):
    sketches, _ = case
    given, kept = members
    found = given.variances(kept)
    wanted = oracles.variance(sketches[kept], sketches[kept], noise)
    torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-11 * float(sketches.square().sum(dim=1).max()))
    fast, error = given.nominated_variances(kept)
    assert bool(((fast - found).abs() <= error * found).all())
