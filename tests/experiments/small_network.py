"""A network on 200 digits that takes a moment to train; its queries are training images, so the truth is known."""

from pathlib import Path

import torch

from experiments.datasets import read_images
from experiments.frozen import Frozen, save_frozen
from experiments.mlp_training import train_mlp
from experiments.networks import initial_network
from experiments.retrained_mlp import MlpSettings, RetrainedMlp
from indexer.training import TrainingSettings

SETTINGS = MlpSettings("digits", 1.0, (64, 16, 10), TrainingSettings(epochs=20, batch_size=20, peak_rate=0.05))
ROWS = 200


def duplicated_rows(count: int) -> list[int]:
    """The training rows that the first so many queries are."""
    return [(7 * number) % ROWS for number in range(count)]


def small_network(folder: Path, *, num_tuning: int, num_queries: int, settings: MlpSettings = SETTINGS) -> RetrainedMlp:
    """Train, and store copies of training images as queries: first those to tune on."""
    train, _ = read_images("digits", None)
    train = train.take(torch.arange(ROWS))
    model = initial_network(settings.network, settings.seed)
    weights = train_mlp(
        list(model.parameters()), train.inputs(flat=True), train.labels, settings.training, seed=settings.seed
    )
    queries = train.take(torch.tensor(duplicated_rows(num_tuning + num_queries)))
    state = dict(zip(model.state_dict(), weights, strict=True))
    save_frozen(Frozen(settings.network, state, train, queries), folder / "network.safetensors")
    return RetrainedMlp(settings, None, folder / "network.safetensors", num_tuning=num_tuning, num_queries=num_queries)
