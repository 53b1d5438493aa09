"""Flipped labels: how many, never to the same class; the measures of a ranking against their definitions."""

import pytest
import torch

from experiments.mislabelled import average_precision, flip, recall_at_count


def test_the_share_is_flipped_each_to_another_class():
    labels = torch.arange(200) % 7
    moved, flipped = flip(labels, 0.1, 7, seed=3)
    assert int(flipped.sum()) == 20
    assert bool((moved[flipped] != labels[flipped]).all())
    assert torch.equal(moved[~flipped], labels[~flipped])
    assert int(moved.max()) <= 6
    assert not torch.equal(flipped, flip(labels, 0.1, 7, seed=4)[1])


def test_average_precision_is_its_definition():
    truth = torch.tensor([True, False, True, False])
    assert average_precision(torch.tensor([4.0, 3.0, 2.0, 1.0]), truth) == pytest.approx((1 + 2 / 3) / 2)
    assert average_precision(truth.double(), truth) == 1.0
    assert average_precision(-truth.double(), truth) == pytest.approx((1 / 3 + 2 / 4) / 2)


def test_recall_at_the_number_of_true_rows():
    truth = torch.tensor([True, False, True, False])
    assert recall_at_count(torch.tensor([4.0, 3.0, 2.0, 1.0]), truth) == 0.5
    assert recall_at_count(truth.double(), truth) == 1.0
