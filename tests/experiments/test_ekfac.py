"""EK-FAC: labels of the Fisher matrix; through kronfluence shape, sign and that it is computed once."""

import pytest
import torch

from experiments.datasets import read_images
from experiments.ekfac import ekfac_scores, is_available, training_loss
from experiments.frozen import Frozen
from experiments.mlp_training import linear_weights, train_mlp
from experiments.networks import initial_network
from indexer.training import TrainingSettings


def test_labels_of_the_fisher_matrix_are_drawn_from_the_network_and_not_the_true_ones():
    sure = torch.full((50, 10), -40.0)
    sure[:, 3] = 40.0
    wrong = torch.full((50,), 7)
    assert float(training_loss(sure, wrong, sample=True)) == pytest.approx(0.0, abs=1e-6)
    assert float(training_loss(sure, wrong, sample=False)) == pytest.approx(50 * 80.0)


def test_labels_are_drawn_in_proportion_to_the_probabilities():
    probabilities = torch.tensor([0.7, 0.2, 0.1])
    logits = probabilities.log().repeat(4000, 1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        drawn = float(training_loss(logits, torch.zeros(4000, dtype=torch.int64), sample=True)) / 4000
    # The mean of −log p under p is the entropy; its standard error here is 0.010.
    assert drawn == pytest.approx(float(-(probabilities * probabilities.log()).sum()), abs=0.04)


@pytest.mark.skipif(not is_available(), reason="EK-FAC's scores need kronfluence")
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
def test_a_training_duplicate_of_the_query_scores_positive_and_scores_are_kept(tmp_path):
    train, _ = read_images("digits", None)
    train = train.take(torch.arange(200))
    model = initial_network("mlp 64 16 10", seed=0)
    settings = TrainingSettings(epochs=20, batch_size=20, peak_rate=0.05)
    weights = train_mlp(linear_weights(model), train.inputs(flat=True), train.labels, settings, seed=0)
    duplicated = torch.arange(0, 200, 10)
    state = dict(zip(model.state_dict(), weights, strict=True))
    frozen = Frozen("mlp 64 16 10", state, train, train.take(duplicated))
    scores = ekfac_scores(frozen, tmp_path, rows_a_batch=64)
    assert scores.shape == (20, 200)
    assert bool((scores[torch.arange(20), duplicated] > 0).all())
    written = (tmp_path / "ekfac.safetensors").stat().st_mtime_ns
    assert torch.equal(ekfac_scores(frozen, tmp_path), scores)
    assert (tmp_path / "ekfac.safetensors").stat().st_mtime_ns == written
