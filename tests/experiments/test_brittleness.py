"""What is retrained next, and what the retrained sizes say about the others."""

from dataclasses import replace

import pytest
import torch

from experiments.brittleness import EXPLANATIONS, SMOKE, remove_and_retrain, run
from experiments.brittleness_report import flipped_at, next_size
from experiments.chosen_methods import UnknownMethodError
from experiments.journal import Journal
from indexer.progress import Silent
from tests.experiments.small_network import small_network
from tests.experiments.stopping import Stopping

SIZES = (50, 100, 200, 400)


@pytest.mark.parametrize("first_flip", [50, 100, 200, 400, None])
def test_bisection_finds_the_first_size_that_flips_with_few_trainings(tmp_path, first_flip):
    journal = Journal(tmp_path / "work.jsonl", {})
    trained = []
    while (size := next_size(journal, 0, "infogain", SIZES)) is not None:
        trained.append(size)
        flipped = first_flip is not None and size >= first_flip
        journal.once(f"removed/0/infogain/{size}", lambda flipped=flipped: {"flipped": flipped, "margin": 0.0})
    assert trained[0] == 400
    assert len(trained) <= 3
    found = [flipped_at(journal, 0, "infogain", SIZES, size) for size in SIZES]
    assert found == [first_flip is not None and size >= first_flip for size in SIZES]


def test_nothing_is_known_before_anything_was_retrained(tmp_path):
    assert flipped_at(Journal(tmp_path / "work.jsonl", {}), 0, "infogain", SIZES, 50) is None


def test_a_flip_at_a_smaller_size_counts_even_if_a_larger_one_survived(tmp_path):
    journal = Journal(tmp_path / "work.jsonl", {})
    journal.once("removed/0/trak/50", lambda: {"flipped": True, "margin": -1.0})
    journal.once("removed/0/trak/400", lambda: {"flipped": False, "margin": 1.0})
    assert flipped_at(journal, 0, "trak", SIZES, 200) is True


def test_the_network_is_retrained_without_what_was_ranked_first(tmp_path):
    mlp = small_network(tmp_path, num_tuning=1, num_queries=1)
    (query,) = mlp.query_rows
    label = int(mlp.frozen.queries.labels[query])
    of_class = torch.nonzero(mlp.frozen.train.labels == label).squeeze(1).tolist()
    others = torch.nonzero(mlp.frozen.train.labels != label).squeeze(1).tolist()
    settings = replace(SMOKE, queries=1, sizes=(2, len(of_class)))
    journal = Journal(tmp_path / "work.jsonl", {})
    rankers = {
        "graddot": lambda query, label, budget: (of_class + others)[:budget],
        "random": lambda query, label, budget: (others + of_class)[:budget],
    }
    remove_and_retrain(settings, mlp, rankers, journal, Silent())
    # Without its class a query is lost, without as many others it is not; the rows are the first of the ranking.
    assert journal[f"removed/{query}/graddot/{len(of_class)}"]["flipped"] is True
    assert journal[f"removed/{query}/random/{len(of_class)}"]["flipped"] is False
    for method, size in (("graddot", len(of_class)), ("graddot", 2), ("random", len(of_class))):
        weights = mlp.retrain(journal[f"rows/{query}/{method}"][:size])
        expected = float(mlp.query_margins(weights, [query])[0])
        assert journal[f"removed/{query}/{method}/{size}"]["margin"] == pytest.approx(expected)


@pytest.mark.slow
def test_methods_that_name_their_noise_run_without_tuning(tmp_path):
    settings = replace(SMOKE, queries=1, sizes=(5, 20), methods=("infogain@1", "infogain@100"))
    progress = Stopping("never")
    found = run(settings, None, tmp_path, progress)
    assert [row["method"] for row in found.rows] == ["infogain@1"] * 2 + ["infogain@100"] * 2
    assert found.facts["relative_noise"] == {"infogain@1": 1.0, "infogain@100": 100.0}
    assert "tuning the noise" not in {name for name, *_ in progress.phases}
    found.draw(tmp_path / "plot.png")


@pytest.mark.slow
def test_a_noise_of_each_size_runs_what_stands_for_it(tmp_path):
    settings = replace(SMOKE, queries=1, sizes=(5, 20), methods=("random", "infogain@each-size"))
    found = run(settings, None, tmp_path, Silent())
    stands = found.facts["tuning_at_each_size"]["stands_for"]["infogain@each-size"]
    assert set(stands) == {"5", "20"}
    methods = ["random", *dict.fromkeys(stands.values()), "infogain@each-size"]
    assert [row["method"] for row in found.rows] == [method for method in methods for _ in settings.sizes]
    found.draw(tmp_path / "plot.png")


@pytest.mark.slow
def test_explanations_are_asked_by_name_and_continue_a_run(tmp_path):
    first = run(replace(SMOKE, methods=("random",)), None, tmp_path, Silent())
    assert {row["method"] for row in first.rows} == {"random"}
    asked = ("random", *(method for method in EXPLANATIONS if method != "ekfac_undamped"))  # kronfluence is optional
    both = run(replace(SMOKE, methods=asked), None, tmp_path, Silent())
    assert tuple(row["method"] for row in both.rows[:: len(SMOKE.sizes)]) == asked
    assert both.facts["trainings"] > first.facts["trainings"]
    with pytest.raises(UnknownMethodError, match=r"allowed are infogain, .*, ekfac_undamped"):
        run(replace(SMOKE, methods=("trac",)), None, tmp_path, Silent())
