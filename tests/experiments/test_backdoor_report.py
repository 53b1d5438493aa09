"""The backdoor's table from a journal of several seeds: means of each seed's queries, and errors over the seeds."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from experiments.backdoor import SMOKE
from experiments.backdoor_report import chosen_noises, report
from experiments.journal import Journal

TUNING, REPORTED, NOISES = (0, 1), (5, 6, 7), (0.1, 10.0)
#: Recall of every query, seed by seed: the two seeds are far apart, and at the noise 0.1 the first alone is the better.
INFOGAIN = {
    (0, 0.1): {0: 0.9, 1: 0.7, 5: 0.0, 6: 0.0, 7: 0.0},
    (1, 0.1): {0: 0.0, 1: 0.0, 5: 0.0, 6: 0.0, 7: 0.0},
    (0, 10.0): {0: 0.6, 1: 0.4, 5: 1.0, 6: 0.5, 7: 0.9},
    (1, 10.0): {0: 0.8, 1: 0.4, 5: 0.2, 6: 0.1, 7: 0.6},
}
RANDOM = {(0, None): {5: 0.3, 6: 0.0, 7: 0.0}, (1, None): {5: 0.0, 6: 0.0, 7: 0.6}}


def journal_of(folder: Path, seeds: Sequence[int]) -> Journal:
    """Recall and reciprocal rank of every query; a rank is half of the recall, so that one shows beside the other."""
    journal = Journal(folder / "rankings.jsonl", {})
    for method, of_method in (("infogain", INFOGAIN), ("random", RANDOM)):
        for (seed, noise), recalls in of_method.items():
            for query, recall in recalls.items():
                key = f"{seed}/{query}/{method}" + ("" if noise is None else f"/{noise:g}")
                if seed in seeds:
                    journal.once(key, lambda recall=recall: [recall, recall / 2])
    return journal


def over_two_seeds(first: list[float], second: list[float]) -> tuple[float, float]:
    """Mean of the seeds' means and its standard error: of two values half their distance."""
    one, other = math.fsum(first) / len(first), math.fsum(second) / len(second)
    return (one + other) / 2, abs(one - other) / 2


def test_means_are_of_both_seeds_and_errors_over_them(tmp_path: Path):
    settings = replace(SMOKE, seeds=(0, 1), noises=NOISES)
    journal = journal_of(tmp_path, (0, 1))
    chosen = chosen_noises(settings, ["infogain"], TUNING, journal)
    assert chosen == {"infogain": 10.0}  # of the first seed alone it is 0.1
    found = report(settings, ["infogain", "random"], TUNING, REPORTED, chosen, {0: 0.9, 1: 0.8}, journal)
    expected = {
        "infogain": over_two_seeds([1.0, 0.5, 0.9], [0.2, 0.1, 0.6]),
        "random": over_two_seeds([0.3, 0.0, 0.0], [0.0, 0.0, 0.6]),
    }
    for row in found.rows:
        mean, error = expected[row["method"]]
        assert (row["recall"], row["recall_standard_error"]) == (pytest.approx(mean), pytest.approx(error))
        assert (row["mrr"], row["mrr_standard_error"]) == (pytest.approx(mean / 2), pytest.approx(error / 2))
    over_noise = {row["relative_noise"]: row for row in found.facts["tuning_queries_over_noise"]}
    for noise, of_seeds in {0.1: ([0.9, 0.7], [0.0, 0.0]), 10.0: ([0.6, 0.4], [0.8, 0.4])}.items():
        mean, error = over_two_seeds(*of_seeds)
        row = over_noise[noise]
        assert (row["recall"], row["recall_standard_error"]) == (pytest.approx(mean), pytest.approx(error))
    assert (found.facts["seeds"], found.facts["errors_over"]) == (2, "2 seeds")
    assert found.facts["by_seed"]["infogain"] == [
        {"seed": 0, "recall": pytest.approx(0.8), "mrr": pytest.approx(0.4)},
        {"seed": 1, "recall": pytest.approx(0.3), "mrr": pytest.approx(0.15)},
    ]


def test_errors_of_a_single_seed_are_over_its_queries(tmp_path: Path):
    settings = replace(SMOKE, seeds=(1,), noises=NOISES)
    journal = journal_of(tmp_path, (1,))
    found = report(settings, ["infogain"], TUNING, REPORTED, {"infogain": 10.0}, {1: 0.8}, journal)
    (row,) = found.rows
    # 0.2, 0.1 and 0.6: squares of their distances to 0.3 are 0.01, 0.04 and 0.09.
    assert (row["recall"], row["recall_standard_error"]) == (
        pytest.approx(0.3),
        pytest.approx(math.sqrt(0.14 / 2 / 3)),
    )
    assert (found.facts["seeds"], found.facts["errors_over"]) == (1, "3 queries")
