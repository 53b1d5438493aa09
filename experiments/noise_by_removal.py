"""Tuning of the noise by retraining, as in the paper: which σ² selects the examples whose removal costs most margin?

For every noise of a grid, the examples selected for a tuning query are removed, the network is retrained, and the
query's margin is compared with what it was. `indexer tune` answers the same question by evidence, without retraining.
"""

from dataclasses import dataclass

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
        journal: Where finished trainings are kept, by ``tune/query/method/noise``.
        progress: Told how many trainings are done.
    """
    units = [
        (row, method, noise, f"tune/{row}/{method}/{noise:g}")
        for row in mlp.tuning_rows[: settings.queries]
        for noise in settings.noises
        for method in settings.methods
    ]
    for row, method, noise, key in units_of(progress, "tuning the noise", units, lambda unit: unit[-1] in journal):

        def margin(row: int = row, method: str = method, noise: float = noise) -> float:
            label = int(mlp.frozen.queries.labels[row])
            removed = select_rows(attributor, row, label, method, settings.num_removed, noise)
            return float(mlp.query_margins(mlp.retrain(removed), [row])[0])

        journal.once(key, margin)
    chosen = {
        method: min(settings.noises, key=lambda noise: mean_margin(settings, journal, method, noise))
        for method in settings.methods
    }
    return {**chosen, **({"infogain_approx": chosen["infogain"]} if "infogain" in chosen else {})}


def mean_margin(settings: TuningSettings, journal: Journal, method: str, noise: float) -> float:
    """Return the mean margin of the tuning queries after removal."""
    values = [float(journal[f"tune/{row}/{method}/{noise:g}"]) for row in range(settings.queries)]
    return sum(values) / len(values)
