"""Any network of ``experiments.networks`` retrained without examples, where `retrained_mlp` has one kind written out.

Weights are a list of tensors in the order of the frozen network's, so that both are asked alike.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from experiments.frozen import Examples, Frozen
from experiments.mlp_training import margins
from experiments.networks import initial_network, is_flat
from experiments.retrained_mlp import MlpSettings, RetrainedMlp, check_halves, first_right
from indexer.progress import Progress
from indexer.training import train_classifier

_IMAGES_AT_ONCE = 500


@dataclass(frozen=True)
class NetworkSettings(MlpSettings):
    """What is trained, and on what.

    Attributes:
        description: The network (``networks.initial_network``); ``widths`` are not read.
        train_rows: Only the first training images of the classes; None for all.
        test_rows: The same of the test set.
    """

    description: str = "resnet9"
    train_rows: int | None = None
    test_rows: int | None = None

    @property
    def network(self) -> str:
        """The network's description."""
        return self.description

    def examples(self, data_dir: Path | None) -> tuple[Examples, Examples]:
        """Read the images, and keep the first of them."""
        train, test = super().examples(data_dir)
        return train.take(torch.arange(len(train))[: self.train_rows]), test.take(
            torch.arange(len(test))[: self.test_rows]
        )


class RetrainedNetwork(RetrainedMlp):
    """As its base; what is removed leaves its batch after augmentation, so that all others are seen as before."""

    settings: NetworkSettings

    @cached_property
    def inputs(self) -> Tensor:
        """Training inputs as the network reads them."""
        return self.frozen.train.inputs(is_flat(self.settings.network))

    def retrain(self, removed: list[int] | Tensor | None) -> list[Tensor]:
        """Train from the same initialisation, in the same order and augmentation, without some rows."""
        state = self._train(self.inputs, self.frozen.train.labels, removed).state_dict()
        return [state[name] for name in self.frozen.weights]

    def query_margins(self, weights: list[Tensor], rows: list[int]) -> Tensor:
        """Return the margin of some stored queries' true labels under weights."""
        queries = self.frozen.queries.take(torch.tensor(rows))
        return margins(self._logits(self._named(weights), queries), queries.labels)

    def misclassified(self, weights: list[Tensor], rows: list[int]) -> Tensor:
        """Say which stored queries the network gets wrong under weights."""
        queries = self.frozen.queries.take(torch.tensor(rows))
        return self._logits(self._named(weights), queries).argmax(dim=1) != queries.labels

    def _named(self, weights: list[Tensor]) -> dict[str, Tensor]:
        return dict(zip(self.frozen.weights, weights, strict=True))

    def _train(self, inputs: Tensor, labels: Tensor, removed: list[int] | Tensor | None) -> nn.Module:
        how = self.settings
        rows = None if removed is None else torch.as_tensor(removed, dtype=torch.int64)
        return train_classifier(
            initial_network(how.network, how.seed), inputs, labels, how.training, seed=how.seed, removed=rows
        )

    @torch.no_grad()
    def _logits(self, state: Mapping[str, Tensor], images: Examples) -> Tensor:
        model, flat = initial_network(self.settings.network, self.settings.seed), is_flat(self.settings.network)
        model.load_state_dict(dict(state))
        model.to(self.settings.training.device).eval()
        parts = [images.take(rows).inputs(flat) for rows in torch.arange(len(images)).split(_IMAGES_AT_ONCE)]
        return torch.cat([model(inputs.to(self.settings.training.device)).to("cpu") for inputs in parts])

    def _trained(self, data_dir: Path | None) -> Frozen:
        how = self.settings
        train, test = how.examples(data_dir)
        check_halves(len(test), self.num_tuning, self.num_queries)
        state = self._train(train.inputs(is_flat(how.network)), train.labels, None).state_dict()
        right = self._logits(state, test).argmax(dim=1) == test.labels
        queries = test.take(first_right(right, self.num_tuning, self.num_queries))
        return Frozen(how.network, state, train, queries, test_accuracy=float(right.float().mean()))


def retrained(
    settings: MlpSettings,
    data_dir: Path | None,
    file: Path,
    *,
    num_tuning: int,
    num_queries: int,
    progress: Progress | None = None,
) -> RetrainedMlp:
    """Return the network of these settings, trained if its file is not there."""
    kind = RetrainedNetwork if isinstance(settings, NetworkSettings) else RetrainedMlp
    return kind(settings, data_dir, file, num_tuning=num_tuning, num_queries=num_queries, progress=progress)
