"""Brittleness: which rows each of its methods removes, at whose noise, and what the table says of the outcomes."""

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments import brittleness
from experiments.brittleness import (
    EXPLANATIONS,
    METHODS,
    OF_MARGIN,
    OWN_LABEL,
    PROPONENTS,
    SMOKE,
    UNDAMPED,
    WITH_NOISE,
    information_rankers,
    tuned_at_sizes,
    tuned_methods,
)
from experiments.brittleness_report import TunedAtSizes, report
from experiments.indexing import Sketched
from experiments.information import METHODS as INFORMATION
from experiments.information import select_rows
from experiments.journal import Journal
from experiments.margin_baselines import METHODS as BASELINES
from experiments.margin_baselines import MarginBaselines
from experiments.mlp_training import linear_weights
from experiments.noise_by_removal import TuningSettings
from experiments.retrained_mlp import RetrainedMlp
from indexer.attributor import Attributor
from indexer.progress import Silent
from sketchstore.reader import Index
from tests.experiments.expected_rows import largest, picks, shared_indexes
from tests.experiments.small_network import ROWS, SETTINGS, small_network

DIM, REGULARISATION, BUDGET = 32, 100.0, 6
BRIEF = replace(SETTINGS, training=replace(SETTINGS.training, epochs=4))
#: METHOD@NOISE, at none of the noises that are tuned.
AT_NOISE = {f"{rule}@5": rule for rule in WITH_NOISE}
#: One for each method, so that another's shows.
NOISES = {"infogain": 0.01, "infogain_approx": 1.0, "infoloss": 30.0}
#: Stands in for what kronfluence computes.
EKFAC = torch.randn(3, ROWS, generator=torch.Generator().manual_seed(4))


@pytest.fixture(scope="module")
def mlp(tmp_path_factory: pytest.TempPathFactory) -> RetrainedMlp:
    return small_network(tmp_path_factory.mktemp("brittleness"), num_tuning=1, num_queries=2, settings=BRIEF)


@pytest.fixture(scope="module")
def index_of(mlp: RetrainedMlp) -> Callable[..., Index]:
    return shared_indexes(mlp.file.parent)


@pytest.fixture(scope="module")
def scaled(mlp: RetrainedMlp, index_of: Callable[..., Index]) -> Index:
    """Every class's logit with NTK scales, as the experiment says it has them."""
    return index_of(mlp.file, mlp.file, Sketched("class_logit", True, DIM), Silent())


@pytest.fixture(scope="module")
def margin(mlp: RetrainedMlp, index_of: Callable[..., Index]) -> Index:
    return index_of(mlp.file, mlp.file, Sketched("margin", False, DIM), Silent())


@pytest.fixture(scope="module")
def rankers(mlp: RetrainedMlp, index_of, tmp_path_factory: pytest.TempPathFactory) -> dict[str, brittleness.Ranker]:
    """The rankings that a run removes rows by; nothing is tuned and nothing retrained."""
    caught: dict[str, brittleness.Ranker] = {}

    def catch(settings: Any, mlp: Any, rankers: dict[str, brittleness.Ranker], *_: Any) -> None:
        caught.update(rankers)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(brittleness, "retrained", lambda *_, **__: mlp)
        patch.setattr(brittleness, "frozen_index", index_of)
        patch.setattr(brittleness, "tune", lambda *_: NOISES)
        patch.setattr(brittleness, "ekfac_is_available", lambda: True)
        patch.setattr(brittleness, "ekfac_scores", lambda *_, damping, **__: EKFAC if damping is None else -EKFAC)
        patch.setattr(brittleness, "remove_and_retrain", catch)
        patch.setattr(brittleness, "report", lambda *_: None)
        settings = replace(SMOKE, dim=DIM, regularisation=REGULARISATION, methods=(*METHODS, *EXPLANATIONS, *AT_NOISE))
        brittleness.run(settings, None, tmp_path_factory.mktemp("run"), Silent())
    assert set(caught) == {*METHODS, *EXPLANATIONS, *AT_NOISE}
    return caught


def test_information_methods_remove_rows_of_the_class_by_their_own_noise(mlp, scaled, rankers):
    for query in mlp.query_rows:
        label = int(mlp.frozen.queries.labels[query])
        for method in INFORMATION:
            expected = picks(scaled, query, label, method, NOISES[method], BUDGET)
            assert rankers[method](query, label, BUDGET) == expected, method


def test_d_of_the_own_label_method_is_the_class(mlp, scaled, rankers):
    different = []
    for query in mlp.query_rows:
        label = int(mlp.frozen.queries.labels[query])
        expected = picks(scaled, query, label, "infoloss", NOISES["infoloss"], BUDGET, own_class=True)
        assert rankers[OWN_LABEL](query, label, BUDGET) == expected
        different.append(expected != picks(scaled, query, label, "infoloss", NOISES["infoloss"], BUDGET))
    assert any(different)


def test_baselines_remove_the_rows_of_the_class_with_the_largest_scores(mlp, margin, rankers):
    labels, query = mlp.frozen.train.labels, mlp.query_rows[0]
    label = int(mlp.frozen.queries.labels[query])
    scoring = MarginBaselines(mlp.frozen, margin, REGULARISATION)
    scores = scoring.scores(query)
    assert set(scores) == set(BASELINES)
    undamped = scoring.regularised(1e-9).scores(query, ("trak", "relatif"))
    scores |= {f"{method}_undamped": values for method, values in undamped.items()}
    scores |= {"ekfac": EKFAC[query], "ekfac_undamped": -EKFAC[query]}
    for method, values in scores.items():
        assert rankers[method](query, label, BUDGET) == largest(values, labels, label, BUDGET), method
    for name, method in UNDAMPED.items():
        assert rankers[method](query, label, BUDGET) != rankers[name](query, label, BUDGET), name


def test_random_rows_are_of_the_class(mlp, rankers):
    labels = mlp.frozen.train.labels
    for query in mlp.query_rows:
        label = int(mlp.frozen.queries.labels[query])
        rows = rankers["random"](query, label, BUDGET)
        assert len(set(rows)) == BUDGET
        assert set(labels[rows].tolist()) == {label}


def test_information_about_the_margin_is_by_the_methods_own_noise(mlp, margin, rankers):
    for query, (name, method) in product(mlp.query_rows, OF_MARGIN.items()):
        label = int(mlp.frozen.queries.labels[query])
        expected = picks(margin, query, label, method, NOISES[method], BUDGET)
        assert rankers[name](query, label, BUDGET) == expected, name


def test_proponents_are_the_rows_of_the_class_with_a_positive_covariance_given_d(mlp, scaled, rankers):
    of_logit, noise, different = Attributor(scaled, engine="brute_force"), 0.01, []
    for query in mlp.query_rows:
        label = int(mlp.frozen.queries.labels[query])
        expected = picks(scaled, query, label, "infoloss", NOISES["infoloss"], BUDGET, proponents=True)
        assert rankers[PROPONENTS](query, label, BUDGET) == expected
        # Opponents of this small network's classes are few, and come late: at little noise, 14 rows on.
        found = select_rows(of_logit, query, label, "infoloss", 16, noise, proponents=True)
        assert found == picks(scaled, query, label, "infoloss", noise, 16, proponents=True)
        different.append(found != select_rows(of_logit, query, label, "infoloss", 16, noise))
    assert any(different)


def test_fewer_proponents_than_asked_are_all_there_are(mlp, scaled):
    query = mlp.query_rows[0]
    label = int(mlp.frozen.queries.labels[query])
    of_logit = Attributor(scaled, engine="brute_force")
    found = select_rows(of_logit, query, label, "infoloss", ROWS, 0.01, proponents=True)
    assert 16 <= len(found) < int((mlp.frozen.train.labels == label).sum())


def test_a_method_that_names_its_noise_removes_rows_by_it(mlp, scaled, margin, rankers):
    for query in mlp.query_rows:
        label = int(mlp.frozen.queries.labels[query])
        for name, rule in AT_NOISE.items():
            index = margin if rule in OF_MARGIN else scaled
            method = {**OF_MARGIN, OWN_LABEL: "infoloss", PROPONENTS: "infoloss"}.get(rule, rule)
            only = {"own_class": rule == OWN_LABEL, "proponents": rule == PROPONENTS}
            expected = picks(index, query, label, method, 5.0, BUDGET, **only)
            assert rankers[name](query, label, BUDGET) == expected, name


def test_facts_have_every_querys_flips_paired_p_values_and_paired_margins(mlp, tmp_path: Path):
    journal = Journal(tmp_path / "work.jsonl", {})
    flips = {"infogain": (True, True), "trak": (False, True)}
    margins = {"infogain": (0.0, 0.0), "trak": (-2.0, -1.0)}
    # Of the first query's five rows four are shared, of the second's two; of twenty 16 and 5.
    removed = {
        "infogain": (list(range(20)), list(range(20))),
        "trak": ([0, 1, 2, 3, 50, *range(4, 16), 51, 52, 53], [8, 0, 9, 1, 60, 2, *range(70, 84)]),
    }
    for method, of_query in flips.items():
        for row, flipped, margin, rows in zip(mlp.query_rows, of_query, margins[method], removed[method], strict=True):
            journal.once(f"rows/{row}/{method}", lambda rows=rows: rows)
            for size in (5, 20):
                outcome = {"flipped": flipped or (method == "trak" and size == 20), "margin": margin}
                journal.once(f"removed/{row}/{method}/{size}", lambda outcome=outcome: outcome)
    tuning = TuningSettings(queries=1, noises=(1.0,), methods=())
    facts = report((5, 20), tuning, mlp, ["infogain", "trak"], {}, journal).facts
    assert facts["query_rows"] == list(mlp.query_rows)
    assert facts["flips"] == {"infogain": {"5": [1, 1], "20": [1, 1]}, "trak": {"5": [0, 1], "20": [1, 1]}}
    assert facts["infogain_against"] == {
        "infogain": {
            "trak": {
                # Of two queries one flips by InfoGain alone at 5: p = 1. All flip at 20.
                "mcnemar_p": {"5": 1.0, "20": 1.0},
                "margin_drop_difference": pytest.approx(-1.5),
                "margin_drop_difference_standard_error": pytest.approx(0.5),
            }
        }
    }
    shared = {"5": pytest.approx(0.6), "20": pytest.approx(21 / 40)}
    assert facts["shared_rows"] == {"infogain": {"trak": shared}, "trak": {"infogain": shared}}
    assert "tuning_at_each_size" not in facts
    facts = report((5, 20), tuning, mlp, ["trak"], {}, journal).facts
    assert [facts[f"{rule}_against"] for rule in INFORMATION] == [{}, {}, {}]


def test_the_table_is_of_the_queries_that_are_asked_and_not_of_all_that_are_done(mlp, tmp_path: Path):
    journal, tuning = Journal(tmp_path / "work.jsonl", {}), TuningSettings(queries=1, noises=(1.0,), methods=())
    for row in mlp.query_rows:
        journal.once(f"rows/{row}/trak", lambda: list(range(20)))
        journal.once(f"removed/{row}/trak/20", lambda: {"flipped": False, "margin": 0.0})
    for asked, done in ((1, 1), (None, 2), (2, 2)):
        facts = report((5, 20), tuning, mlp, ["trak"], {}, journal, None, asked).facts
        assert (facts["queries"], facts["queries_wanted"]) == (done, done)
        assert facts["query_rows"] == list(mlp.query_rows[:done])


def test_the_noise_of_each_size_is_of_the_tuning_queries_without_as_many_rows(mlp, scaled, tmp_path: Path):
    attributor, journal = Attributor(scaled, engine="brute_force"), Journal(tmp_path / "work.jsonl", {})
    tuning = TuningSettings(queries=1, noises=(0.01, 100.0))
    methods = ("trak", "infogain@each-size", "infogain_approx@each-size", f"{OWN_LABEL}@each-size")
    settings = replace(SMOKE, sizes=(2, 4), tuning=tuning, methods=methods)
    tuned = tuned_at_sizes(settings, mlp, attributor, {"infogain": 100.0}, journal, Silent())
    label = int(mlp.frozen.queries.labels[0])
    for method in ("infogain", "infoloss"):
        margins = {
            (noise, size): float(mlp.query_margins(mlp.retrain(picks(scaled, 0, label, method, noise, size)), [0])[0])
            for noise in tuning.noises
            for size in (2, 4)
        }
        for (noise, size), margin in margins.items():
            assert journal[f"tune/0/{method}/{noise:g}/{size}"] == pytest.approx(margin)
        best = {size: min(tuning.noises, key=lambda noise, size=size: margins[noise, size]) for size in (2, 4)}
        # Where InfoGain has been tuned to that noise already, its plain method is the same and is not run twice.
        named = {"infogain": ("infogain", "infogain_approx"), "infoloss": (OWN_LABEL,)}[method]
        for rule in named:
            assert tuned.methods[f"{rule}@each-size"] == {
                size: rule if method == "infogain" and noise == 100.0 else f"{rule}@{noise:g}"
                for size, noise in best.items()
            }
    assert set(tuned.methods) == set(methods) - {"trak"}
    assert tuned_at_sizes(replace(settings, methods=("trak",)), mlp, attributor, {}, journal, Silent()) is None


def test_a_method_tuned_at_each_size_has_the_outcomes_of_what_stands_for_it(mlp, tmp_path: Path):
    sizes, journal = (5, 20), Journal(tmp_path / "work.jsonl", {})
    before = mlp.query_margins(linear_weights(mlp.frozen.model()), list(mlp.query_rows)).tolist()
    for method, flipped, drop in (
        ("infogain@1", {5: True, 20: True}, 3.0),
        ("infogain@10", dict.fromkeys(sizes, False), 7.0),
    ):
        for row, start in zip(mlp.query_rows, before, strict=True):
            first = 0 if method == "infogain@1" else 10
            journal.once(f"rows/{row}/{method}", lambda first=first: list(range(first, first + 20)))
            for size in sizes:
                value = {"flipped": flipped[size], "margin": start - drop}
                journal.once(f"removed/{row}/{method}/{size}", lambda value=value: value)
    tuning = TuningSettings(queries=1, noises=(1.0, 10.0), methods=("infogain",))
    for noise, size in product(tuning.noises, sizes):
        journal.once(f"tune/0/infogain/{noise:g}/{size}", lambda noise=noise, size=size: noise + size)
    at_sizes = TunedAtSizes(tuning, {"infogain@each-size": {5: "infogain@1", 20: "infogain@10"}})
    methods = ["infogain@1", "infogain@10"]
    found = report(sizes, replace(tuning, methods=()), mlp, methods, {}, journal, at_sizes)
    each = [row for row in found.rows if row["method"] == "infogain@each-size"]
    assert [(row["removed"], row["flipped"]) for row in each] == [(5, 1.0), (20, 0.0)]
    assert each[1]["margin_drop"] == pytest.approx(7.0)
    against = found.facts["infogain_against"]["infogain@each-size"]["infogain@1"]
    assert against["mcnemar_p"] == {"5": 1.0, "20": 0.5}  # at 20 both queries flip by the other alone: 2 · 2⁻²
    assert against["margin_drop_difference"] == pytest.approx(4.0)
    assert found.facts["shared_rows"]["infogain@each-size"] == {
        "infogain@1": {"5": 1.0, "20": 0.5},
        "infogain@10": {"5": 0.0, "20": 1.0},
    }
    assert found.facts["tuning_at_each_size"] == {
        "stands_for": {"infogain@each-size": {"5": "infogain@1", "20": "infogain@10"}},
        "mean_margin": {"5": {"infogain": {"1": 6.0, "10": 15.0}}, "20": {"infogain": {"1": 21.0, "10": 30.0}}},
    }


def test_the_table_has_the_share_lost_and_each_querys_own_margin_drop(mlp, tmp_path: Path):
    sizes, journal = (5, 20), Journal(tmp_path / "work.jsonl", {})
    tuning = TuningSettings(queries=1, noises=(1.0,), methods=("infogain",))
    before = mlp.query_margins(linear_weights(mlp.frozen.model()), list(mlp.query_rows)).tolist()
    # Both queries survive 5 and one of them 20; the drops are 2 and 5.
    outcomes = {5: ((False, 0.5), (False, 0.5)), 20: ((True, 2.0), (False, 5.0))}
    for size, of_size in outcomes.items():
        for row, start, (flipped, drop) in zip(mlp.query_rows, before, of_size, strict=True):
            value = {"flipped": flipped, "margin": start - drop}
            journal.once(f"removed/{row}/trak/{size}", lambda value=value: value)
    journal.once(f"tune/0/infogain/1/{tuning.num_removed}", lambda: 1.0)
    found = report(sizes, tuning, mlp, ["trak"], {}, journal).rows
    assert [(row["removed"], row["flipped"]) for row in found] == [(5, 0.0), (20, 0.5)]
    assert found[0]["margin_drop"] is None
    assert found[1]["margin_drop"] == pytest.approx(3.5)


@pytest.mark.parametrize(
    ("methods", "tuned"),
    [
        (("random", "trak"), ()),
        (("infogain_approx", "trak"), ("infogain",)),
        (("infogain_margin",), ("infogain",)),
        (tuple(AT_NOISE), ()),
        (("infoloss", "infogain@100"), ("infoloss",)),
        (("infoloss_own_label",), ("infoloss",)),
        (("infoloss_proponents", "infoloss_margin"), ("infoloss",)),
        (("infoloss", "infogain"), ("infogain", "infoloss")),
    ],
)
def test_the_noise_is_tuned_of_what_is_asked(scaled, margin, methods: tuple[str, ...], tuned: tuple[str, ...]):
    assert tuned_methods(methods) == tuned
    noises = {method: NOISES[method] for method in NOISES if method.removesuffix("_approx") in tuned}
    of_logit, of_margin = (Attributor(index, engine="brute_force") for index in (scaled, margin))
    rankers = information_rankers(of_logit, of_margin, noises)
    assert {method for method in methods if method in WITH_NOISE} <= {*rankers}
    assert ("infoloss" in rankers) == ("infoloss" in tuned)
