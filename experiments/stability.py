"""Stability and diversity of the picks (not in the paper): what another sketch seed changes, and how alike picks are.

*Shared* is the share of picks that two indexes of the same network have in common when only the seed of their sketch
differs, over all pairs of seeds. *Mean cosine* is the mean kernel cosine of two picks of the same selection: near 1 for
near-duplicates. Own-label logits of the Fashion-MNIST MLP; pool and D are the rows of the query's class.
"""

from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import torch

from experiments.indexing import Sketched, frozen_index
from experiments.information import METHODS as INFORMATION
from experiments.information import select_rows
from experiments.information_sweeps import nearest
from experiments.journal import Journal
from experiments.plots import draw_lines, figure
from experiments.report import Report
from experiments.retrained_mlp import PAPER_MLP, MlpSettings, RetrainedMlp
from experiments.statistics import with_error
from experiments.units import units_of
from indexer.attributor import Attributor
from indexer.progress import Progress
from indexer.terminal import counted
from indexer.training import TrainingSettings

TITLE = "stability of the picks under another sketch seed, and their diversity (not in the paper)"
METHODS = (*INFORMATION, "cosine", "inner_product")


@dataclass(frozen=True)
class Settings:
    """How much of the experiment is done.

    Attributes:
        mlp: The network.
        queries: Queries.
        picks: Size of a selection.
        noises: Relative noises.
        dims: Sketch dimensions.
        sketch_seeds: Seeds of the sketches, at least two.
        stored_queries: Queries stored in the indexes.
    """

    mlp: MlpSettings
    queries: int
    picks: int
    noises: tuple[float, ...]
    dims: tuple[int, ...]
    sketch_seeds: tuple[int, ...]
    stored_queries: int = 100


PAPER = Settings(
    mlp=PAPER_MLP, queries=20, picks=50, noises=(0.01, 0.1, 1.0, 10.0, 100.0), dims=(1024, 4096), sketch_seeds=(0, 1, 2)
)
SMALL = replace(
    PAPER,
    mlp=replace(PAPER_MLP, train_fraction=0.1, training=replace(PAPER_MLP.training, epochs=10)),
    queries=8,
    noises=(0.1, 1.0, 10.0),
    dims=(512, 2048),
    sketch_seeds=(0, 1),
)
SMOKE = replace(
    SMALL,
    mlp=MlpSettings(
        "digits", 1.0, (64, 32, 10), TrainingSettings(epochs=3, batch_size=32, peak_rate=0.03, weight_decay=1e-3)
    ),
    queries=2,
    picks=5,
    noises=(1.0, 10.0),
    dims=(128, 256),
)
SIZES = {"smoke": SMOKE, "small": SMALL, "paper": PAPER}


def run(settings: Settings, data_dir: Path | None, out: Path, progress: Progress) -> Report:
    """Index one network under every seed and dimension, select, and compare."""
    mlp = RetrainedMlp(
        settings.mlp,
        data_dir,
        out / "network.safetensors",
        num_tuning=10,
        num_queries=settings.stored_queries,
        progress=progress,
    )
    journal = Journal(out / "picks.jsonl", {"settings": str(replace(settings, queries=0))})
    rows = list(mlp.query_rows[: settings.queries])
    for dim in settings.dims:
        for seed in settings.sketch_seeds:
            how = Sketched("label_logit", True, dim, seed=seed)
            index = frozen_index(mlp.file, out / f"dim-{dim}-seed-{seed}", how, progress)
            attributor = Attributor(index, engine="brute_force")
            units = [(row, noise, f"{dim}/{seed}/{row}/{noise:g}") for row in rows for noise in settings.noises]
            phase = f"selecting, d = {dim}, seed {seed}"
            for row, noise, key in units_of(progress, phase, units, lambda unit: unit[-1] in journal):
                label = int(mlp.frozen.queries.labels[row])
                journal.once(key, lambda: selections(settings, attributor, row, label, noise))  # noqa: B023
    table = summarise(settings, rows, journal)
    facts = {
        "seeds": len(settings.sketch_seeds),
        "errors_over": f"{counted(len(rows), 'query', 'queries')}, each the mean over pairs of "
        f"{len(settings.sketch_seeds)} sketch seeds",
        "queries": len(rows),
        "picks": settings.picks,
        "train_rows": len(mlp.frozen.train),
    }

    def draw(path: Path) -> None:
        with figure(path, len(settings.dims) + 1, width=4.2, height=3.7) as axes:
            for axis, dim in zip(axes, settings.dims, strict=False):
                mine = [row for row in table if row["sketch_dim"] == dim]
                draw_lines(axis, mine, x="relative_noise", y="shared", legend=dim == settings.dims[0])
                axis.set_title(f"picks shared by two seeds, d = {dim}", fontsize=10)
            largest = [row for row in table if row["sketch_dim"] == settings.dims[-1]]
            draw_lines(axes[-1], largest, x="relative_noise", y="mean_cosine", legend=False)
            axes[-1].set_title(f"likeness of {settings.picks} picks, d = {settings.dims[-1]}", fontsize=10)
            for axis in axes:
                axis.set_xscale("log")
                axis.set_ylim(0, 1.03)

    return Report(f"Stability: {settings.picks} picks under other sketch seeds", table, facts, draw)


def selections(
    settings: Settings, attributor: Attributor, row: int, label: int, noise: float
) -> dict[str, dict[str, Any]]:
    """Return every method's picks for one query, and the mean cosine of two of them."""
    view = attributor.index.view("own")
    pool = view.partition_rows(label)
    query = attributor.resolve_query_row(row, label).sketch.double()
    picks = {
        method: select_rows(attributor, row, label, method, settings.picks, noise, condition="pool")
        for method in INFORMATION
    }
    picks |= nearest(view.sketches(pool, dtype=torch.float64), query, pool, settings.picks)
    found: dict[str, dict[str, Any]] = {}
    for method, chosen in picks.items():
        unit = torch.nn.functional.normalize(view.sketches(torch.tensor(chosen), dtype=torch.float64), dim=1)
        count = len(chosen)
        cosine = float((unit @ unit.T).sum() - count) / (count * (count - 1))
        found[method] = {"picks": chosen, "mean_cosine": cosine}
    return found


def summarise(settings: Settings, rows: list[int], journal: Journal) -> list[dict[str, Any]]:
    """Return means over queries by dimension, noise and method."""
    table: list[dict[str, Any]] = []
    pairs = list(combinations(settings.sketch_seeds, 2))
    for dim in settings.dims:
        for noise in settings.noises:
            for method in METHODS:

                def one(seed: int, row: int, dim: int = dim, noise: float = noise, method: str = method) -> Any:
                    return journal[f"{dim}/{seed}/{row}/{noise:g}"][method]

                shared = [
                    sum(len({*one(a, row)["picks"]} & {*one(b, row)["picks"]}) for a, b in pairs)
                    / (len(pairs) * settings.picks)
                    for row in rows
                ]
                cosines = [
                    sum(one(seed, row)["mean_cosine"] for seed in settings.sketch_seeds) / len(settings.sketch_seeds)
                    for row in rows
                ]
                columns = {**with_error("shared", shared), **with_error("mean_cosine", cosines)}
                table.append({"sketch_dim": dim, "relative_noise": noise, "method": method, **columns})
    return table
