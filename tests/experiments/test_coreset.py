"""Coresets: what is tuned on the first half is reported on the second, and baselines keep their best rows."""

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments import coreset
from experiments.coreset import SMOKE, Halves, Selector, accuracy, measure, tuned
from experiments.datasets import read_images
from experiments.indexing import Sketched, frozen_index
from experiments.information import METHODS as INFORMATION
from experiments.journal import Journal
from experiments.margin_baselines import METHODS as BASELINES
from experiments.margin_baselines import MarginBaselines
from experiments.retrained_mlp import RetrainedMlp
from indexer.progress import Silent
from sketchstore.reader import Index
from tests import oracles
from tests.experiments.small_network import ROWS, SETTINGS, small_network

TRAINED = replace(SETTINGS, training=replace(SETTINGS.training, epochs=2))
SMALL = replace(SMOKE, mlp=TRAINED, noises=(0.1, 10.0), sizes=(10, 20), seeds=(0, 1), steps=20, dim=64)


@pytest.fixture(scope="module")
def mlp(tmp_path_factory) -> RetrainedMlp:
    return small_network(tmp_path_factory.mktemp("coreset"), num_tuning=3, num_queries=5, settings=TRAINED)


@pytest.fixture(scope="module")
def index(mlp, tmp_path_factory) -> Index:
    folder = tmp_path_factory.mktemp("index") / "margin"
    return frozen_index(mlp.file, folder, Sketched("margin", False, SMALL.dim), Silent())


@pytest.fixture(scope="module")
def selector(mlp, index) -> Selector:
    scores = torch.rand(8, ROWS, generator=torch.Generator().manual_seed(0))
    return Selector(SMALL, mlp, index, scores)


@pytest.fixture(scope="module")
def halves() -> Halves:
    """Halves that no network can be alike good on: the reported one has every label moved on by one."""
    _, test = read_images("digits", None)
    found = Halves.of(test)
    return replace(found, reported=replace(found.reported, labels=(found.reported.labels + 1) % 10))


def test_the_tuning_half_is_the_first():
    _, test = read_images("digits", None)
    found, half = Halves.of(test), len(test) // 2
    assert torch.equal(found.tuning.pixels, test.pixels[:half])
    assert torch.equal(found.reported.pixels, test.pixels[half:])


def test_the_noise_of_a_size_is_tuned_for_the_tuning_queries_on_the_tuning_half(selector, mlp, halves, tmp_path: Path):
    journal = Journal(tmp_path / "work.jsonl", {})
    tuned(SMALL, selector, halves, journal, Silent())
    for method in INFORMATION:
        for noise in SMALL.noises:
            rows = selector.select(method, 20, False, noise, tuning=True)
            assert rows != selector.select(method, 20, False, noise, tuning=False)
            trained = list(product(SMALL.sizes, SMALL.seeds))
            found = [journal[f"tune/{method}@{noise:g}/{size}/{seed}"] for size, seed in trained]
            on_tuning, on_reported = (
                [accuracy(SMALL, mlp, rows[:size], images, seed) for size, seed in trained]
                for images in (halves.tuning, halves.reported)
            )
            assert found == on_tuning != on_reported


def test_what_is_reported_is_of_the_queries_and_the_reported_half(selector, mlp, halves, tmp_path: Path):
    journal = Journal(tmp_path / "work.jsonl", {})
    noises = {"infogain": {10: 10.0, 20: 0.1}}
    measure(SMALL, selector, ("infogain", "graddot", "random"), halves, noises, journal, Silent())
    drawn = {seed: selector.at_random(20, False, seed) for seed in SMALL.seeds}
    assert drawn[0] != drawn[1]
    for seed, rows in drawn.items():
        assert journal[f"accuracy/random/plain/20/{seed}"] == accuracy(SMALL, mlp, rows, halves.reported, seed)
    for named, size, noise in (("infogain@10", 10, 10.0), ("infogain@0.1", 20, 0.1), ("graddot", 20, None)):
        rows = selector.select(named.partition("@")[0], 20, False, noise, tuning=False)
        assert journal[f"rows/{named}/plain/20"] == rows
        assert rows != selector.select(named.partition("@")[0], 20, False, noise, tuning=True)
        found = [journal[f"accuracy/{named}/plain/{size}/{seed}"] for seed in SMALL.seeds]
        on_tuning, on_reported = (
            [accuracy(SMALL, mlp, rows[:size], images, seed) for seed in SMALL.seeds]
            for images in (halves.tuning, halves.reported)
        )
        assert found == on_reported != on_tuning


def test_the_accuracy_of_the_whole_training_set_is_of_the_reported_half(mlp, monkeypatch, tmp_path: Path):
    for name in ("frozen_index", "Selector", "tuned", "measure"):
        monkeypatch.setattr(coreset, name, lambda *_, **__: {})
    monkeypatch.setattr(coreset, "RetrainedMlp", lambda *_, **__: mlp)
    monkeypatch.setattr(coreset, "ekfac_is_available", lambda: False)
    told: list[Any] = []
    monkeypatch.setattr(coreset, "report", lambda *arguments: told.extend(arguments))
    coreset.run(SMOKE, None, tmp_path, Silent())
    images, halves = told[4], Halves.of(read_images("digits", None)[1])
    assert torch.equal(images.labels, halves.reported.labels)
    assert torch.equal(images.inputs(True), halves.reported.inputs(True))
    assert not torch.equal(images.labels, halves.tuning.labels)


def test_the_noise_of_a_size_is_that_of_the_best_mean_accuracy_over_the_seeds(selector, halves, tmp_path: Path):
    journal = Journal(tmp_path / "work.jsonl", {})
    best = {
        "infogain": {10: 0.1, 20: 10.0},
        "infogain_approx": {10: 10.0, 20: 10.0},
        "infoloss": {10: 10.0, 20: 0.1},
    }
    for method, by_size in best.items():
        for size, chosen in by_size.items():
            for noise in SMALL.noises:
                # The other noise is ahead by its first seed alone, and behind by both together.
                of_seeds = (0.5, 0.9) if noise == chosen else (0.6, 0.3)
                for seed, value in enumerate(of_seeds):
                    journal.once(f"tune/{method}@{noise:g}/{size}/{seed}", _constant(value))
    assert tuned(SMALL, selector, halves, journal, Silent()) == best


def _constant(value: float) -> Callable[[], float]:
    return lambda: value


@pytest.mark.parametrize("method", [*BASELINES, "ekfac"])
def test_a_baseline_keeps_the_rows_with_the_largest_mean_score(selector, mlp, index, method):
    if method == "ekfac":
        scores = torch.rand(8, ROWS, generator=torch.Generator().manual_seed(0))[3:].mean(dim=0)
    else:
        of_lambda = MarginBaselines(mlp.frozen, index, SMALL.regularisation)
        scores = sum(of_lambda.scores(row, (method,))[method] for row in mlp.query_rows) / 5
    kept = selector.select(method, 20, False, None, tuning=False)
    left = sorted(set(range(ROWS)) - set(kept))
    assert len(set(kept)) == 20
    assert float(scores[kept].min()) >= float(scores[left].max())

    balanced = selector.select(method, 20, True, None, tuning=False)
    labels = mlp.frozen.train.labels
    assert torch.bincount(labels[balanced], minlength=10).tolist() == [2] * 10
    for label in range(10):
        mine = [row for row in balanced if labels[row] == label]
        others = [row for row in torch.nonzero(labels == label).squeeze(1).tolist() if row not in mine]
        assert float(scores[mine].min()) >= float(scores[others].max())


@pytest.mark.parametrize("dim", [64, 256], ids=["more rows than d", "fewer"])
def test_infoloss_selects_what_the_dense_rule_does_at_its_noise_with_inverse_variances(mlp, tmp_path: Path, dim: int):
    how = Sketched("margin", False, dim)
    index = frozen_index(mlp.file, tmp_path / "margin", how, Silent())
    selector, view, labels = Selector(SMALL, mlp, index, None), index.view("margin"), mlp.frozen.queries.labels
    rows = view.sketches(torch.arange(ROWS), dtype=torch.float64)
    queries = torch.stack([index.queries.sketch(row, "margin", int(labels[row])) for row in mlp.query_rows])
    noise = 0.1 * view.mean_squared_norm()
    found = selector.select("infoloss", 8, False, 0.1, tuning=False)
    assert found == oracles.greedy_many(queries, rows, noise, 8, rule="infoloss")
    # What must show: another noise, and queries that weigh alike.
    assert found != oracles.greedy_many(queries, rows, 100 * noise, 8, rule="infoloss")
    assert found != oracles.greedy_many(queries, rows, noise, 8, rule="infoloss", inverse_variance=False)
