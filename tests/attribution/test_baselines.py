"""Baselines against their formulas, dense in float64, and their signs: a duplicate of the query is a proponent."""

import pytest
import torch

from attribution.baselines import graddot, random_scores, relatif, repsim, trak
from attribution.errors import NotPositiveDefiniteError, ShapeError
from tests import oracles


@pytest.fixture
def one_minus_p(case, generator):
    return torch.rand(case[0].shape[0], generator=generator, dtype=torch.float64)


def test_trak_is_its_formula(case, noise, one_minus_p):
    sketches, query = case
    found = trak(query[None], sketches, one_minus_p, noise)[0]
    precision = sketches.T @ sketches + noise * torch.eye(sketches.shape[1], dtype=torch.float64)
    wanted = (sketches @ torch.linalg.solve(precision, query)) * one_minus_p
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)  # both solve in float64, conditions up to 1e4


def test_trak_is_the_posterior_covariance_with_lambda_as_noise(case, noise, one_minus_p):
    sketches, query = case
    found = trak(query[None], sketches, one_minus_p, noise)[0]
    covariance = oracles.covariance(query[None], sketches, sketches, noise)[0]
    torch.testing.assert_close(found * noise, one_minus_p * covariance, rtol=1e-8, atol=1e-10)


def test_trak_without_regularisation_is_the_package_s_formula():
    generator = torch.Generator().manual_seed(3)
    sketches = torch.randn(40, 8, generator=generator, dtype=torch.float64)
    queries = torch.randn(5, 8, generator=generator, dtype=torch.float64)
    one_minus_p = torch.rand(40, generator=generator, dtype=torch.float64)
    found, package = trak(queries, sketches, one_minus_p, 0.0), oracles.traker_scores(queries, sketches, one_minus_p, 0)
    torch.testing.assert_close(found, queries @ torch.linalg.pinv(sketches) * one_minus_p, rtol=1e-10, atol=1e-13)
    # One positive constant for all queries and rows.
    torch.testing.assert_close(package / found, (package / found)[0, 0].expand(5, 40), rtol=1e-8, atol=0)
    assert float(package[0, 0] / found[0, 0]) > 0


def test_trak_without_regularisation_is_refused_where_rows_do_not_span():
    with pytest.raises(NotPositiveDefiniteError, match="at least"):
        trak(torch.ones(1, 4), torch.eye(4)[:3], torch.ones(3), 0.0)


def test_the_regularisation_that_the_refusal_names_works():
    sketches, query = torch.eye(6, dtype=torch.float64)[:3], torch.ones(1, 6, dtype=torch.float64)
    with pytest.raises(NotPositiveDefiniteError) as refused:
        trak(query, sketches, torch.ones(3), 0.0)
    assert trak(query, sketches, torch.ones(3), refused.value.smallest_noise_variance).isfinite().all()


def test_graddot_is_minus_the_product_with_the_gradient_of_the_loss():
    # A linear softmax model, by autograd: gradients of the loss, and of the margin of the query.
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(3, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    inputs = torch.randn(7, 5, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 3, (7,), generator=generator)
    probabilities = torch.softmax(inputs @ weights.T, dim=1)[torch.arange(7), labels]

    def gradient(value: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(value, weights, retain_graph=True)[0].flatten()

    margins = torch.stack([gradient(torch.logit(p)) for p in probabilities])
    losses = torch.stack([gradient(-torch.log(p)) for p in probabilities])
    found = graddot(margins[:2], margins, (1 - probabilities).detach())
    torch.testing.assert_close(found, -margins[:2] @ losses.T, rtol=1e-12, atol=1e-13)


def test_relatif_is_eq_86(case, noise):
    sketches, query = case
    found = relatif(query[None], sketches, noise)[0]
    covariance = oracles.covariance(query[None], sketches, sketches, noise)[0]
    own = oracles.variance(sketches, sketches, noise)
    wanted = covariance / (own * oracles.query_variance(query, sketches, noise)).sqrt()
    wanted = torch.where(sketches.square().sum(dim=1) > 0, wanted, 0.0)
    torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-10)
    assert bool((found.abs() <= 1 + 1e-9).all())


def test_repsim_is_the_cosine(case):
    sketches, query = case
    found = repsim(query[None], sketches)[0]
    wanted = torch.nn.functional.cosine_similarity(query[None], sketches, eps=1e-300)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-14)


def test_a_training_duplicate_of_the_query_scores_positive_with_every_method(case, noise, generator):
    sketches, _ = case
    one_minus_p = 0.5 + 0.5 * torch.rand(sketches.shape[0], generator=generator, dtype=torch.float64)
    places = [place for place in range(sketches.shape[0]) if bool(sketches[place].any())]
    queries, own = sketches[places], range(len(places))
    for scores in (
        repsim(queries, sketches),
        graddot(queries, sketches, one_minus_p),
        trak(queries, sketches, one_minus_p, noise),
        relatif(queries, sketches, noise),
    ):
        assert bool((scores[own, places] > 0).all())


def test_normalised_methods_rank_a_duplicate_first(case, noise):
    sketches, _ = case
    query = sketches[1 if sketches.shape[0] > 1 else 0]
    for scores in (repsim(query[None], sketches)[0], relatif(query[None], sketches, noise)[0]):
        best = (scores >= scores.max() - 1e-9).nonzero().flatten()
        assert bool((sketches[best] == query).all(dim=1).any())


def test_random_scores_depend_on_the_seed_alone():
    assert torch.equal(random_scores(50, 1), random_scores(50, 1))
    assert not torch.equal(random_scores(50, 1), random_scores(50, 2))


def test_another_number_of_probabilities_is_refused():
    with pytest.raises(ShapeError, match="each of the 3 sketches"):
        graddot(torch.ones(1, 4), torch.ones(3, 4), torch.ones(2))
