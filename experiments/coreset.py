"""Coresets (Figures 5 and 6): how good is a network trained on nothing but the rows selected for many queries at once?

Paper: InfoGain first at nearly every size, its approximation close, InfoLoss markedly weaker, every influence baseline
below Random; quotas per class help the baselines, never above the InfoGains.

Margins without NTK scaling, as in the paper. The information methods select jointly for all queries (sums over queries
weighted by 1/v, method.md section 5); a baseline averages its scores over the queries and takes the largest. Every
network starts anew and takes about the same number of steps whatever the size of its coreset. The noise of each
information method and size is the one whose coreset for the tuning queries, which are of the first half of the test
set, gives the best mean accuracy over the seeds on that half, without quotas; what is reported is of the second half.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from attribution.candidates import DenseCandidates
from attribution.many_loss import ManyPosterior
from attribution.many_queries import select_many, select_many_infoloss
from attribution.posterior import SetPosterior, Spectrum
from attribution.steps import ManyStep
from experiments.datasets import read_images
from experiments.ekfac import ekfac_scores
from experiments.ekfac import is_available as ekfac_is_available
from experiments.frozen import Images
from experiments.indexing import Sketched, frozen_index
from experiments.information import METHODS as INFORMATION
from experiments.information import random_rows
from experiments.journal import Journal
from experiments.margin_baselines import METHODS as BASELINES
from experiments.margin_baselines import MarginBaselines
from experiments.mlp_training import linear_weights, mlp_logits, train_mlp
from experiments.networks import initial_network
from experiments.plots import draw_lines, figure
from experiments.report import Report
from experiments.retrained_mlp import PAPER_MLP, MlpSettings, RetrainedMlp
from experiments.statistics import with_error
from experiments.units import units_of
from indexer.attributor.spectra import Spectra
from indexer.progress import Progress
from indexer.terminal import counted
from indexer.training import TrainingSettings
from sketchstore.reader import Index

Noises = Mapping[str, Mapping[int, float]]
"""The relative noise of each information method by the size of the coreset."""
#: Of the queries in the sums of the information methods: 1/v of what is unknown of each. Baselines weigh all alike.
WEIGHTING = "inverse_variance"
TITLE = "coresets: accuracy when trained on the selected rows only (Figures 5 and 6)"


@dataclass(frozen=True)
class Settings:
    """How much of the experiment is done.

    Attributes:
        mlp: The network.
        queries: Queries selected for, correctly classified test images of the second half.
        tuning_queries: The same of the first half.
        noises: Relative noises tried.
        sizes: Sizes of the coresets, ascending.
        steps: Steps of a training, at least; never fewer epochs than the network itself had.
        regularisation: λ of TRAK and RelatIF in units of the mean squared norm, from the experiment ``lds``.
        dim: d of the sketches.
        seeds: Initialisations and row orders of the trainings; of ``random``, also the drawn sets.
    """

    mlp: MlpSettings
    queries: int
    tuning_queries: int
    noises: tuple[float, ...]
    sizes: tuple[int, ...]
    steps: int
    regularisation: float
    dim: int
    seeds: tuple[int, ...]


PAPER = Settings(
    mlp=PAPER_MLP,
    queries=200,
    tuning_queries=100,
    noises=(0.01, 0.1, 1.0, 10.0),
    sizes=(150, 300, 600, 1200),
    steps=1000,
    regularisation=10.0,
    dim=2048,
    seeds=(0, 1, 2),
)
SMALL = replace(
    PAPER,
    mlp=replace(PAPER_MLP, train_fraction=0.1, training=replace(PAPER_MLP.training, epochs=10)),
    queries=200,
    tuning_queries=100,
    noises=(0.01, 0.1, 1.0),
    sizes=(60, 120, 300),
    steps=400,
    dim=1024,
)
SMOKE = replace(
    SMALL,
    mlp=MlpSettings(
        "digits", 1.0, (64, 32, 10), TrainingSettings(epochs=3, batch_size=32, peak_rate=0.03, weight_decay=1e-3)
    ),
    queries=20,
    tuning_queries=10,
    noises=(1.0, 10.0),
    sizes=(20, 40),
    steps=40,
    dim=256,
    seeds=(0,),
)
SIZES = {"smoke": SMOKE, "small": SMALL, "paper": PAPER}


def run(settings: Settings, data_dir: Path | None, out: Path, progress: Progress) -> Report:
    """Train the network, index its margins, select, and train on what was selected."""
    mlp = RetrainedMlp(
        settings.mlp,
        data_dir,
        out / "network.safetensors",
        num_tuning=settings.tuning_queries,
        num_queries=settings.queries,
        progress=progress,
    )
    index = frozen_index(mlp.file, out / "margin", Sketched("margin", False, settings.dim), progress)
    without = replace(settings, sizes=(), seeds=(), noises=())
    journal = Journal(out / "coresets.jsonl", {"settings": str(without)})
    _, test = read_images(settings.mlp.data, data_dir)
    halves = Halves.of(test)
    progress.phase("EK-FAC influence" if ekfac_is_available() else "reading sketches", 0)
    selector = Selector(settings, mlp, index, ekfac_scores(mlp.frozen, out / "ekfac") if ekfac_is_available() else None)
    noises = tuned(settings, selector, halves, journal, progress)
    progress.note(f"relative noise of each size by accuracy for the tuning queries: {noises}")
    methods = (*INFORMATION, *BASELINES, *(("ekfac",) if ekfac_is_available() else ()), "random")
    measure(settings, selector, methods, halves, noises, journal, progress)
    return report(settings, methods, mlp, noises, halves.reported, journal)


@dataclass(frozen=True)
class Halves:
    """The test set: what the noise is tuned on, and what is reported.

    Attributes:
        tuning: The first half, which the tuning queries are of.
        reported: The second, which the queries are of.
    """

    tuning: Images
    reported: Images

    @classmethod
    def of(cls, test: Images) -> "Halves":
        """Halve a test set as ``retrained_mlp.first_right`` does."""
        half = len(test) // 2
        return cls(test.take(torch.arange(half)), test.take(torch.arange(half, len(test))))


def measure(
    settings: Settings,
    selector: "Selector",
    methods: tuple[str, ...],
    halves: Halves,
    noises: Noises,
    journal: Journal,
    progress: Progress,
) -> None:
    """Fill the journal: ``rows/…`` selected for the queries, and their ``accuracy/…`` on the reported half."""
    units = [
        (method, balance, size, seed, _accuracy_key(method, noises, balance, size, seed))
        for balance in ("plain", "balanced")
        for size in settings.sizes
        for method in methods
        for seed in settings.seeds
    ]
    for method, balance, size, seed, key in units_of(
        progress, "selecting and training", units, lambda unit: unit[-1] in journal
    ):
        rows = _selected(settings, selector, journal, method, balance == "balanced", size, noises, seed)
        journal.once(key, partial(accuracy, settings, selector.mlp, rows, halves.reported, seed))


def _selected(
    settings: Settings,
    selector: "Selector",
    journal: Journal,
    method: str,
    balanced: bool,
    size: int,
    noises: Noises,
    seed: int,
) -> list[int]:
    if method == "random":
        return selector.at_random(size, balanced, seed)
    # A greedy selection without quotas of the largest size has those of all smaller ones in it.
    budget = size if balanced else settings.sizes[-1]
    noise = noises[method][size] if method in noises else None
    key = _rows_key(_at_noise(method, noises, size), balanced, budget)
    rows: list[int] = journal.once(key, partial(selector.select, method, budget, balanced, noise, False))
    return rows[:size]


def _at_noise(method: str, noises: Noises, size: int) -> str:
    return f"{method}@{noises[method][size]:g}" if method in noises else method


def _rows_key(named: str, balanced: bool, budget: int) -> str:
    return f"rows/{named}/{'balanced' if balanced else 'plain'}/{budget}"


def _accuracy_key(method: str, noises: Noises, balance: str, size: int, seed: int) -> str:
    return f"accuracy/{_at_noise(method, noises, size)}/{balance}/{size}/{seed}"


class Selector:
    """Selects rows for all queries of one half at once.

    Args:
        settings: Sizes and λ.
        mlp: The network with its rows and queries.
        index: Its index of margins.
        ekfac: EK-FAC scores ``[q, n]``, where there are some.
    """

    def __init__(self, settings: Settings, mlp: RetrainedMlp, index: Index, ekfac: Tensor | None) -> None:
        self._ekfac = ekfac
        self.mlp, self._index = mlp, index
        view = index.view("margin")
        self._unit = view.mean_squared_norm()
        self._labels = mlp.frozen.train.labels
        self._classes = int(self._labels.max()) + 1
        self._rows = DenseCandidates(view.sketches(torch.arange(view.num_rows), dtype=torch.float64))
        self._spectrum: Spectrum = Spectra(index, 1 << 30).spectrum(view, None)
        self._baselines = MarginBaselines(mlp.frozen, index, settings.regularisation)

    def select(self, method: str, budget: int, balanced: bool, noise: float | None, tuning: bool) -> list[int]:
        """Select rows for the queries, or for the tuning queries; balanced: as many of every class."""
        asked = list(self.mlp.tuning_rows if tuning else self.mlp.query_rows)
        if method == "ekfac":
            assert self._ekfac is not None, "a method only where there are scores"
            return self._largest(self._ekfac[asked].mean(dim=0), budget, balanced)
        if noise is None:
            scores = torch.stack([self._baselines.scores(row, (method,))[method] for row in asked]).mean(dim=0)
            return self._largest(scores, budget, balanced)
        assert self._index.queries is not None
        labels = self.mlp.frozen.queries.labels
        queries = torch.stack([self._index.queries.sketch(row, "margin", int(labels[row])) for row in asked])
        return [step.position for step in self._steps(method, queries, budget, balanced, noise * self._unit)]

    def at_random(self, budget: int, balanced: bool, seed: int) -> list[int]:
        """Draw rows."""
        if not balanced:
            return random_rows(torch.arange(len(self._labels)), budget, seed)
        order = torch.tensor(random_rows(torch.arange(len(self._labels)), len(self._labels), seed))
        scores = torch.empty(len(order))
        scores[order] = -torch.arange(len(order)).float()
        return self._largest(scores, budget, True)

    def _steps(
        self, rule: str, queries: Tensor, budget: int, balanced: bool, noise_variance: float
    ) -> Iterator[ManyStep]:
        quotas = dict.fromkeys(range(self._classes), -(-budget // self._classes)) if balanced else None
        labels = self._labels if balanced else None
        if rule != "infoloss":
            return select_many(
                queries,
                self._rows,
                noise_variance,
                budget=budget,
                rule=rule,
                weighting=WEIGHTING,
                quotas=quotas,
                labels=labels,
            )
        given = SetPosterior(self._spectrum, noise_variance)
        if given.is_kernel:
            crosses = self._rows.products(queries)
            posteriors = [
                given.of_query(query, cross, self._rows.sketches) for query, cross in zip(queries, crosses, strict=True)
            ]
            many = ManyPosterior.of_posteriors(posteriors)
        else:
            many = ManyPosterior.of_queries(given, queries, self._rows.sketches)
        return select_many_infoloss(
            many,
            torch.arange(self._rows.count),
            budget=budget,
            weighting=WEIGHTING,
            quotas=quotas,
            labels=labels,
            candidates=self._rows,
        )

    def _largest(self, scores: Tensor, budget: int, balanced: bool) -> list[int]:
        order = torch.argsort(-scores, stable=True)
        if not balanced:
            return order[:budget].tolist()
        quota = -(-budget // self._classes)
        kept = torch.cat([order[self._labels[order] == label][:quota] for label in range(self._classes)])
        return kept[torch.argsort(-scores[kept], stable=True)][:budget].tolist()


def tuned(
    settings: Settings, selector: Selector, halves: Halves, journal: Journal, progress: Progress
) -> dict[str, dict[int, float]]:
    """Return the noise of each information method and size with the best mean accuracy on the tuning half."""
    units = [
        (method, noise, size, seed, _tuning_key(method, noise, size, seed))
        for method in INFORMATION
        for noise in settings.noises
        for size in settings.sizes
        for seed in settings.seeds
    ]
    for method, noise, size, seed, key in units_of(
        progress, "tuning the noise", units, lambda unit: unit[-1] in journal
    ):

        def measured(method: str = method, noise: float = noise, size: int = size, seed: int = seed) -> float:
            budget = settings.sizes[-1]
            rows: list[int] = journal.once(
                f"tuning-{_rows_key(f'{method}@{noise:g}', False, budget)}",
                partial(selector.select, method, budget, False, noise, tuning=True),
            )
            return accuracy(settings, selector.mlp, rows[:size], halves.tuning, seed)

        journal.once(key, measured)
    return {
        method: {
            size: max(settings.noises, key=partial(_tuning_accuracy, settings, journal, method, size))
            for size in settings.sizes
        }
        for method in INFORMATION
    }


def _tuning_key(method: str, noise: float, size: int, seed: int) -> str:
    return f"tune/{method}@{noise:g}/{size}/{seed}"


def _tuning_accuracy(settings: Settings, journal: Journal, method: str, size: int, noise: float) -> float:
    return fmean(journal[_tuning_key(method, noise, size, seed)] for seed in settings.seeds)


def accuracy(settings: Settings, mlp: RetrainedMlp, rows: list[int], images: Images, seed: int) -> float:
    """Train on some rows only and return the accuracy on images."""
    kept = torch.tensor(rows)
    how = settings.mlp.training
    epochs = max(how.epochs, -(-settings.steps * how.batch_size // len(rows)))
    initial = linear_weights(initial_network(settings.mlp.network, seed))
    weights = train_mlp(
        initial, mlp.inputs[kept], mlp.frozen.train.labels[kept], replace(how, epochs=epochs), seed=seed
    )
    right = mlp_logits(weights, images.inputs(flat=True)).argmax(dim=1) == images.labels
    return float(right.float().mean())


def report(
    settings: Settings,
    methods: tuple[str, ...],
    mlp: RetrainedMlp,
    noises: Noises,
    images: Images,
    journal: Journal,
) -> Report:
    """Make the table: mean accuracy over the seeds by method, balance and size."""
    table: list[dict[str, Any]] = []
    for balance in ("plain", "balanced"):
        for method in methods:
            for size in settings.sizes:
                values = [journal[_accuracy_key(method, noises, balance, size, seed)] for seed in settings.seeds]
                table.append({"method": method, "classes": balance, "size": size, **with_error("accuracy", values)})
    whole = mlp_logits(list(mlp.frozen.weights.values()), images.inputs(flat=True)).argmax(dim=1) == images.labels
    labels = mlp.frozen.train.labels
    facts = {
        "seeds": len(settings.seeds),
        "errors_over": counted(len(settings.seeds), "seed"),
        "train_rows": len(labels),
        "accuracy_of_the_whole_training_set": float(whole.float().mean()),
        "queries": settings.queries,
        "weighting_of_queries": {
            method: WEIGHTING if method in INFORMATION else "uniform" for method in methods if method != "random"
        },
        "relative_noise": {method: dict(by_size) for method, by_size in noises.items()},
        "sizes_whose_noise_is_at_an_edge_of_the_grid": {
            method: [size for size, noise in by_size.items() if noise in (settings.noises[0], settings.noises[-1])]
            for method, by_size in noises.items()
        },
        "rows_of_each_class_at_the_smallest_size": {
            method: torch.bincount(
                labels[torch.tensor(_smallest(settings, journal, method, noises))], minlength=10
            ).tolist()
            for method in methods
            if method != "random"
        },
        "tuning_accuracy": {
            method: {
                size: {
                    f"{noise:g}": _tuning_accuracy(settings, journal, method, size, noise) for noise in settings.noises
                }
                for size in settings.sizes
            }
            for method in INFORMATION
        },
    }

    def draw(path: Path) -> None:
        with figure(path, 2, width=5.0) as axes:
            for axis, balance in zip(axes, ("plain", "balanced"), strict=True):
                mine = [row for row in table if row["classes"] == balance]
                draw_lines(axis, mine, x="size", y="accuracy", legend=balance == "balanced")
                axis.set_xscale("log")
                axis.set_xticks(settings.sizes, labels=[str(size) for size in settings.sizes])
                axis.set_xticks([], minor=True)
                axis.set_xlabel("rows selected")
                axis.axhline(facts["accuracy_of_the_whole_training_set"], color="tab:gray", linewidth=0.8)
                axis.set_ylim(0, 1)
                axis.set_title(balance if balance == "plain" else "as many of every class", fontsize=10)

    return Report("Coresets: accuracy when trained on the selected rows only", table, facts, draw)


def _smallest(settings: Settings, journal: Journal, method: str, noises: Noises) -> list[int]:
    smallest, largest = settings.sizes[0], settings.sizes[-1]
    rows: list[int] = journal[_rows_key(_at_noise(method, noises, smallest), False, largest)]
    return rows[:smallest]
