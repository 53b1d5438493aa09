"""Linear datamodelling score on Fashion-MNIST: do summed scores of a half of the training set predict its margins?

Not in the paper. For every query, the Spearman correlation over random half-subsets between the margin of a network
trained on the half and the sum of the method's scores over it; the mean over queries is the LDS. It asks for signed
effects of single examples added up, which is what influence methods estimate. Information has no sign: it
is not scored here; what stands closest to it is the covariance c(x_*, i | D), which RelatIF divides by the deviations.

λ of TRAK and RelatIF is the one with the highest score on tuning queries, which are not among those reported.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.datasets import shuffled
from experiments.ekfac import ekfac_scores
from experiments.ekfac import is_available as ekfac_is_available
from experiments.indexing import Sketched, frozen_index
from experiments.journal import Journal
from experiments.margin_baselines import MarginBaselines
from experiments.plots import figure, style_of
from experiments.report import Report
from experiments.retrained_mlp import PAPER_MLP, MlpSettings, RetrainedMlp
from experiments.statistics import with_error
from experiments.units import units_of
from indexer.progress import Progress
from indexer.terminal import counted
from indexer.training import TrainingSettings

TITLE = "linear datamodelling score, 50 half-subsets (not in the paper)"


@dataclass(frozen=True)
class Settings:
    """How much of the experiment is done.

    Attributes:
        mlp: The network.
        queries: Queries reported.
        tuning_queries: Queries for λ.
        subsets: Random halves.
        regularisations: λ tried, in units of the mean squared norm.
        dim: d of the sketches.
    """

    mlp: MlpSettings
    queries: int
    tuning_queries: int
    subsets: int
    regularisations: tuple[float, ...]
    dim: int


PAPER = Settings(
    mlp=PAPER_MLP,
    queries=100,
    tuning_queries=10,
    subsets=50,
    regularisations=(0.001, 0.01, 0.1, 1.0, 10.0, 100.0, 1000.0),
    dim=4096,
)
SMALL = replace(
    PAPER,
    mlp=replace(PAPER_MLP, train_fraction=0.1, training=replace(PAPER_MLP.training, epochs=10)),
    queries=50,
    dim=1024,
)
SMOKE = replace(
    SMALL,
    mlp=MlpSettings(
        "digits", 1.0, (64, 32, 10), TrainingSettings(epochs=3, batch_size=32, peak_rate=0.03, weight_decay=1e-3)
    ),
    queries=10,
    tuning_queries=4,
    subsets=6,
    regularisations=(0.1, 10.0),
    dim=256,
)
SIZES = {"smoke": SMOKE, "small": SMALL, "paper": PAPER}


def run(settings: Settings, data_dir: Path | None, out: Path, progress: Progress) -> Report:
    """Train on every half, score every row, correlate."""
    mlp = RetrainedMlp(
        settings.mlp,
        data_dir,
        out / "network.safetensors",
        num_tuning=settings.tuning_queries,
        num_queries=settings.queries,
        progress=progress,
    )
    halves, trained = train_halves(settings, mlp, out, progress)
    index = frozen_index(mlp.file, out / "margin", Sketched("margin", False, settings.dim), progress)
    reported = list(mlp.query_rows)
    baselines = MarginBaselines(mlp.frozen, index, settings.regularisations[0])
    over_lambda, chosen = tuned(settings, mlp, baselines, halves, trained, progress)
    table: list[dict[str, Any]] = []
    for method in units_of(progress, "scoring the queries", ("graddot", "trak", "relatif", "repsim")):
        regularisation = chosen.get(method)
        baselines = baselines.regularised(regularisation or 1.0)
        (values,) = correlations(baselines, reported, (method,), halves, trained).values()
        table.append({"method": method, "regularisation": regularisation, **with_error("lds", values)})
    if ekfac_is_available():
        progress.phase("EK-FAC influence", 0)
        scores = ekfac_scores(mlp.frozen, out / "ekfac")
        values = [spearman(_sums(scores[row], halves), trained[:, row]) for row in reported]
        table.append({"method": "ekfac", "regularisation": None, **with_error("lds", values)})
    values = [
        spearman(_sums(torch.rand(halves.shape[1], generator=_seeded(row)), halves), trained[:, row])
        for row in reported
    ]
    table.append({"method": "random", "regularisation": None, **with_error("lds", values)})
    facts = {
        "queries": settings.queries,
        "subsets": settings.subsets,
        "seeds": 1,
        "errors_over": counted(settings.queries, "query", "queries"),
        "train_rows": len(mlp.frozen.train),
        "chosen_on_tuning_queries": chosen,
        "over_regularisation": over_lambda,
    }
    return Report(f"LDS over {settings.subsets} half-subsets", table, facts, _draw(table, over_lambda))


def tuned(
    settings: Settings,
    mlp: RetrainedMlp,
    baselines: MarginBaselines,
    halves: Tensor,
    trained: Tensor,
    progress: Progress,
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Return the LDS of the tuning queries by method and λ, and the λ of each method at which it is highest."""
    over_lambda: list[dict[str, Any]] = []
    for regularisation in units_of(progress, "tuning λ", settings.regularisations):
        baselines = baselines.regularised(regularisation)
        found = correlations(baselines, list(mlp.tuning_rows), ("trak", "relatif"), halves, trained)
        over_lambda += [
            {"method": method, "regularisation": regularisation, **with_error("lds", values)}
            for method, values in found.items()
        ]
    chosen = {
        method: max((row for row in over_lambda if row["method"] == method), key=lambda row: row["lds"])[
            "regularisation"
        ]
        for method in ("trak", "relatif")
    }
    return over_lambda, chosen


def train_halves(settings: Settings, mlp: RetrainedMlp, out: Path, progress: Progress) -> tuple[Tensor, Tensor]:
    """Train on every random half.

    Returns:
        Which rows each half holds, bool ``[m, n]``, and the margins of all stored queries, float64 ``[m, q]``.
    """
    journal = Journal(out / "halves.jsonl", {"mlp": str(settings.mlp)})
    count = len(mlp.frozen.train)
    every = list(range(len(mlp.frozen.queries)))
    halves, margins_of = torch.zeros(settings.subsets, count, dtype=torch.bool), []
    for number in units_of(
        progress, "training on halves", range(settings.subsets), lambda number: str(number) in journal
    ):
        left_out = shuffled(count, seed=1000 + number)[: count // 2]
        halves[number] = True
        halves[number, left_out] = False
        margins_of.append(
            journal.once(str(number), lambda: mlp.query_margins(mlp.retrain(left_out), every).tolist())  # noqa: B023
        )
    return halves, torch.tensor(margins_of, dtype=torch.float64)


def correlations(
    baselines: MarginBaselines, rows: list[int], methods: tuple[str, ...], halves: Tensor, trained: Tensor
) -> dict[str, list[float]]:
    """Return every query's rank correlation by method."""
    found: dict[str, list[float]] = {method: [] for method in methods}
    for row in rows:
        for method, scores in baselines.scores(row, methods).items():
            found[method].append(spearman(_sums(scores, halves), trained[:, row]))
    return found


def spearman(first: Tensor, second: Tensor) -> float:
    """Return the rank correlation of two vectors without ties."""
    ranks = torch.stack([torch.argsort(torch.argsort(vector)).double() for vector in (first, second)])
    return float(torch.corrcoef(ranks)[0, 1])


def _sums(scores: Tensor, halves: Tensor) -> Tensor:
    return halves.double() @ scores.double()


def _seeded(row: int) -> torch.Generator:
    return torch.Generator().manual_seed(row)


def _draw(table: list[dict[str, Any]], over_lambda: list[dict[str, Any]]) -> Any:
    def draw(path: Path) -> None:
        from experiments.plots import draw_lines

        with figure(path, 2, width=4.6, height=3.6) as (bars, lines):
            for place, row in enumerate(table):
                bars.bar(place, row["lds"], color=style_of(row["method"]).colour, yerr=row["lds_standard_error"])
            bars.set_xticks(range(len(table)), [style_of(row["method"]).title for row in table], fontsize=8)
            bars.set_ylabel("LDS, mean over queries")
            draw_lines(lines, over_lambda, x="regularisation", y="lds")
            lines.set_ylabel("LDS of the tuning queries")
            lines.set_xscale("log")
            lines.set_xlabel("λ relative to the mean squared norm")

    return draw
