"""Mislabelled training examples (not in the paper): which score of a row about itself finds flipped labels?

A tenth of the training labels is replaced by another class, drawn at random; the network is trained on them, and all
training rows are ranked. ``graddot`` and ``trak`` are the scores of a row about itself, ``loss`` is 1 − p alone, and
``variance`` is v(i | D), what all rows leave open about it: nats do not see labels, so it finds a flipped label only by
what training on it did to the gradient. Average precision over seeds; a random order has the share flipped.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attribution import weight_space
from experiments.datasets import read_images
from experiments.frozen import Frozen, Images, load_frozen, save_frozen
from experiments.indexing import Sketched, frozen_index
from experiments.mlp_training import linear_weights, train_mlp
from experiments.networks import initial_network
from experiments.plots import figure, style_of
from experiments.report import Report
from experiments.retrained_mlp import PAPER_MLP, MlpSettings
from experiments.statistics import with_error
from experiments.units import units_of
from indexer.progress import Progress
from indexer.terminal import counted
from indexer.training import TrainingSettings
from sketchstore.reader import Index

TITLE = "mislabelled examples found by scores of a row about itself (not in the paper)"
METHODS = ("loss", "graddot", "trak", "variance", "random")


@dataclass(frozen=True)
class Settings:
    """How much of the experiment is done.

    Attributes:
        mlp: The network.
        flipped: Share of labels that are replaced.
        dim: Sketch dimension.
        relative_noise: λ of TRAK and σ² of the variance, in units of the mean squared norm.
        seeds: Seeds of the flips, the initialisation and the row order.
    """

    mlp: MlpSettings
    flipped: float
    dim: int
    relative_noise: float
    seeds: tuple[int, ...]


PAPER = Settings(PAPER_MLP, flipped=0.1, dim=2048, relative_noise=1.0, seeds=(0, 1, 2, 3, 4))
SIZES = {
    "smoke": Settings(
        MlpSettings(
            "digits", 1.0, (64, 32, 10), TrainingSettings(epochs=10, batch_size=32, peak_rate=0.03, weight_decay=1e-3)
        ),
        flipped=0.1,
        dim=64,
        relative_noise=1.0,
        seeds=(0, 1),
    ),
    "small": replace(PAPER, mlp=replace(PAPER_MLP, train_fraction=0.1), dim=512, seeds=(0, 1, 2)),
    "paper": PAPER,
}


def run(settings: Settings, data_dir: Path | None, out: Path, progress: Progress) -> Report:
    """Flip, train, index and rank, once a seed."""
    found: dict[str, list[tuple[float, float]]] = {method: [] for method in METHODS}
    for seed in units_of(
        progress, "training on flipped labels", settings.seeds, lambda seed: network_file(out, seed).exists()
    ):
        network(settings, data_dir, out, seed)
    for seed in settings.seeds:
        file = network_file(out, seed)
        index = frozen_index(
            file, out / f"margin-{seed}", Sketched("margin", False, settings.dim, spectra=False), progress
        )
        truth = load_frozen(file).metadata["flipped"].bool()
        for method, scores in self_scores(index, settings.relative_noise, seed).items():
            found[method].append((average_precision(scores, truth), recall_at_count(scores, truth)))
    table: list[dict[str, Any]] = [
        {
            "method": method,
            **with_error("average_precision", [precision for precision, _ in values]),
            **with_error("recall_at_number_flipped", [recall for _, recall in values]),
        }
        for method, values in found.items()
    ]
    facts = {
        "seeds": len(settings.seeds),
        "errors_over": counted(len(settings.seeds), "seed"),
        "flipped": settings.flipped,
        "relative_noise": settings.relative_noise,
        "train_rows": index.num_rows,
        "sketch_dim": settings.dim,
    }
    return Report(
        f"Mislabelled: {settings.flipped:.0%} of {index.num_rows} labels flipped",
        table,
        facts,
        lambda path: _draw(path, table, settings.flipped),
    )


def network(settings: Settings, data_dir: Path | None, out: Path, seed: int) -> Path:
    """Return the file of a seed's network, trained if it is not there."""
    file = network_file(out, seed)
    if not file.exists():
        save_frozen(_trained(settings, data_dir, seed), file)
    return file


def network_file(out: Path, seed: int) -> Path:
    """Return where a seed's network is kept."""
    return out / f"network-{seed}.safetensors"


def flip(labels: Tensor, share: float, num_classes: int, seed: int) -> tuple[Tensor, Tensor]:
    """Replace a share of labels by another class each.

    Args:
        labels: int64 ``[n]``.
        share: Which share.
        num_classes: Classes to draw from.
        seed: Seed of the rows and classes.

    Returns:
        The labels, and which were replaced, bool ``[n]``.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randperm(len(labels), generator=generator)[: round(share * len(labels))]
    flipped = torch.zeros(len(labels), dtype=torch.bool)
    flipped[rows] = True
    moved = labels.clone()
    moved[rows] = (labels[rows] + torch.randint(1, num_classes, (len(rows),), generator=generator)) % num_classes
    return moved, flipped


def self_scores(index: Index, relative_noise: float, seed: int) -> dict[str, Tensor]:
    """Score every row about itself, a large score meaning suspicious.

    Args:
        index: An index of margins with at least as many rows as dimensions.
        relative_noise: λ and σ², in units of the mean squared norm.
        seed: Seed of the random scores.

    Returns:
        float64 ``[n]`` of each method.
    """
    view = index.view("margin")
    rows = view.sketches(torch.arange(index.num_rows), dtype=torch.float64)
    one_minus_p = index.column("one_minus_p").double()
    noise = relative_noise * view.mean_squared_norm()
    variances = weight_space.variance(rows, rows, noise)
    return {
        "loss": one_minus_p,
        "graddot": one_minus_p * rows.square().sum(dim=1),
        "trak": one_minus_p * variances / noise,
        "variance": variances,
        "random": torch.rand(len(rows), generator=torch.Generator().manual_seed(seed), dtype=torch.float64),
    }


def average_precision(scores: Tensor, truth: Tensor) -> float:
    """Return the mean, over the true rows, of the share of true rows among those ranked no lower."""
    ranked = truth[torch.argsort(-scores, stable=True)].double()
    precision = ranked.cumsum(0) / torch.arange(1, len(ranked) + 1)
    return float((precision * ranked).sum() / ranked.sum())


def recall_at_count(scores: Tensor, truth: Tensor) -> float:
    """Return the share of true rows among as many of the first as there are true ones."""
    count = int(truth.sum())
    return float(truth[torch.argsort(-scores, stable=True)[:count]].double().mean())


def _trained(settings: Settings, data_dir: Path | None, seed: int) -> Frozen:
    how = settings.mlp
    train, test = read_images(how.data, data_dir, train_fraction=how.train_fraction)
    labels, flipped = flip(train.labels, settings.flipped, how.widths[-1], seed)
    moved: Images = replace(train, labels=labels)
    model = initial_network(how.network, seed)
    weights = train_mlp(linear_weights(model), moved.inputs(flat=True), labels, how.training, seed=seed)
    state = dict(zip(model.state_dict(), weights, strict=True))
    return Frozen(how.network, state, moved, test.take(torch.arange(200)), {"flipped": flipped.long()})


def _draw(path: Path, table: list[dict[str, Any]], share: float) -> None:
    with figure(path, 1) as (axis,):
        styles = [style_of(row["method"]) for row in table]
        values = [row["average_precision"] for row in table]
        errors = [row["average_precision_standard_error"] or 0.0 for row in table]
        colours = [style.colour for style in styles]
        axis.bar([style.title for style in styles], values, yerr=errors, color=colours, capsize=3)
        axis.tick_params(axis="x", labelsize=8)
        axis.axhline(share, color="black", linestyle="--", label="random order")
        axis.set_ylabel("average precision")
        axis.set_ylim(0, 1)
        axis.legend(fontsize=8)
