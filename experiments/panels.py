"""Attribution panels (appendix F): a query, and what every method that its index can serve answers for it.

One index of margins answers for all methods, by their names alone. Candidates are the rows of the query's class, D is
the whole training set. Queries are not chosen by eye: they are the first rows of the query set that the model gets
right, one a class. Beside the picture, for every method and over more queries: the information that its picks hold, and
how alike they are (the mean kernel cosine of two of them, near 1 for near-duplicates).
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from experiments.panel_figures import Panel, draw_panels
from experiments.report import Report
from experiments.retrained_mlp import TooManyQueriesError
from experiments.statistics import with_error
from experiments.units import units_of
from indexer.attributor import Attributor, CandidateFilter, Question
from indexer.build import build_index
from indexer.preparation import BuildSettings
from indexer.progress import Progress
from indexer.recipe import OptionValue
from indexer.terminal import counted
from sketchstore.reader import Index, open_index

TITLE = "panels: a query and the top examples of every method, images (appendix F)"


@dataclass(frozen=True)
class Settings:
    """How much of the experiment is done.

    Attributes:
        recipe: A built-in recipe.
        folder: Folder of its files inside the data folder; None where it finds them itself.
        options: The recipe's options.
        dim: Sketch dimension.
        queries: Queries that the table is over.
        drawn: How many of them are drawn.
        picks: Size of a selection.
        relative_noise: σ² in units of the mean squared norm, for every method (TRAK's λ as well).
        limit: Only the first rows of the training set; None for all.
        include: Globs of modules to measure; empty for the recipe's default.
    """

    recipe: str
    folder: str | None
    options: tuple[tuple[str, OptionValue], ...]
    dim: int
    queries: int
    drawn: int
    picks: int
    relative_noise: float = 1.0
    limit: int | None = None
    include: tuple[str, ...] = ()


PAPER = Settings("fashion-mnist", None, (("train_fraction", 0.25),), 4096, queries=50, drawn=3, picks=5)
SIZES = {
    "smoke": Settings("digits", None, (), 128, queries=3, drawn=2, picks=3, limit=200),
    "small": replace(PAPER, dim=2048, queries=20),
    "paper": PAPER,
}


def run(settings: Settings, data_dir: Path | None, out: Path, progress: Progress) -> Report:
    """Build the index of margins, or open the one that is there; ask by every method; draw."""
    index = _index(settings, data_dir, out / "index", progress)
    attributor = Attributor(index, engine="brute_force")
    rows = query_rows(index, settings.queries)
    if len(rows) < settings.queries:
        assert index.queries is not None
        raise TooManyQueriesError(
            f"{settings.queries} queries: the model gets {len(rows)} of the {index.queries.count} that {out / 'index'} "
            f"has right; allowed are 1 to {len(rows)}, or another --out for an index of more"
        )
    found: dict[int, dict[str, list[dict[str, Any]]]] = {}
    for row in units_of(progress, "asking", rows):
        found[row] = {method: _picks(attributor, settings, row, method) for method in attributor.methods}
    table: list[dict[str, Any]] = []
    for method in attributor.methods:
        cosines = [_mean_cosine(index, [pick["row"] for pick in found[row][method]]) for row in rows]
        nats = [found[row][method][-1]["cumulative_nats"] for row in rows]
        table.append({"method": method, **with_error("infogain_nats", nats), **with_error("mean_cosine", cosines)})
    facts = {
        "seeds": 1,
        "errors_over": counted(len(rows), "query", "queries"),
        "queries": len(rows),
        "picks_each": settings.picks,
        "relative_noise": settings.relative_noise,
        "train_rows": index.num_rows,
        "sketch_dim": index.sketch_dim,
        "picks": {str(row): methods for row, methods in found.items()},
    }
    drawn = [_panel(index, row, found[row]) for row in _one_a_class(index, rows)[: settings.drawn]]
    return Report(
        f"{settings.recipe}: {settings.picks} picks a query, information and likeness",
        table,
        facts,
        lambda path: draw_panels(path, drawn),
    )


def query_rows(index: Index, count: int) -> list[int]:
    """Return the first stored queries that the model gets right."""
    assert index.queries is not None
    queries = index.queries
    right = (row for row in range(queries.count) if queries.predicted_label(row) == queries.label(row))
    return [row for row, _ in zip(right, range(count), strict=False)]


def _one_a_class(index: Index, rows: list[int]) -> list[int]:
    # The first row of each class, then the others.
    assert index.queries is not None
    first = {index.queries.label(row): row for row in reversed(rows)}
    chosen = sorted(first.values())
    return chosen + [row for row in rows if row not in chosen]


def _picks(attributor: Attributor, settings: Settings, row: int, method: str) -> list[dict[str, Any]]:
    query = attributor.resolve_query_row(row)
    assert query.label is not None
    question = Question(
        query=query,
        method=method,
        budget=settings.picks,
        relative_noise=settings.relative_noise,
        filter=CandidateFilter(labels=[query.label]),
        rescore=(),
        available=False,
        seed=row,  # one draw for all queries would say nothing of what draws differ by
    )
    answer = attributor.answer(question)
    chosen = [hit.row for hit in answer.hits]
    # InfoLoss counts its steps in nats of InfoLoss; the table compares InfoGain.
    return [
        {
            "row": hit.row,
            "id": hit.id,
            "score": hit.score,
            "covariance": float(attributor.index.view("margin").sketches(torch.tensor([hit.row]))[0] @ query.sketch),
            "cumulative_nats": answer.information.infogain_nats if hit.row == chosen[-1] else hit.cumulative_nats,
        }
        for hit in answer.hits
    ]


def _mean_cosine(index: Index, rows: list[int]) -> float:
    sketches = index.view("margin").sketches(torch.tensor(rows), dtype=torch.float64)
    unit = torch.nn.functional.normalize(sketches, dim=1)
    return float((unit @ unit.T).sum() - len(rows)) / (len(rows) * (len(rows) - 1))


def _panel(index: Index, row: int, methods: dict[str, list[dict[str, Any]]]) -> Panel:
    assert index.queries is not None
    names = index.manifest.labels.names or {}
    label = index.queries.label(row)
    return Panel(
        query=index.queries.examples.preview(row),
        title=f"{names.get(str(label), str(label))}, query {row}",
        picks={
            method: [(index.examples.preview(pick["row"]), pick["covariance"] >= 0) for pick in picks]
            for method, picks in methods.items()
        },
    )


def _index(settings: Settings, data_dir: Path | None, path: Path, progress: Progress) -> Index:
    if not (path / "manifest.json").exists():
        folder = data_dir if settings.folder is None or data_dir is None else data_dir / settings.folder
        build = BuildSettings(
            recipe=settings.recipe,
            data_dir=folder,
            options=dict(settings.options),
            measurement="margin",
            sketch="sjlt",
            dim=settings.dim,
            limit=settings.limit,
            include=settings.include,
            num_queries=max(100, 4 * settings.queries),
        )
        build_index(build, path, resume=True, faiss=None, codes="none", progress=progress)
    return open_index(path)
