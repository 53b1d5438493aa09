"""Stability: picks shared by two seeds, not by a seed and itself."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from experiments.journal import Journal
from experiments.stability import METHODS, SMOKE, run, summarise
from indexer.progress import Silent
from sketchstore.reader import open_index

PICKS = {0: [1, 2, 3, 4, 5], 1: [5, 4, 10, 11, 12], 2: [1, 20, 21, 22, 23]}


@pytest.mark.parametrize(
    ("seeds", "shared"),
    # Two of five; one of five; over three seeds the mean of 2, 1 and 0.
    [((0, 1), 2 / 5), ((0, 2), 1 / 5), ((0, 1, 2), 1 / 5)],
)
def test_shared_is_over_pairs_of_different_seeds(tmp_path: Path, seeds, shared):
    settings = replace(SMOKE, picks=5, noises=(1.0,), dims=(128,), sketch_seeds=seeds)
    journal = Journal(tmp_path / "picks.jsonl", {})
    for seed in seeds:
        found = {"picks": PICKS[seed], "mean_cosine": 0.5 * seed}
        journal.once(f"128/{seed}/7/1", lambda found=found: dict.fromkeys(METHODS, found))
    table = summarise(settings, [7], journal)
    assert [row["method"] for row in table] == list(METHODS)
    for row in table:
        assert row["shared"] == pytest.approx(shared)
        assert row["mean_cosine"] == pytest.approx(0.5 * sum(seeds) / len(seeds))


def test_every_seed_has_a_sketch_of_its_own(tmp_path: Path):
    settings = replace(SMOKE, queries=1, noises=(1.0,), dims=(64,), sketch_seeds=(3, 4))
    run(settings, None, tmp_path, Silent())
    sketches = [open_index(tmp_path / f"dim-64-seed-{seed}").view("own").sketches(torch.arange(20)) for seed in (3, 4)]
    assert not torch.allclose(*sketches)
