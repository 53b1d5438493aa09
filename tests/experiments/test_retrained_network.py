"""Any network retrained without examples: what is left out is out, and nothing else changes."""

import pytest
import torch

from experiments.datasets import read_images
from experiments.mlp_training import linear_weights, train_mlp
from experiments.networks import initial_network
from experiments.retrained_network import NetworkSettings, RetrainedNetwork, retrained
from indexer.training import TrainingSettings, train_classifier

HOW = TrainingSettings(epochs=2, batch_size=32, peak_rate=0.05, weight_decay=1e-3)


def test_a_classifier_without_rows_is_trained_as_the_network_written_out():
    train, _ = read_images("digits", None)
    train = train.take(torch.arange(200))
    inputs, removed = train.inputs(flat=True), torch.arange(0, 200, 7)
    expected = train_mlp(
        linear_weights(initial_network("mlp 64 16 10", 0)), inputs, train.labels, HOW, seed=3, removed=removed
    )
    model = initial_network("mlp 64 16 10", 0)
    train_classifier(model, inputs, train.labels, HOW, seed=3, removed=removed)
    for weight, other in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(weight.detach(), other, rtol=1e-4, atol=1e-6)  # gradients in another order of sums


def test_removed_rows_have_no_say_and_leave_the_augmentation_of_others_as_it_was():
    images = torch.rand(60, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(60) % 10
    how = TrainingSettings(epochs=2, batch_size=16, peak_rate=0.05, augment="crop-flip")
    removed = torch.tensor([3, 40, 41])

    def weights(inputs: torch.Tensor, targets: torch.Tensor) -> list[torch.Tensor]:
        model = train_classifier(initial_network("cnn 1 4 10", 0), inputs, targets, how, seed=1, removed=removed)
        return [part.detach() for part in model.parameters()]

    other_images, other_labels = images.clone(), labels.clone()
    other_images[removed], other_labels[removed] = 5.0, 0
    for one, other in zip(weights(images, labels), weights(other_images, other_labels), strict=True):
        assert torch.equal(one, other)


@pytest.fixture
def network(tmp_path) -> RetrainedNetwork:
    """A convolutional network on three of the digits."""
    settings = NetworkSettings(
        "digits", 1.0, (), HOW, classes=(0, 1, 2), description="cnn 1 4 8 3", train_rows=200, test_rows=80
    )
    found = retrained(settings, None, tmp_path / "network.safetensors", num_tuning=2, num_queries=3)
    assert isinstance(found, RetrainedNetwork)
    return found


def test_retraining_without_nothing_gives_the_same_network_and_queries_that_it_gets_right(network):
    weights = network.retrain(None)
    for name, weight in zip(network.frozen.weights, weights, strict=True):
        assert torch.equal(weight, network.frozen.weights[name])
    rows = [*network.tuning_rows, *network.query_rows]
    assert not network.misclassified(weights, rows).any()


def test_retraining_without_a_class_loses_its_queries(network):
    label = int(network.frozen.queries.labels[0])
    removed = torch.nonzero(network.frozen.train.labels == label).squeeze(1).tolist()
    weights = network.retrain(removed)
    assert bool(network.misclassified(weights, [0])[0])
    before = network.query_margins(list(network.frozen.weights.values()), [0])
    assert float(network.query_margins(weights, [0])[0]) < float(before[0])
