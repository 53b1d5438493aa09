"""Choosing the noise of the backdoor experiment, its table and its plot, from its journal."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Protocol

from experiments.journal import Journal
from experiments.plots import draw_lines, figure, style_of
from experiments.report import Report
from experiments.statistics import mean_and_error, with_error
from indexer.terminal import counted

#: What the journal keeps of a ranking, in this order.
MEASURES = ("recall", "mrr")


class Asked(Protocol):
    """What the report needs of the settings."""

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds of the networks."""

    @property
    def noises(self) -> tuple[float, ...]:
        """Noises tried."""

    @property
    def per_class(self) -> int:
        """Poisoned images of a class."""

    @property
    def train_rows(self) -> int:
        """Training images."""

    @property
    def network(self) -> str:
        """The network."""


def key_of(seed: int, query: int, method: str, noise: float | None) -> str:
    """Return the key of one ranking's measures."""
    return f"{seed}/{query}/{method}" + ("" if noise is None else f"/{noise:g}")


def chosen_noises(settings: Asked, methods: Iterable[str], tuning: Iterable[int], journal: Journal) -> dict[str, float]:
    """Return the noise of each tuned method with the highest recall on tuning queries; the smallest of equals."""
    queries = list(tuning)

    def recall(method: str, noise: float) -> float:
        values = [journal[key_of(s, q, method, noise)][0] for s in settings.seeds for q in queries]
        return mean_and_error(values)[0]

    return {method: max(settings.noises, key=lambda noise: recall(method, noise)) for method in methods}


def report(
    settings: Asked,
    methods: Sequence[str],
    tuning: Sequence[int],
    reported: Sequence[int],
    chosen: Mapping[str, float],
    success: Mapping[int, float],
    journal: Journal,
) -> Report:
    """Average what was asked over queries and seeds.

    Args:
        settings: What was done.
        methods: The methods.
        tuning: Tuning queries.
        reported: Queries reported.
        chosen: Noise, or λ, of each tuned method.
        success: Share of triggered test images that are called the next class, by seed.
        journal: Recall and reciprocal rank of every ranking.
    """
    table = [
        {
            "method": method,
            "relative_noise": chosen.get(method),
            **_measures(settings, reported, method, chosen.get(method), journal),
        }
        for method in methods
    ]
    over_noise = [
        {"method": method, "relative_noise": noise, **_measures(settings, tuning, method, noise, journal)}
        for method in chosen
        for noise in settings.noises
    ]
    several = len(settings.seeds) > 1
    facts = {
        "seeds": len(settings.seeds),
        "errors_over": counted(len(settings.seeds), "seed") if several else counted(len(reported), "query", "queries"),
        "queries": len(reported),
        "tuning_queries": len(tuning),
        "success": dict(success),
        "train_rows": settings.train_rows,
        "network": settings.network,
        "by_seed": {method: _by_seed(settings, reported, method, chosen.get(method), journal) for method in methods},
        "tuning_queries_over_noise": over_noise,
    }

    def draw(path: Path) -> None:
        # Methods without a noise have nothing to show of the tuning queries.
        with figure(path, 2 if over_noise else 1, width=5.2) as (bars, *others):
            for place, row in enumerate(reversed(table)):
                colour = style_of(row["method"]).colour
                bars.barh(place, row["recall"], color=colour, xerr=row["recall_standard_error"] or 0.0)
            bars.set_yticks(range(len(table)), [style_of(row["method"]).title for row in reversed(table)], fontsize=8)
            bars.set_xlim(0, 1)
            bars.set_xlabel(f"Recall@{settings.per_class}")
            for lines in others:
                draw_lines(lines, over_noise, x="relative_noise", y="recall", legend=False)
                lines.legend(fontsize=7.5, loc="upper left", bbox_to_anchor=(1.02, 1.0))  # lines are everywhere
                lines.set_xscale("log")
                lines.set_ylim(0, 1.03)
                lines.set_title("tuning queries", fontsize=10)

    return Report(f"Backdoor: Recall@{settings.per_class} and MRR", table, facts, draw)


def _measures(
    settings: Asked, queries: Sequence[int], method: str, noise: float | None, journal: Journal
) -> dict[str, float | None]:
    # Errors over seeds where there are several, else over queries.
    found = [[journal[key_of(seed, query, method, noise)] for query in queries] for seed in settings.seeds]
    columns: dict[str, float | None] = {}
    for number, name in enumerate(MEASURES):
        by_seed = [[one[number] for one in of_seed] for of_seed in found]
        columns |= with_error(name, by_seed[0] if len(by_seed) == 1 else [mean_and_error(v)[0] for v in by_seed])
    return columns


def _by_seed(
    settings: Asked, queries: Sequence[int], method: str, noise: float | None, journal: Journal
) -> list[dict[str, float]]:
    found = {seed: [journal[key_of(seed, query, method, noise)] for query in queries] for seed in settings.seeds}
    return [
        {"seed": seed, **{name: fmean(one[number] for one in of_seed) for number, name in enumerate(MEASURES)}}
        for seed, of_seed in found.items()
    ]
