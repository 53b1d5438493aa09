"""Tuning of the noise by retraining, as in the paper: which σ² selects the examples whose removal costs most margin?

For every noise of a grid, the examples selected for a tuning query are removed, the network is retrained, and the
query's margin is compared with what it was. `indexer tune` answers the same question by evidence, without retraining.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean

from experiments.information import select_rows
from experiments.journal import Journal
from experiments.retrained_mlp import RetrainedMlp
from experiments.units import units_of
from indexer.attributor import Attributor
from indexer.progress import Progress


@dataclass(frozen=True)
class TuningSettings:
    """What is tried.

    Attributes:
        queries: How many of the network's tuning queries.
        noises: Relative noises.
        methods: Methods that are tuned; approximate InfoGain takes InfoGain's noise.
        num_removed: Examples removed.
    """

    queries: int
    noises: tuple[float, ...]
    methods: tuple[str, ...] = ("infogain", "infoloss")
    num_removed: int = 150


def tune(
    mlp: RetrainedMlp,
    attributor: Attributor,
    settings: TuningSettings,
    journal: Journal,
    progress: Progress,
) -> dict[str, float]:
    """Return the noise of each method with the largest mean drop of the tuning queries' margins.

    Args:
        mlp: The network.
        attributor: Over its index.
        settings: What is tried.
        journal: Where finished trainings are kept, by ``removal_key``.
        progress: Told how many trainings are done.
    """
    found = tune_at_sizes(mlp, attributor, settings, (settings.num_removed,), journal, progress)
    chosen = {method: by_size[settings.num_removed] for method, by_size in found.items()}
    return {**chosen, **({"infogain_approx": chosen["infogain"]} if "infogain" in chosen else {})}


def tune_at_sizes(
    mlp: RetrainedMlp,
    attributor: Attributor,
    settings: TuningSettings,
    sizes: Sequence[int],
    journal: Journal,
    progress: Progress,
) -> dict[str, dict[int, float]]:
    """Return the noise of each method at each size, with the largest mean drop of the tuning queries' margins.

    Args:
        mlp: The network.
        attributor: Over its index.
        settings: What is tried; how many are removed stands in ``sizes`` instead.
        sizes: How many examples are removed.
        journal: Where finished trainings are kept, by ``removal_key``.
        progress: Told how many trainings are done.
    """
    units = [
        (row, method, noise, size, removal_key(row, method, noise, size))
        for row in mlp.tuning_rows[: settings.queries]
        for noise in settings.noises
        for method in settings.methods
        for size in sizes
    ]
    for row, method, noise, size, key in units_of(
        progress, "tuning the noise", units, lambda unit: unit[-1] in journal
    ):

        def margin(row: int = row, method: str = method, noise: float = noise, size: int = size) -> float:
            label = int(mlp.frozen.queries.labels[row])
            removed = select_rows(attributor, row, label, method, size, noise)
            return float(mlp.query_margins(mlp.retrain(removed), [row])[0])

        journal.once(key, margin)
    return {
        method: {
            size: min(settings.noises, key=partial(_mean_margin, settings, journal, method, size)) for size in sizes
        }
        for method in settings.methods
    }


def removal_key(row: int, method: str, noise: float, size: int) -> str:
    """Return the journal's key of a tuning query's margin after a removal."""
    return f"tune/{row}/{method}/{noise:g}/{size}"


def mean_margins(settings: TuningSettings, journal: Journal, size: int) -> dict[str, dict[str, float]]:
    """Return the mean margin of the tuning queries after a removal, by method and noise."""
    return {
        method: {f"{noise:g}": _mean_margin(settings, journal, method, size, noise) for noise in settings.noises}
        for method in settings.methods
    }


def _mean_margin(settings: TuningSettings, journal: Journal, method: str, size: int, noise: float) -> float:
    return fmean(float(journal[removal_key(row, method, noise, size)]) for row in range(settings.queries))
