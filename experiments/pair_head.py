"""Chooses the head of ``brittleness --config rte`` by cross-validation on the training pairs, so that dev stays unseen.

.. code-block:: console

    $ python -m experiments.pair_head --data-dir DIR

What it prints first is what ``brittleness.RTE_PAPER`` says.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from experiments.mlp_training import linear_weights, mlp_logits, train_mlp
from experiments.networks import initial_network
from experiments.statistics import with_error
from experiments.text_pairs import PairSettings, encoded_pairs, labels_of, pair_table, statistics_of
from experiments.units import StoppedError, units_of
from indexer.progress import Progress
from indexer.terminal import progress_on
from indexer.training import TrainingSettings

FOLDS = 5
#: Hidden units, peak rate, weight decay and epochs that are tried, each with each.
GRID = ((64, 256), (0.001, 0.003), (0.003, 0.03, 0.1), (3, 10))


def candidates() -> list[PairSettings]:
    """Return what is tried."""
    return [
        PairSettings(
            data="rte",
            train_fraction=1.0,
            widths=(1536, hidden, 2),
            training=TrainingSettings(epochs=epochs, batch_size=32, peak_rate=rate, weight_decay=decay),
        )
        for hidden, rate, decay, epochs in product(*GRID)
    ]


def folds_of(premises: Sequence[str]) -> Tensor:
    """Return the fold of each pair, int64 ``[n]``; those of one premise share it, so none gives another away."""
    numbers: dict[str, int] = {}
    return torch.tensor([numbers.setdefault(premise, len(numbers)) % FOLDS for premise in premises])


def accuracies(how: PairSettings, features: Tensor, labels: Tensor, folds: Tensor) -> list[float]:
    """Return the accuracy on each fold of a head trained, and standardised, on the others.

    Args:
        how: The head.
        features: float32 ``[n, k]`` (``text_pairs.encoded_pairs``).
        labels: int64 ``[n]``.
        folds: Fold of each pair.
    """
    found = []
    for fold in range(FOLDS):
        held_out = folds == fold
        mean, deviation = statistics_of(features[~held_out])
        standardised = (features - mean) / deviation
        initial = linear_weights(initial_network(how.network, how.seed))
        weights = train_mlp(
            initial, standardised[~held_out], labels[~held_out], how.training, seed=how.seed, removed=None
        )
        right = mlp_logits(weights, standardised[held_out]).argmax(dim=1) == labels[held_out]
        found.append(float(right.float().mean()))
    return found


def ordered(
    tried: Sequence[PairSettings], features: Tensor, labels: Tensor, folds: Tensor, progress: Progress
) -> list[tuple[PairSettings, list[float]]]:
    """Return the heads with their accuracies, the highest mean first, to three digits; ties go to the narrower."""
    found = [(how, accuracies(how, features, labels, folds)) for how in units_of(progress, "cross-validation", tried)]
    return sorted(found, key=lambda pair: -round(sum(pair[1]) / FOLDS, 3))


def main() -> None:
    """Print all heads, the best first."""
    parser = argparse.ArgumentParser(prog="python -m experiments.pair_head", description=__doc__)
    parser.add_argument("--data-dir", type=Path, default=os.environ.get("NATTRIBUTE_DATA"), help="folder with rte")
    data_dir = parser.parse_args().data_dir
    torch.set_num_threads(1)
    tried = candidates()
    # dev is encoded, not read further: brittleness then finds its features in the same file.
    train, dev = (pair_table(tried[0].data, data_dir, split) for split in ("train", "dev"))
    count = len(train.rows)
    features, _ = encoded_pairs([train, dev], [count, len(dev.rows)], tried[0].encoder)
    folds = folds_of([row["sentence1"] for row in train.rows])
    try:
        with progress_on(Console(stderr=True)) as progress:
            found = ordered(tried, features, labels_of(train, count), folds, progress)
    except StoppedError:
        sys.stderr.write("pair_head: stopped; it begins anew when it is started again, with the pairs encoded\n")
        sys.exit(130)
    shown = Table("widths", "peak rate", "weight decay", "epochs", "accuracy")
    for how, values in found:
        mean = with_error("accuracy", values)
        of = how.training
        shown.add_row(
            " ".join(map(str, how.widths)),
            f"{of.peak_rate:g}",
            f"{of.weight_decay:g}",
            str(of.epochs),
            f"{mean['accuracy']:.3f} ± {mean['accuracy_standard_error']:.3f}",
        )
    Console().print(shown, f"{FOLDS} folds of {count} training pairs, those of one premise in one fold; one seed")


if __name__ == "__main__":
    main()
