"""Relative information (Figure 2): how much of what greedy InfoLoss takes away do other selections of that size take?

Paper: InfoGain's share goes to 100 % as the noise grows, and its approximation stays within a few percent of it.

*Relative information* of S is InfoLoss(S) / InfoLoss(greedy InfoLoss selection of the same size). Two sweeps, over the
noise at one size and over the size at one noise, on a 3-layer MLP for CIFAR-10's classes 0 and 1 and on the
Fashion-MNIST MLP. Candidates are the rows of the query's class; D is the whole training set, sketched at the query's
class logit. (`experiments.relative_information` recomputes its like on an index of own-label logits, twice.)
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.indexing import Sketched, frozen_index
from experiments.information import random_rows, select_rows
from experiments.journal import Journal
from experiments.plots import draw_lines, figure
from experiments.report import Report
from experiments.retrained_mlp import PAPER_MLP, MlpSettings, RetrainedMlp, TooManyQueriesError
from experiments.statistics import with_error
from experiments.units import units_of
from indexer.attributor import Attributor
from indexer.attributor.spectra import Spectra
from indexer.progress import Progress
from indexer.terminal import counted
from indexer.training import TrainingSettings
from sketchstore.reader import Index

TITLE = "relative information over noise and subset size (Figure 2)"
RANKED = ("infogain", "infogain_approx", "inner_product", "cosine", "random")


@dataclass(frozen=True)
class Settings:
    """How much of the experiment is done.

    Attributes:
        networks: The networks by name of their folder.
        views: Classes asked about; None for all.
        queries: Queries of each network.
        noises: Relative noises of the first sweep.
        noise: Relative noise of the second.
        sizes: Subset sizes of the second sweep, ascending.
        size: Subset size of the first, one of ``sizes``.
        dim: d of the sketches.
        stored_queries: Queries stored in the index of each network; of these, the classes with a view are asked about.
    """

    networks: Mapping[str, MlpSettings]
    views: tuple[int, ...] | None
    queries: int
    noises: tuple[float, ...]
    noise: float
    sizes: tuple[int, ...]
    size: int
    dim: int
    stored_queries: int = 100


CIFAR_MLP = MlpSettings(
    data="cifar10",
    train_fraction=1.0,
    widths=(3072, 256, 128, 2),
    training=TrainingSettings(epochs=20, batch_size=64, peak_rate=0.01, weight_decay=1e-3),
    classes=(0, 1),
)
PAPER = Settings(
    networks={"cifar10-0-1": CIFAR_MLP, "fashion-mnist": PAPER_MLP},
    views=None,
    queries=25,
    noises=(0.01, 0.1, 1.0, 10.0, 100.0, 1000.0, 10000.0),
    noise=1.0,
    sizes=(5, 10, 20, 50, 100, 200),
    size=50,
    dim=4096,
)
SMALL = replace(PAPER, views=(0, 1), queries=6, noises=(0.01, 1.0, 100.0, 10000.0), sizes=(10, 50, 100), dim=1024)
SMOKE = replace(
    SMALL,
    networks={
        "digits": MlpSettings(
            "digits", 1.0, (64, 32, 10), TrainingSettings(epochs=3, batch_size=32, peak_rate=0.03, weight_decay=1e-3)
        )
    },
    queries=2,
    noises=(1.0, 1000.0),
    sizes=(3, 10),
    size=10,
    dim=256,
)
SIZES = {"smoke": SMOKE, "small": SMALL, "paper": PAPER}


def run(settings: Settings, data_dir: Path | None, out: Path, progress: Progress) -> Report:
    """Train and index each network, and measure every query over both sweeps."""
    table: list[dict[str, Any]] = []
    for name, mlp_settings in settings.networks.items():
        mlp = RetrainedMlp(
            mlp_settings,
            data_dir,
            out / name / "network.safetensors",
            num_tuning=10,
            num_queries=settings.stored_queries,
            progress=progress,
        )
        rows = asked_rows(mlp, settings)
        how = Sketched("class_logit", True, settings.dim, views=settings.views)
        index = frozen_index(mlp.file, out / name / "class-logit", how, progress)
        journal = Journal(out / name / "sweeps.jsonl", {"mlp": str(mlp_settings), "dim": settings.dim})
        measure(settings, mlp, index, rows, journal, progress)
        table += [{"network": name, **row} for row in summarise(settings, rows, journal)]
    facts = {
        "queries": settings.queries,
        "seeds": 1,
        "errors_over": f"{counted(settings.queries, 'query', 'queries')} a network",
        "size_of_noise_sweep": settings.size,
        "relative_noise_of_size_sweep": settings.noise,
        "sketch_dim": settings.dim,
        "conditioning_set": "the whole training set at the query's class logit",
        "networks": {name: str(mlp) for name, mlp in settings.networks.items()},
    }
    return Report(
        "Relative information: share of what greedy InfoLoss takes away", table, facts, _draw(settings, table)
    )


def asked_rows(mlp: RetrainedMlp, settings: Settings) -> list[int]:
    """Return the first stored queries whose class has a view.

    Raises:
        TooManyQueriesError: If there are fewer than are asked for; it says how many.
    """
    views = settings.views
    rows = [row for row in mlp.query_rows if views is None or int(mlp.frozen.queries.labels[row]) in views]
    if len(rows) < settings.queries:
        classes = "" if views is None else f" of the classes {', '.join(map(str, views))}"
        raise TooManyQueriesError(
            f"{settings.queries} queries: {len(rows)} of the {len(mlp.query_rows)} stored ones are"
            f"{classes or ' there'}; allowed are 1 to {len(rows)}"
        )
    return rows[: settings.queries]


def measure(
    settings: Settings, mlp: RetrainedMlp, index: Index, rows: list[int], journal: Journal, progress: Progress
) -> None:
    """Fill the journal with InfoLoss of every selection's prefixes, by ``query/noise``; one class after the other."""
    attributor, spectra = Attributor(index, engine="brute_force"), Spectra(index, 1 << 30)
    noises = sorted({*settings.noises, settings.noise})
    labels = mlp.frozen.queries.labels
    ordered = sorted(rows, key=lambda row: int(labels[row]))
    units = [(row, noise, f"{row}/{noise:g}") for row in ordered for noise in noises]
    for row, noise, key in units_of(progress, f"sweeping {index.name}", units, lambda unit: unit[-1] in journal):
        label = int(labels[row])
        journal.once(key, lambda: losses(settings, attributor, spectra, row, label, noise))  # noqa: B023


def losses(
    settings: Settings, attributor: Attributor, spectra: Spectra, row: int, label: int, noise: float
) -> dict[str, dict[str, float]]:
    """Return InfoLoss in nats of the first so many rows of each ranking: method → size → nats."""
    view = attributor.index.view(str(label))
    query = attributor.resolve_query_row(row, label).sketch.double()
    given = spectra.posterior(view, None, noise * view.mean_squared_norm())
    everything = torch.arange(view.num_rows)
    cross = view.sketches(everything, dtype=torch.float64) @ query if given.is_kernel else None
    posterior = given.of_query(query, cross, lambda rows: view.sketches(rows, dtype=torch.float64))
    budget = max(settings.sizes)
    ranked = {"infoloss": select_rows(attributor, row, label, "infoloss", budget, noise)}
    for method in ("infogain", "infogain_approx"):
        ranked[method] = select_rows(attributor, row, label, method, budget, noise)
    pool = torch.nonzero(attributor.index.labels == label).squeeze(1)
    ranked |= nearest(view.sketches(pool, dtype=torch.float64), query, pool, budget)
    ranked["random"] = random_rows(pool, budget, seed=row)
    return {
        method: {str(size): posterior.info_loss_nats(chosen[:size]) for size in settings.sizes}
        for method, chosen in ranked.items()
    }


def nearest(sketches: Tensor, query: Tensor, pool: Tensor, budget: int) -> dict[str, list[int]]:
    """Rank a pool by absolute inner product and by cosine with the query; ties go to the lowest row."""
    products = sketches @ query
    by = {"inner_product": products.abs(), "cosine": products / sketches.norm(dim=1)}
    return {
        name: [int(row) for row in pool[torch.argsort(-scores, stable=True)[:budget]]] for name, scores in by.items()
    }


def summarise(settings: Settings, rows: list[int], journal: Journal) -> list[dict[str, Any]]:
    """Return the means over queries: one table row per sweep, point and method."""
    table: list[dict[str, Any]] = []
    points = [("noise", noise, settings.size) for noise in settings.noises]
    points += [("size", settings.noise, size) for size in settings.sizes]
    for sweep, noise, size in points:
        measured = [journal[f"{row}/{noise:g}"] for row in rows]
        for method in RANKED:
            shares = [one[method][str(size)] / one["infoloss"][str(size)] for one in measured]
            column = with_error("relative_information", shares)
            table.append({"sweep": sweep, "relative_noise": noise, "size": size, "method": method, **column})
    return table


def _draw(settings: Settings, table: list[dict[str, Any]]) -> Any:
    def draw(path: Path) -> None:
        names = list(settings.networks)
        with figure(path, 2 * len(names), width=4.0, height=3.8) as axes:
            for number, name in enumerate(names):
                mine = [row for row in table if row["network"] == name]
                over_noise, over_size = axes[2 * number], axes[2 * number + 1]
                for axis, sweep, x in ((over_noise, "noise", "relative_noise"), (over_size, "size", "size")):
                    points = [row for row in mine if row["sweep"] == sweep]
                    draw_lines(axis, points, x=x, y="relative_information", legend=number == 0 and sweep == "noise")
                    axis.set_ylim(0, 1.1)
                over_noise.set_xscale("log")
                over_noise.set_title(f"{name}: {settings.size} examples", fontsize=10)
                over_size.set_title(f"{name}: relative noise {settings.noise:g}", fontsize=10)

    return draw
