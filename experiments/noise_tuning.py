"""Tuning the noise (appendix E): do retraining and evidence name the same σ²?

For every noise of a grid, the examples that a method selects for a query are removed, the network is retrained, and the
query's margin is compared with what it was: the noise with the largest mean drop is the paper's choice. `indexer tune`
maximises the evidence of the surrogate on the same grid, without retraining. Queries are of the validation half of the
test set. One training a point: the paper's three repeats are left out.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from experiments.indexing import Sketched, frozen_index
from experiments.journal import Journal
from experiments.mlp_training import linear_weights
from experiments.noise_by_removal import TuningSettings, removal_key, tune
from experiments.plots import figure, style_of
from experiments.report import Report
from experiments.retrained_mlp import PAPER_MLP, MlpSettings, RetrainedMlp
from experiments.statistics import with_error
from indexer.attributor import Attributor
from indexer.progress import Progress
from indexer.terminal import counted
from indexer.training import TrainingSettings
from indexer.tune import tune_noise

TITLE = "noise tuning by margin change after removal, beside the evidence (appendix E)"
#: Grid points on each side by which two choices may differ and still count as agreeing: neighbours on the grid.
_NEIGHBOURS = 1


@dataclass(frozen=True)
class Settings:
    """How much of the experiment is done.

    Attributes:
        mlp: The network.
        dim: Sketch dimension of the class-logit index.
        tuning: Noises, queries, methods, how many examples are removed.
    """

    mlp: MlpSettings
    dim: int
    tuning: TuningSettings


PAPER = Settings(
    mlp=PAPER_MLP,
    dim=4096,
    tuning=TuningSettings(queries=25, noises=(0.01, 0.1, 1.0, 10.0, 100.0, 1000.0), num_removed=150),
)
SIZES = {
    "smoke": Settings(
        MlpSettings(
            "digits", 1.0, (64, 32, 10), TrainingSettings(epochs=3, batch_size=32, peak_rate=0.03, weight_decay=1e-3)
        ),
        dim=128,
        tuning=TuningSettings(queries=2, noises=(1.0, 10.0), num_removed=20),
    ),
    "small": replace(
        PAPER,
        mlp=replace(PAPER_MLP, train_fraction=0.1, training=replace(PAPER_MLP.training, epochs=10)),
        dim=1024,
        tuning=replace(PAPER.tuning, queries=8, num_removed=60),
    ),
    "paper": PAPER,
}


def run(settings: Settings, data_dir: Path | None, out: Path, progress: Progress) -> Report:
    """Train, index, remove and retrain over the grid, compute the evidence on it, and compare."""
    tuning = settings.tuning
    mlp = RetrainedMlp(
        settings.mlp,
        data_dir,
        out / "network.safetensors",
        num_tuning=tuning.queries,
        num_queries=1,
        progress=progress,
    )
    index = frozen_index(mlp.file, out / "class-logit", Sketched("class_logit", True, settings.dim), progress)
    journal = Journal(out / "trainings.jsonl", {"settings": str(settings)})
    chosen = tune(mlp, Attributor(index, engine="brute_force"), tuning, journal, progress)
    evidence = tune_noise(index, grid=tuning.noises, progress=progress)
    drops = margin_drops(mlp, tuning, journal)
    table: list[dict[str, Any]] = []
    for noise, nats in zip(tuning.noises, evidence.log_evidence, strict=True):
        columns: dict[str, Any] = {"relative_noise": noise}
        for method in tuning.methods:
            columns |= with_error(f"{method}_margin_drop", drops[method, noise])
        columns["evidence_below_best_nats"] = float(nats - max(evidence.log_evidence))
        table.append(columns)
    by_removal = {method: chosen[method] for method in tuning.methods}
    facts = {
        "seeds": 1,
        "errors_over": counted(tuning.queries, "query", "queries"),
        "queries": tuning.queries,
        "removed": tuning.num_removed,
        "train_rows": len(mlp.frozen.train),
        "sketch_dim": index.sketch_dim,
        "noise_by_removal": by_removal,
        "noise_by_evidence": evidence.relative_noise,
        "evidence_at_edge": evidence.at_edge,
        "agree_within_a_grid_step": {
            method: _agree(tuning.noises, noise, evidence.relative_noise) for method, noise in by_removal.items()
        },
        # Of the same queries: the difference has a smaller error than either drop.
        "drop_given_up_with_the_noise_of_evidence": {
            method: with_error(
                "mean",
                [
                    best - there
                    for best, there in zip(drops[method, noise], drops[method, evidence.relative_noise], strict=True)
                ],
            )
            for method, noise in by_removal.items()
        },
    }
    title = f"Noise tuning: {tuning.num_removed} removed; evidence names {evidence.relative_noise:g}"
    return Report(title, table, facts, lambda path: _draw(path, table, tuning))


def margin_drops(mlp: RetrainedMlp, tuning: TuningSettings, journal: Journal) -> dict[tuple[str, float], list[float]]:
    """Return by how much each tuning query's margin fell, by method and noise; positive where removal cost margin."""
    before = mlp.query_margins(linear_weights(mlp.frozen.model()), list(mlp.tuning_rows)).tolist()
    return {
        (method, noise): [
            one - float(journal[removal_key(row, method, noise, tuning.num_removed)])
            for one, row in zip(before, mlp.tuning_rows, strict=True)
        ]
        for method in tuning.methods
        for noise in tuning.noises
    }


def _agree(noises: tuple[float, ...], one: float, other: float) -> bool:
    return abs(noises.index(one) - noises.index(other)) <= _NEIGHBOURS


def _draw(path: Path, table: list[dict[str, Any]], tuning: TuningSettings) -> None:
    with figure(path, 2) as (left, right):
        noises = [row["relative_noise"] for row in table]
        for method in tuning.methods:
            style = style_of(method)
            drops = [row[f"{method}_margin_drop"] for row in table]
            errors = [row[f"{method}_margin_drop_standard_error"] or 0.0 for row in table]
            left.errorbar(noises, drops, yerr=errors, label=style.title, color=style.colour, marker="o", capsize=2)
        left.set_ylabel(f"margin drop after removing {tuning.num_removed}")
        left.legend(fontsize=8)
        right.plot(noises, [row["evidence_below_best_nats"] for row in table], color="black", marker="o")
        right.set_ylabel("log evidence below its best, nats")
        for axis in (left, right):
            axis.set_xscale("log")
            axis.set_xlabel("relative noise")
