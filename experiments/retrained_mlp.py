"""A bias-free network, trained here, asked about correctly classified test examples, and retrained without examples.

Shared by brittleness and the tuning of its noise, which ask about different halves of the test set, and by the sweeps.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from experiments.datasets import of_classes, read_images, shuffled
from experiments.frozen import Examples, Frozen, load_frozen, save_frozen
from experiments.journal import OtherSettingsError
from experiments.mlp_training import linear_weights, margins, mlp_logits, train_mlp
from experiments.networks import initial_network
from indexer.progress import Progress, Silent
from indexer.training import TrainingSettings


@dataclass(frozen=True)
class MlpSettings:
    """What is trained, and on what.

    Attributes:
        data: Data set.
        train_fraction: Share of its training set.
        widths: Widths of the network's layers, inputs and classes included.
        training: How it is trained.
        seed: Seed of the initialisation and of the row order.
        classes: Only images of these classes, numbered anew from 0; None for all.
    """

    data: str
    train_fraction: float
    widths: tuple[int, ...]
    training: TrainingSettings
    seed: int = 0
    classes: tuple[int, ...] | None = None

    @property
    def network(self) -> str:
        """The network's description."""
        return " ".join(["mlp", *map(str, self.widths)])

    def examples(self, data_dir: Path | None) -> tuple[Examples, Examples]:
        """Read what is trained on and the test set that queries are taken from.

        Args:
            data_dir: The folder of data sets.

        Returns:
            Training and test examples.
        """
        read = read_images(self.data, data_dir, train_fraction=self.train_fraction)
        train, test = read if self.classes is None else (of_classes(images, self.classes) for images in read)
        return train, test


#: Fashion-MNIST as in method.md section 8.
PAPER_MLP = MlpSettings(
    data="fashion-mnist",
    train_fraction=0.25,
    widths=(784, 512, 256, 10),
    training=TrainingSettings(epochs=20, batch_size=64, peak_rate=0.03, weight_decay=1e-3),
)


class TooManyQueriesError(ValueError):
    """More queries are asked for than there are."""


class RetrainedMlp:
    """A trained network with stored queries, and what its margins become when examples are left out.

    The stored queries are the first ``num_tuning`` correctly classified images of the first half of the test set, and
    after them the first ``num_queries`` of the second half, both halves in a fixed random order: what is tuned on the
    former is reported on the latter.

    Args:
        settings: What is trained.
        data_dir: The folder of data sets.
        file: Where the trained network is kept.
        num_tuning: Queries to tune on.
        num_queries: Queries to report.
        progress: Told when the network is trained.
    """

    def __init__(
        self,
        settings: MlpSettings,
        data_dir: Path | None,
        file: Path,
        *,
        num_tuning: int,
        num_queries: int,
        progress: Progress | None = None,
    ) -> None:
        self.settings = settings
        self.file = file
        self.num_tuning, self.num_queries = num_tuning, num_queries
        if not file.exists():
            (progress or Silent()).phase(f"training the network ({settings.data})", 0)
            trained = self._trained(data_dir)
            file.parent.mkdir(parents=True, exist_ok=True)
            save_frozen(trained, file)
        self.frozen: Frozen = load_frozen(file)
        if len(self.frozen.queries) != num_tuning + num_queries:
            raise OtherSettingsError(
                f"{file} has {len(self.frozen.queries)} queries, {num_tuning + num_queries} are asked for; "
                "give another --out"
            )

    @cached_property
    def inputs(self) -> Tensor:
        """Training inputs, flat."""
        return self.frozen.train.inputs(flat=True)

    @cached_property
    def initial(self) -> list[Tensor]:
        """The weights before training."""
        return linear_weights(initial_network(self.settings.network, self.settings.seed))

    @property
    def tuning_rows(self) -> range:
        """Stored queries to tune on."""
        return range(self.num_tuning)

    @property
    def query_rows(self) -> range:
        """Stored queries to report."""
        return range(self.num_tuning, self.num_tuning + self.num_queries)

    def retrain(self, removed: list[int] | Tensor | None) -> list[Tensor]:
        """Train from the same initialisation in the same order without some rows."""
        rows = None if removed is None else torch.as_tensor(removed, dtype=torch.int64)
        train, how = self.frozen.train, self.settings
        return train_mlp(self.initial, self.inputs, train.labels, how.training, seed=how.seed, removed=rows)

    def query_margins(self, weights: list[Tensor], rows: list[int]) -> Tensor:
        """Return the margin of some stored queries' true labels under weights.

        A negative margin says p < ½, not that another class has more: for that, ask :meth:`misclassified`.
        """
        queries = self.frozen.queries.take(torch.tensor(rows))
        return margins(mlp_logits(weights, queries.inputs(flat=True)), queries.labels)

    def misclassified(self, weights: list[Tensor], rows: list[int]) -> Tensor:
        """Say which stored queries the network gets wrong under weights."""
        queries = self.frozen.queries.take(torch.tensor(rows))
        return mlp_logits(weights, queries.inputs(flat=True)).argmax(dim=1) != queries.labels

    def _trained(self, data_dir: Path | None) -> Frozen:
        how = self.settings
        train, test = how.examples(data_dir)
        check_halves(len(test), self.num_tuning, self.num_queries)
        weights = train_mlp(
            self.initial, train.inputs(flat=True), train.labels, how.training, seed=how.seed, removed=None
        )
        right = mlp_logits(weights, test.inputs(flat=True)).argmax(dim=1) == test.labels
        model = initial_network(how.network, how.seed)
        state = dict(zip(model.state_dict(), weights, strict=True))
        queries = test.take(first_right(right, self.num_tuning, self.num_queries))
        return Frozen(how.network, state, train, queries, test_accuracy=float(right.float().mean()))


def check_halves(num_test: int, num_tuning: int, num_queries: int) -> None:
    """Refuse more queries than the halves of a test set have images, before anything is trained.

    Args:
        num_test: Test images.
        num_tuning: Queries wanted of the first half.
        num_queries: Queries wanted of the second.

    Raises:
        TooManyQueriesError: It says how many there are.
    """
    half = num_test // 2
    for name, wanted, count in (("tuning ", num_tuning, half), ("", num_queries, num_test - half)):
        if wanted > count:
            raise TooManyQueriesError(
                f"{wanted} {name}queries: their half of the test set has {count} images; "
                f"allowed are 1 to {count}, of which the network must get as many right"
            )


def first_right(right: Tensor, num_tuning: int, num_queries: int) -> Tensor:
    """Return rows of correctly classified test images: some of the first half, then some of the second.

    Args:
        right: Whether each test image is classified correctly, bool ``[n]``.
        num_tuning: How many of the first half.
        num_queries: How many of the second.

    Returns:
        Rows, int64, in a fixed random order within each half.

    Raises:
        TooManyQueriesError: If fewer are classified correctly; it says how many.
    """
    half, chosen = len(right) // 2, []
    for first, count, wanted in ((0, half, num_tuning), (half, len(right) - half, num_queries)):
        rows = first + shuffled(count, seed=1)
        found = rows[right[rows]]
        if len(found) < wanted:
            raise TooManyQueriesError(
                f"{wanted} queries: the network gets {len(found)} of the {count} images of their half of the test set "
                f"right; allowed are 1 to {len(found)}"
            )
        chosen.append(found[:wanted])
    return torch.cat(chosen)
