"""The written-out training against torch's autograd and optimiser."""

import pytest
import torch
from torch import nn

from experiments.mlp_training import linear_weights, margins, mlp_logits, train_mlp
from experiments.networks import initial_network
from indexer.training import TrainingSettings

SETTINGS = TrainingSettings(epochs=3, batch_size=16, peak_rate=0.05, weight_decay=1e-2, peak_epoch=1.0)


def problem() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(100, 12, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 4, (100,), generator=generator)
    return initial_network("mlp 12 10 8 4", seed=3).double(), inputs, labels


def trained_by_torch(model, inputs, labels, kept, seed):
    optimiser = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9, weight_decay=SETTINGS.weight_decay)
    generator = torch.Generator().manual_seed(seed)
    for epoch in range(SETTINGS.epochs):
        order = torch.randperm(len(labels), generator=generator)
        batches = order.split(SETTINGS.batch_size)
        for number, batch in enumerate(batches):
            rows = batch[kept[batch]]
            if not len(rows):
                continue
            optimiser.param_groups[0]["lr"] = SETTINGS.rate(epoch + number / len(batches))
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(inputs[rows]), labels[rows]).backward()
            optimiser.step()
    return linear_weights(model)


@pytest.mark.parametrize("removed", [None, [], [0, 5, 99], list(range(90))], ids=["none", "empty", "three", "most"])
def test_training_equals_torchs_optimiser_on_the_rows_that_are_left(removed):
    model, inputs, labels = problem()
    initial = [weight.clone() for weight in linear_weights(model)]
    kept = torch.ones(100, dtype=torch.bool)
    kept[removed or []] = False
    rows = None if removed is None else torch.tensor(removed, dtype=torch.int64)
    ours = train_mlp(initial, inputs, labels, SETTINGS, seed=7, removed=rows)
    theirs = trained_by_torch(model, inputs, labels, kept, seed=7)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-12)  # float64; only the order of sums differs


def test_training_leaves_the_initial_weights_alone():
    model, inputs, labels = problem()
    initial = linear_weights(model)
    before = [weight.clone() for weight in initial]
    train_mlp(initial, inputs, labels, SETTINGS, seed=7)
    assert all(torch.equal(mine, other) for mine, other in zip(initial, before, strict=True))


def test_what_is_not_done_here_is_refused():
    model, inputs, labels = problem()
    plain = TrainingSettings(epochs=1, batch_size=16, peak_rate=0.1, momentum=0.0)
    with pytest.raises(ValueError, match="momentum"):
        train_mlp(linear_weights(model), inputs, labels, plain, seed=0)


def test_outputs_and_margins_are_the_networks():
    model, inputs, labels = problem()
    logits = mlp_logits(linear_weights(model), inputs)
    torch.testing.assert_close(logits, model(inputs).detach())
    p = torch.softmax(logits, dim=1).gather(1, labels.unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(margins(logits, labels), torch.log(p / (1 - p)))
