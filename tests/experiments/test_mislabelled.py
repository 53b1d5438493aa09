"""Flipped labels: how many, never to the same class; the measures of a ranking against their definitions."""

from pathlib import Path

import pytest
import torch

from experiments.mislabelled import METHODS, average_precision, flip, recall_at_count, self_scores
from tests.index_factory import make_index


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


def test_scores_of_a_row_about_itself_are_the_dense_formulas(tmp_path: Path):
    index = make_index(tmp_path, view="margin", num_rows=60, dim=16)
    view = index.view("margin")
    rows, errors = view.sketches(torch.arange(60), dtype=torch.float64), index.column("one_minus_p").double()
    noise = 0.5 * view.mean_squared_norm()
    inverse = torch.linalg.inv(rows.T @ rows + noise * torch.eye(16, dtype=torch.float64))
    influence = (rows @ inverse * rows).sum(dim=1)
    expected = {
        "loss": errors,
        "graddot": errors * (rows * rows).sum(dim=1),
        "trak": errors * influence,
        "variance": noise * influence,
    }
    found = self_scores(index, 0.5, seed=3)
    assert set(found) == set(METHODS) == {*expected, "random"}
    for method, scores in expected.items():
        torch.testing.assert_close(found[method], scores, rtol=1e-9, atol=1e-12)
    assert torch.equal(found["random"], self_scores(index, 0.5, seed=3)["random"])
    assert not torch.equal(found["random"], self_scores(index, 0.5, seed=4)["random"])
