"""Backdoor: what each method ranks and at which noise, who is asked, which rows are true, and what is reported."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments import backdoor, backdoor_methods
from experiments.backdoor_methods import METHODS, OWN_LABEL, Ranker, Sizes
from experiments.frozen import Frozen, Vectors
from experiments.indexing import Sketched
from experiments.information import METHODS as INFORMATION
from experiments.margin_baselines import METHODS as BASELINES
from experiments.margin_baselines import MarginBaselines
from experiments.retrained_mlp import RetrainedMlp
from indexer.progress import Silent
from tests.experiments.expected_rows import largest, picks, shared_indexes
from tests.experiments.small_network import ROWS, SETTINGS, small_network

DIM, SEED, BUDGET = 32, 1, 6
BRIEF = replace(SETTINGS, training=replace(SETTINGS.training, epochs=4))
#: Stands in for what kronfluence computes.
EKFAC = torch.randn(2, ROWS, generator=torch.Generator().manual_seed(4))
SCALED = Sketched("class_logit", True, DIM, seed=SEED, dtype="float16")
QUERIES = (0, 1)


@pytest.fixture(scope="module")
def mlp(tmp_path_factory: pytest.TempPathFactory) -> RetrainedMlp:
    return small_network(tmp_path_factory.mktemp("backdoor"), num_tuning=1, num_queries=1, settings=BRIEF)


@pytest.fixture(scope="module")
def index_of(mlp: RetrainedMlp) -> Callable[..., Any]:
    return shared_indexes(mlp.file.parent)


@pytest.fixture(scope="module")
def rankers(mlp: RetrainedMlp, index_of: Callable[..., Any]) -> dict[str, Ranker]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backdoor_methods, "frozen_index", index_of)
        patch.setattr(backdoor_methods, "ekfac_is_available", lambda: True)
        patch.setattr(backdoor_methods, "ekfac_scores", lambda *_, **__: EKFAC)
        return backdoor_methods.rankers_of(METHODS, mlp.frozen, mlp.file.parent, Sizes(DIM, SEED, BUDGET), Silent())


@pytest.mark.parametrize("noise", [0.01, 30.0])
def test_information_methods_rank_the_class_at_the_noise_they_are_given(mlp, index_of, rankers, noise):
    scaled = index_of(mlp.file, mlp.file, SCALED, Silent())
    unscaled = index_of(mlp.file, mlp.file, replace(SCALED, measurement="label_logit", ntk=False), Silent())
    for query in QUERIES:
        label = int(mlp.frozen.queries.labels[query])
        for method in INFORMATION:
            assert rankers[method](query, label, noise) == picks(scaled, query, label, method, noise, BUDGET), method
            expected = picks(unscaled, query, label, method, noise, BUDGET)
            assert rankers[f"{method}_unscaled"](query, label, noise) == expected, method


def test_d_of_the_own_label_method_is_the_class(mlp, index_of, rankers):
    scaled = index_of(mlp.file, mlp.file, SCALED, Silent())
    different = []
    for query in QUERIES:
        label = int(mlp.frozen.queries.labels[query])
        expected = picks(scaled, query, label, "infoloss", 1.0, BUDGET, own_class=True)
        assert rankers[OWN_LABEL](query, label, 1.0) == expected
        different.append(expected != picks(scaled, query, label, "infoloss", 1.0, BUDGET))
    assert any(different)


def test_baselines_rank_the_rows_of_the_class_with_the_largest_scores_first(mlp, index_of, rankers):
    how = replace(SCALED, measurement="margin", ntk=False)
    scoring = MarginBaselines(mlp.frozen, index_of(mlp.file, mlp.file, how, Silent()), 1.0)
    labels, query = mlp.frozen.train.labels, QUERIES[1]
    label = int(mlp.frozen.queries.labels[query])
    for method in BASELINES:
        of_lambda = {}
        for regularisation in (None, 1e-6, 100.0):
            scores = scoring.regularised(regularisation or 1.0).scores(query, (method,))[method]
            of_lambda[regularisation] = rankers[method](query, label, regularisation)
            assert of_lambda[regularisation] == largest(scores, labels, label, BUDGET), method
        if method in ("trak", "relatif"):
            assert of_lambda[1e-6] != of_lambda[100.0]
    assert rankers["ekfac"](query, label, None) == largest(EKFAC[query], labels, label, BUDGET)


def test_random_rows_are_of_the_class(mlp, rankers):
    for query in QUERIES:
        label = int(mlp.frozen.queries.labels[query])
        rows = rankers["random"](query, label, None)
        assert len(set(rows)) == BUDGET
        assert set(mlp.frozen.train.labels[rows].tolist()) == {label}


def test_the_noise_is_the_tuning_queries_and_what_is_reported_the_other_queries(monkeypatch, tmp_path: Path):
    # Of each class rows 0 and 1 are poisoned, 2 to 5 clean. Queries 0 to 2 are there to tune on, of which two are.
    poisoned = torch.tensor([1, 1, 0, 0, 0, 0] * 2)
    train = Vectors(torch.zeros(12, 3), torch.tensor([0] * 6 + [1] * 6))
    queries = Vectors(torch.zeros(5, 3), torch.tensor([0, 1, 0, 0, 1]))
    metadata = {"poisoned": poisoned, "success_percent": torch.full((12,), 70)}
    frozen = Frozen("mlp 3 2", {}, train, queries, metadata)
    found = {  # by (query, noise), rows of the query's class
        **{(query, 1.0): [2, 3] for query in (0, 1)},
        **{(query, 10.0): [0, 1] for query in (0, 1)},
        (3, 10.0): [2, 1],
        (4, 10.0): [0, 5],
        **{(query, 1.0): [0, 1] for query in (3, 4)},
    }
    asked: list[tuple[str, int, float | None]] = []

    def informed(query: int, label: int, noise: float | None) -> list[int]:
        asked.append(("infogain", query, noise))
        return [6 * label + row for row in found[query, noise]]

    def at_random(query: int, label: int, noise: float | None) -> list[int]:
        asked.append(("random", query, noise))
        return [6 * label + 3, 6 * label + 4]

    monkeypatch.setattr(backdoor, "network", lambda *_: frozen)
    monkeypatch.setattr(backdoor, "rankers_of", lambda *_: {"infogain": informed, "random": at_random})
    settings = replace(
        backdoor.SMOKE,
        methods=("infogain", "random"),
        per_class=2,
        tuning_queries=2,
        stored_tuning=3,
        queries=2,
        stored_queries=2,
        noises=(1.0, 10.0),
    )
    report = backdoor.run(settings, None, tmp_path, Silent())
    reported = [(method, query, noise) for query in (3, 4) for method, noise in (("infogain", 10.0), ("random", None))]
    assert asked == [("infogain", query, noise) for query in (0, 1) for noise in (1.0, 10.0)] + reported
    informed_row, random_row = report.rows
    assert informed_row["relative_noise"] == 10.0
    # Query 3 finds one of two, at rank 2; query 4 one of two, at rank 1.
    assert (informed_row["recall"], informed_row["mrr"]) == (0.5, 0.75)
    assert (random_row["recall"], random_row["mrr"]) == (0.0, 0.0)
    assert report.facts["success"] == {0: 0.7}


def test_queries_are_test_images_that_the_trigger_fools():
    settings = replace(
        backdoor.SMOKE,
        network="mlp 64 16 10",
        training=replace(backdoor.SMOKE.training, epochs=6),
        train_rows=500,
        test_rows=200,
        stored_tuning=6,
        stored_queries=6,
    )
    frozen = backdoor.trained(settings, None, 0, Silent())
    assert 0 < int(frozen.metadata["success_percent"][0]) < 95
    assert len(frozen.queries) == 12
    assert torch.equal(frozen.logits(frozen.queries).argmax(dim=1), frozen.queries.labels)
