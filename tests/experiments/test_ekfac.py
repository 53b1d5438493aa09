"""EK-FAC through kronfluence: shape, sign and that it is computed once."""

import pytest
import torch

from experiments.datasets import read_images
from experiments.ekfac import ekfac_scores
from experiments.frozen import Frozen
from experiments.mlp_training import linear_weights, train_mlp
from experiments.networks import initial_network
from indexer.training import TrainingSettings

pytest.importorskip("kronfluence", reason="EK-FAC needs kronfluence")


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
