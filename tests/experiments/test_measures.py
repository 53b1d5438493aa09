"""Recall, reciprocal rank, rank correlation and standard errors by hand."""

import math

import pytest
import torch

from experiments.lds import spearman
from experiments.retrieval import recall_at, reciprocal_rank
from experiments.statistics import mean_and_error


def test_recall_counts_true_rows_above_the_cutoff():
    assert recall_at([5, 1, 7, 2], {1, 2, 9}, 3) == pytest.approx(1 / 3)
    assert recall_at([5, 1, 7, 2], {1, 2, 9}, 4) == pytest.approx(2 / 3)


def test_reciprocal_rank_is_of_the_first_true_row_and_zero_beyond_the_cutoff():
    assert reciprocal_rank([5, 1, 7, 2], {7, 2}, 4) == pytest.approx(1 / 3)
    assert reciprocal_rank([5, 1, 7, 2], {7, 2}, 2) == 0.0


def test_rank_correlation_sees_order_only():
    first = torch.tensor([0.1, 5.0, -3.0, 2.0])
    assert spearman(first, first.exp()) == pytest.approx(1.0)
    assert spearman(first, -first) == pytest.approx(-1.0)


def test_a_standard_error_needs_two_values():
    assert mean_and_error([2.0]) == (2.0, None)
    mean, error = mean_and_error([1.0, 3.0, 5.0])
    assert (mean, error) == (3.0, pytest.approx(2.0 / math.sqrt(3)))
