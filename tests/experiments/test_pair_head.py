"""The choice of the head: folds that share no premise, and a head that can learn before one that cannot."""

from dataclasses import replace

import pytest
import torch

from experiments.pair_head import FOLDS, accuracies, candidates, folds_of, ordered
from experiments.units import StoppedError
from indexer.progress import Silent
from tests.experiments.stopping import Stopping


def test_pairs_of_a_premise_are_in_one_fold():
    folds = folds_of(["a", "b", "a", "c", "d", "e", "f", "b"])
    assert folds.tolist() == [0, 1, 0, 2, 3, 4, 0, 1]


def test_a_head_that_learns_comes_before_one_that_does_not():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(200, 8, generator=generator)
    labels = (features[:, 0] > 0).long()
    folds = torch.arange(200) % FOLDS
    base = replace(candidates()[0], widths=(8, 16, 2))
    learns = replace(base, training=replace(base.training, peak_rate=0.05, epochs=20))
    barely = replace(base, training=replace(base.training, peak_rate=1e-6, epochs=1))
    found = ordered([barely, learns], features, labels, folds, Silent())
    assert [how for how, _ in found] == [learns, barely]
    assert len(found[0][1]) == FOLDS
    assert sum(found[0][1]) / FOLDS > 0.9  # one feature decides; 200 rows
    # Labels that no feature tells are guessed: standard error of 200 fair coins 0.035.
    guessed = accuracies(learns, features, torch.randint(2, (200,), generator=generator), folds)
    assert abs(sum(guessed) / FOLDS - 0.5) < 0.15


def test_it_stops_between_two_heads():
    tried, features = [replace(candidates()[0], widths=(8, 4, 2))] * 3, torch.randn(20, 8)
    with pytest.raises(StoppedError):
        ordered(tried, features, torch.arange(20) % 2, torch.arange(20) % FOLDS, Stopping("cross-validation", 1))
