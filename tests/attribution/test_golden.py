"""The golden selections that came with the method: picks and nats of nine systems."""

import json
from pathlib import Path

import pytest
import torch

from attribution.acquired import acquire
from attribution.candidates import DenseCandidates
from attribution.infogain import select_infogain
from attribution.infogain_approx import select_infogain_approx
from attribution.infoloss import select_infoloss
from attribution.many_queries import select_many
from attribution.posterior import SetPosterior, cross_products, spectrum_of
from attribution.search import DenseSearch
from tests import oracles

CASES = json.loads((Path(__file__).parents[1] / "golden" / "selection.json").read_text())["cases"]
# The file's nats were made by explicit solves at condition numbers up to 1e4.
NATS = {"rel": 1e-9, "abs": 0}


@pytest.fixture(params=CASES, ids=[case["name"] for case in CASES])
def golden(request):
    case = request.param
    sketches = torch.tensor(case["sketches"], dtype=torch.float64)
    queries = torch.tensor(case["queries"], dtype=torch.float64)
    return case, sketches, queries, case["noise_variance"]


def posterior_of(query, sketches, noise):
    posterior = SetPosterior(spectrum_of(sketches), noise)
    return posterior.of_query(query, cross_products([sketches], query), lambda positions: sketches[positions])


def test_everything_known_about_each_query(golden):
    _, sketches, queries, noise = golden
    for single in golden[0]["single"]:
        posterior = posterior_of(queries[single["query"]], sketches, noise)
        assert posterior.prior_variance == pytest.approx(single["prior_variance"], **NATS)
        assert posterior.info_gain_nats == pytest.approx(single["available_nats"], **NATS)


@pytest.mark.parametrize("strategy", ["literal", "certified"])
@pytest.mark.parametrize("max_results", [4, 2048])
def test_approximate_infogain(golden, strategy, max_results):
    case, sketches, queries, noise = golden
    for single in case["single"]:
        steps = list(
            select_infogain_approx(
                queries[single["query"]],
                DenseSearch(sketches),
                lambda rows: sketches[rows],
                noise,
                budget=8,
                rows_allowed=None,
                num_allowed=sketches.shape[0],
                largest_norm=float(sketches.norm(dim=1).max()),
                strategy=strategy,
                max_results=max_results,
            )
        )
        assert [step.position for step in steps] == single["approx"]["picks"]
        assert [step.cumulative_nats for step in steps] == pytest.approx(single["approx"]["infogain_nats"], **NATS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_exact_infogain(golden, dtype):
    case, sketches, queries, noise = golden
    for single in case["single"]:
        query = queries[single["query"]]
        steps = list(select_infogain(query, DenseCandidates(sketches, dtype), noise, budget=8))
        assert [step.position for step in steps] == single["infogain"]["picks"]
        assert [step.cumulative_nats for step in steps] == pytest.approx(single["infogain"]["infogain_nats"], **NATS)


def test_infoloss(golden):
    case, sketches, queries, noise = golden
    for single in case["single"]:
        posterior = posterior_of(queries[single["query"]], sketches, noise)
        steps = list(select_infoloss(posterior, torch.arange(sketches.shape[0]), budget=8))
        assert [step.position for step in steps] == single["infoloss"]["picks"]
        assert [step.cumulative_nats for step in steps] == pytest.approx(single["infoloss"]["infoloss_nats"], **NATS)


@pytest.mark.parametrize("rule", ["approx", "infogain", "infoloss"])
def test_both_criteria_of_every_rules_picks(golden, rule):
    case, sketches, queries, noise = golden
    for single in case["single"]:
        query, picks = queries[single["query"]], single[rule]["picks"]
        gains = [step.cumulative_nats for step in acquire(query, sketches[picks], noise)]
        assert gains == pytest.approx(single[rule]["infogain_nats"], **NATS)
        posterior = posterior_of(query, sketches, noise)
        losses = [posterior.info_loss_nats(picks[: t + 1]) for t in range(len(picks))]
        assert losses == pytest.approx(single[rule]["infoloss_nats"], **NATS)


@pytest.mark.parametrize("rule", ["approx", "infogain"])
def test_many_queries(golden, rule):
    case, sketches, queries, noise = golden
    name = {"approx": "infogain_approx", "infogain": "infogain"}[rule]
    steps = select_many(queries, DenseCandidates(sketches), noise, budget=8, rule=name)
    assert [step.position for step in steps] == case["many"][rule]


def test_the_oracles_reproduce_the_golden_file(golden):
    case, sketches, queries, noise = golden
    for single in case["single"]:
        query = queries[single["query"]]
        assert oracles.greedy_approx(query, sketches, noise, 8) == single["approx"]["picks"]
        assert oracles.greedy_infogain(query, sketches, noise, 8) == single["infogain"]["picks"]
        assert oracles.greedy_infoloss(query, sketches, noise, 8) == single["infoloss"]["picks"]
    for rule, name in (("approx", "infogain_approx"), ("infogain", "infogain")):
        assert oracles.greedy_many(queries, sketches, noise, 8, rule=name) == case["many"][rule]
