"""What other experiments report: whose queries, at which λ, against which truth, of which initialisation."""

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from experiments import coreset, lds, mislabelled, noise_tuning
from experiments.datasets import read_images
from experiments.frozen import load_frozen
from experiments.indexing import Sketched
from experiments.information import METHODS as INFORMATION
from experiments.journal import Journal
from experiments.margin_baselines import MarginBaselines
from experiments.mlp_training import linear_weights, mlp_logits, train_mlp
from experiments.networks import initial_network
from experiments.noise_by_removal import TuningSettings
from experiments.retrained_mlp import RetrainedMlp
from indexer.progress import Silent
from sketchstore.reader import Index
from tests import oracles
from tests.experiments.expected_rows import shared_indexes
from tests.experiments.small_network import ROWS, SETTINGS, small_network

DIM = 32
BRIEF = replace(SETTINGS, training=replace(SETTINGS.training, epochs=4))


@pytest.fixture(scope="module")
def mlp(tmp_path_factory: pytest.TempPathFactory) -> RetrainedMlp:
    return small_network(tmp_path_factory.mktemp("reported"), num_tuning=3, num_queries=5, settings=BRIEF)


@pytest.fixture(scope="module")
def index_of(mlp: RetrainedMlp) -> Callable[..., Index]:
    return shared_indexes(mlp.file.parent)


@pytest.fixture(scope="module")
def margin(mlp: RetrainedMlp, index_of: Callable[..., Index]) -> Index:
    return index_of(mlp.file, mlp.file, Sketched("margin", False, DIM), Silent())


def test_the_lds_is_of_the_reported_queries_at_the_lambda_of_the_tuning_queries(
    mlp, margin, index_of, monkeypatch, tmp_path: Path
):
    baselines = MarginBaselines(mlp.frozen, margin, 1.0)
    halves = torch.rand(40, ROWS, generator=torch.Generator().manual_seed(0)) < 0.5

    def scores(regularisation: float) -> torch.Tensor:
        of_lambda = baselines.regularised(regularisation)
        return torch.stack([of_lambda.scores(query, ("trak",))["trak"] for query in range(8)])

    # Margins are entirely what TRAK at λ = 100 says for the queries reported, and nearly so for those to tune on.
    trained = halves.double() @ scores(100.0).T
    noise = torch.randn(40, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    trained[:, :3] += 0.5 * trained[:, :3].std(dim=0) * noise
    monkeypatch.setattr(lds, "RetrainedMlp", lambda *_, **__: mlp)
    monkeypatch.setattr(lds, "frozen_index", index_of)
    monkeypatch.setattr(lds, "train_halves", lambda *_: (halves, trained))
    monkeypatch.setattr(lds, "ekfac_is_available", lambda: True)
    monkeypatch.setattr(lds, "ekfac_scores", lambda *_: scores(100.0))  # stands in for what kronfluence computes
    settings = replace(lds.SMOKE, mlp=BRIEF, queries=5, tuning_queries=3, regularisations=(1e-6, 100.0), dim=DIM)
    report = lds.run(settings, None, tmp_path, Silent())
    rows = {row["method"]: row for row in report.rows}
    assert rows["trak"]["regularisation"] == 100.0
    assert rows["trak"]["lds"] == pytest.approx(1.0)
    assert rows["ekfac"]["lds"] == pytest.approx(1.0)
    found = lds.correlations(baselines, list(mlp.query_rows), ("trak",), halves, trained)
    assert sum(found["trak"]) / 5 < 0.999, "another λ must show"


def test_mislabelled_rows_are_trained_on_with_their_wrong_labels_and_are_the_truth(monkeypatch, tmp_path: Path):
    train, test = read_images("digits", None)
    few = train.take(torch.arange(100))
    settings = replace(mislabelled.SIZES["smoke"], mlp=BRIEF, dim=16, seeds=(0, 1), flipped=0.1)
    monkeypatch.setattr(mislabelled, "read_images", lambda *_, **__: (few, test))
    moved = {seed: mislabelled.flip(few.labels, 0.1, 10, seed) for seed in settings.seeds}

    def scored(index: Index, relative_noise: float, seed: int) -> dict[str, torch.Tensor]:
        return {"loss": moved[seed][1].double(), "random": -moved[seed][1].double()}

    monkeypatch.setattr(mislabelled, "self_scores", scored)
    monkeypatch.setattr(mislabelled, "METHODS", ("loss", "random"))
    report = mislabelled.run(settings, None, tmp_path, Silent())
    best, worst = report.rows
    assert (best["average_precision"], best["recall_at_number_flipped"]) == (1.0, 1.0)
    assert worst["recall_at_number_flipped"] == 0.0
    for seed, (labels, flipped) in moved.items():
        frozen = load_frozen(tmp_path / f"network-{seed}.safetensors")
        initial = linear_weights(initial_network(BRIEF.network, seed))
        weights = train_mlp(initial, few.inputs(flat=True), labels, BRIEF.training, seed=seed)
        assert torch.equal(frozen.metadata["flipped"].bool(), flipped)
        assert torch.equal(frozen.train.labels, labels)
        for found, expected in zip(frozen.weights.values(), weights, strict=True):
            torch.testing.assert_close(found, expected)


def test_a_coreset_is_selected_for_all_queries_and_balanced_has_as_many_of_every_class(mlp, margin):
    settings = replace(coreset.SMOKE, mlp=BRIEF, dim=DIM)
    selector = coreset.Selector(settings, mlp, margin, None)
    view, queries = margin.view("margin"), margin.queries
    assert queries is not None
    rows = view.sketches(torch.arange(ROWS), dtype=torch.float64)
    labels = mlp.frozen.queries.labels
    asked = torch.stack([queries.sketch(row, "margin", int(labels[row])) for row in mlp.query_rows]).double()
    for method in ("infogain", "infogain_approx"):
        expected = oracles.greedy_many(asked, rows, 0.1 * view.mean_squared_norm(), 8, rule=method)
        assert selector.select(method, 8, False, 0.1, tuning=False) == expected
        assert expected != oracles.greedy_many(asked[:1], rows, 0.1 * view.mean_squared_norm(), 8, rule=method)
    for method in INFORMATION:
        plain = selector.select(method, 20, False, 0.1, tuning=False)
        balanced = selector.select(method, 20, True, 0.1, tuning=False)
        assert torch.bincount(mlp.frozen.train.labels[balanced], minlength=10).tolist() == [2] * 10
        assert torch.bincount(mlp.frozen.train.labels[plain], minlength=10).tolist() != [2] * 10


def test_a_coresets_accuracy_is_of_its_seeds_own_initialisation(mlp):
    settings = replace(coreset.SMOKE, mlp=BRIEF, steps=10)
    _, test = read_images("digits", None)
    rows = list(range(40))

    def expected(initialisation: int, order: int) -> float:
        initial = linear_weights(initial_network(BRIEF.network, initialisation))
        how = BRIEF.training  # 10 steps of 20 rows are 5 epochs of 40 rows
        weights = train_mlp(initial, mlp.inputs[:40], mlp.frozen.train.labels[:40], replace(how, epochs=5), seed=order)
        right = mlp_logits(weights, test.inputs(flat=True)).argmax(dim=1) == test.labels
        return float(right.float().mean())

    assert coreset.accuracy(settings, mlp, rows, test, 0) == expected(0, 0)
    assert coreset.accuracy(settings, mlp, rows, test, 1) == expected(1, 1)
    assert expected(1, 1) != expected(0, 1)


def test_the_coresets_table_has_the_mean_over_seeds_of_each_method_balance_and_size(mlp, tmp_path: Path):
    settings = replace(coreset.SMOKE, mlp=BRIEF, sizes=(10, 20), seeds=(0, 1), noises=(0.1, 1.0))
    noises = {"infogain": {10: 1.0, 20: 0.1}}
    journal, methods, expected = Journal(tmp_path / "work.jsonl", {}), ("infogain", "random"), {}
    for number, (method, balance, size) in enumerate(
        (method, balance, size) for method in methods for balance in ("plain", "balanced") for size in settings.sizes
    ):
        expected[method, balance, size] = 0.1 * number + 0.01
        for seed in settings.seeds:
            value = 0.1 * number + 0.02 * seed
            named = f"infogain@{noises['infogain'][size]:g}" if method == "infogain" else method
            journal.once(f"accuracy/{named}/{balance}/{size}/{seed}", lambda value=value: value)
    journal.once("rows/infogain@1/plain/20", lambda: list(range(20)))
    for method, noise, size, seed in product(INFORMATION, settings.noises, settings.sizes, settings.seeds):
        journal.once(f"tune/{method}@{noise:g}/{size}/{seed}", lambda: 0.5)
    _, test = read_images("digits", None)
    table = coreset.report(settings, methods, mlp, noises, test, journal).rows
    found = {(row["method"], row["classes"], row["size"]): row["accuracy"] for row in table}
    assert found == {key: pytest.approx(value) for key, value in expected.items()}


@pytest.mark.parametrize(("of_evidence", "agree"), [(0.01, False), (0.1, True), (1.0, True), (10.0, True)])
def test_evidence_is_below_its_best_and_agrees_with_removal_at_neighbours_of_the_grid(
    mlp, margin, monkeypatch, tmp_path: Path, of_evidence: float, agree: bool
):
    noises = (0.01, 0.1, 1.0, 10.0)
    tuning = TuningSettings(queries=3, noises=noises, methods=("infogain",))
    # By how much each query's margin falls: on average by 2 more at the noise that removal chooses than anywhere else.
    lost = {1.0: (1.0, 4.0, 7.0), **dict.fromkeys((0.01, 0.1, 10.0), (2.0, 1.0, 3.0))}
    before = mlp.query_margins(linear_weights(mlp.frozen.model()), [0, 1, 2]).tolist()

    def tuned(mlp: RetrainedMlp, attributor: Any, settings: TuningSettings, journal: Journal, _: Any) -> Any:
        for noise, drops in lost.items():
            for row, drop in enumerate(drops):
                journal.once(
                    f"tune/{row}/infogain/{noise:g}/{settings.num_removed}",
                    lambda row=row, drop=drop: before[row] - drop,
                )
        return {"infogain": 1.0}

    log_evidence = [-5.0 if noise == of_evidence else -9.0 for noise in noises]
    evidence = SimpleNamespace(log_evidence=log_evidence, relative_noise=of_evidence, at_edge=None)
    monkeypatch.setattr(noise_tuning, "RetrainedMlp", lambda *_, **__: mlp)
    monkeypatch.setattr(noise_tuning, "frozen_index", lambda *_: margin)  # nothing is asked of it
    monkeypatch.setattr(noise_tuning, "tune", tuned)
    monkeypatch.setattr(noise_tuning, "tune_noise", lambda *_, **__: evidence)
    settings = replace(noise_tuning.SIZES["smoke"], mlp=BRIEF, dim=DIM, tuning=tuning)
    report = noise_tuning.run(settings, None, tmp_path, Silent())
    below = [row["evidence_below_best_nats"] for row in report.rows]
    assert below == [0.0 if noise == of_evidence else -4.0 for noise in noises]
    assert report.facts["agree_within_a_grid_step"] == {"infogain": agree}
    assert report.facts["noise_by_evidence"] == of_evidence
    assert [row["infogain_margin_drop"] for row in report.rows] == pytest.approx([2.0, 2.0, 4.0, 2.0])
    # Of the three queries -1, 3 and 4, whose squared distances to 2 are 9, 1 and 4; the larger drop's own error is √3.
    mean, error = (0.0, 0.0) if of_evidence == 1.0 else (2.0, (14 / 2 / 3) ** 0.5)
    given_up = report.facts["drop_given_up_with_the_noise_of_evidence"]["infogain"]
    assert given_up == {"mean": pytest.approx(mean), "mean_standard_error": pytest.approx(error)}
