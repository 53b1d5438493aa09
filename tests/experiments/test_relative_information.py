"""Relative information: a selection's share of what greedy InfoLoss takes, never the reciprocal."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from experiments.information_sweeps import RANKED, SMOKE, summarise
from experiments.journal import Journal
from experiments.relative_information import RULES, Measured, cells, measure_with_project, read_pool
from tests.indexer.attributor.asking import small_index


def test_the_sweeps_share_is_of_the_greedy_selection_of_the_same_size_and_noise(tmp_path: Path):
    settings = replace(SMOKE, noises=(1.0, 1000.0), noise=1.0, sizes=(3, 10), size=10)
    journal = Journal(tmp_path / "sweeps.jsonl", {})
    for row in (4, 7):
        for noise, least in ((1.0, 1.0), (1000.0, 4.0)):
            greedy = {"3": 2.0 * least, "10": 8.0 * least}
            others = {method: {"3": 0.5 * least, "10": (1.0 + (row == 7)) * least} for method in RANKED}
            journal.once(f"{row}/{noise:g}", lambda greedy=greedy, others=others: {"infoloss": greedy, **others})
    table = summarise(settings, [4, 7], journal)
    found = {(line["sweep"], line["relative_noise"], line["size"]): line["relative_information"] for line in table}
    assert found == {
        ("noise", 1.0, 10): pytest.approx(1.5 / 8),
        ("noise", 1000.0, 10): pytest.approx(1.5 / 8),
        ("size", 1.0, 3): pytest.approx(0.25),
        ("size", 1.0, 10): pytest.approx(1.5 / 8),
    }
    assert {line["method"] for line in table} == set(RANKED)


def test_the_recomputed_share_is_of_the_greedy_selection_and_of_the_whole_pool(tmp_path: Path):
    index = small_index(tmp_path, view="own", dtype="float32")
    pool = read_pool(index, 1)
    query = index.queries.sketch(1, "own", 1).double()
    measured = [measure_with_project(index, pool, query, pool.mean_squared_norm, 3)]
    row = cells(measured)
    for rule in RULES:
        assert row[f"relative_information_{rule}"] == pytest.approx(
            measured[0].loss_nats[rule] / measured[0].loss_nats["infoloss"]
        )
    # Three of 40 rows hold less than all of them, and greedy InfoLoss takes most, nearly.
    assert 0 < row["fraction_infogain"] < 1
    assert 0 < row["relative_information_cosine"] < 1.05


def test_cells_are_means_over_queries():
    picks = {rule: [0, 1] for rule in (*RULES, "infoloss")}

    def one(loss: float, gain: float) -> Measured:
        rules = (*RULES, "infoloss")
        losses = {rule: 4.0 if rule == "infoloss" else loss for rule in rules}
        return Measured(picks, losses, dict.fromkeys(rules, gain), 8.0)

    row = cells([one(1.0, 2.0), one(3.0, 6.0)])
    for name, value in row.items():
        expected = 1.0 if name == "picks_shared" else 0.5
        assert value == pytest.approx(expected), name
    assert all(re.match("relative_information_|fraction_|picks_shared", name) for name in row)
