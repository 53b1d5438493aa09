"""The table and the plot of the brittleness experiment, from whatever part of its journal is finished."""

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from experiments.chosen_methods import named_noise
from experiments.information import METHODS as INFORMATION
from experiments.journal import Journal
from experiments.noise_by_removal import TuningSettings, mean_margins
from experiments.plots import draw_lines, figure
from experiments.report import Report
from experiments.retrained_mlp import RetrainedMlp
from experiments.statistics import mcnemar_p, with_error
from experiments.units import StoppedError
from indexer.terminal import counted


@dataclass(frozen=True)
class TunedAtSizes:
    """Methods whose noise is tuned at each size.

    Attributes:
        tuning: What the noise was tuned on.
        methods: Which of the other methods stands for each of them, by size.
    """

    tuning: TuningSettings
    methods: Mapping[str, Mapping[int, str]]

    def facts(self, sizes: Sequence[int], journal: Journal) -> dict[str, Any]:
        """Say what was chosen, and from which mean margins."""
        return {
            "stands_for": {
                method: {str(size): part for size, part in by_size.items()} for method, by_size in self.methods.items()
            },
            "mean_margin": {str(size): mean_margins(self.tuning, journal, size) for size in sizes},
        }


def report(
    sizes: Sequence[int],
    tuning: TuningSettings,
    mlp: RetrainedMlp,
    methods: Sequence[str],
    noises: Mapping[str, float],
    journal: Journal,
    at_sizes: TunedAtSizes | None = None,
    num_queries: int | None = None,
) -> Report:
    """Make the table of every method and size over the queries that all methods have finished.

    ``margin_drop`` is the mean fall of the query's margin at the largest size, where every query is retrained, and is
    empty at smaller ones. The facts have every query's flips, the information methods' paired differences to every
    other, and the mean share of the removed rows that any two methods have in common.

    Args:
        sizes: How many examples are removed.
        tuning: What the noise was tuned on.
        mlp: The network.
        methods: The methods.
        noises: Noise of each information method, tuned or named.
        journal: The finished trainings.
        at_sizes: Further methods, each of them one of the others at each size.
        num_queries: How many queries are asked for, of those stored; None for all.
    """
    wanted = mlp.query_rows[:num_queries]
    rows = finished(wanted, methods, sizes, journal)
    at_size = {
        **{method: dict.fromkeys(sizes, method) for method in methods},
        **(at_sizes.methods if at_sizes is not None else {}),
    }
    flips = {
        method: {size: [bool(flipped_at(journal, row, by_size[size], sizes, size)) for row in rows] for size in sizes}
        for method, by_size in at_size.items()
    }
    before = mlp.query_margins(list(mlp.frozen.weights.values()), list(mlp.query_rows))
    drops = {
        method: [
            float(before[row - mlp.num_tuning]) - journal[f"removed/{row}/{by_size[sizes[-1]]}/{sizes[-1]}"]["margin"]
            for row in rows
        ]
        for method, by_size in at_size.items()
    }
    table: list[dict[str, Any]] = []
    for method in at_size:
        for size in sizes:
            drop = with_error("margin_drop", drops[method])
            if size != sizes[-1]:
                drop = dict.fromkeys(drop)
            table.append({"method": method, "removed": size, **with_error("flipped", flips[method][size]), **drop})
    trainings = sum(key.startswith("removed/") for key in journal)
    facts = {
        "queries": len(rows),
        "queries_wanted": len(wanted),
        "trainings": trainings,
        "seeds": 1,
        "errors_over": counted(len(rows), "query", "queries"),
        "network": mlp.settings.network,
        "train_rows": len(mlp.frozen.train),
        **({} if mlp.frozen.test_accuracy is None else {"test_accuracy": mlp.frozen.test_accuracy}),
        "epochs": mlp.settings.training.epochs,
        "relative_noise": dict(noises),
        "tuning": {
            "queries": tuning.queries,
            "removed": tuning.num_removed,
            "mean_margin": mean_margins(tuning, journal, tuning.num_removed),
        },
        **({} if at_sizes is None else {"tuning_at_each_size": at_sizes.facts(sizes, journal)}),
        "query_rows": rows,
        "flips": {
            method: {str(size): [int(flipped) for flipped in found] for size, found in of_size.items()}
            for method, of_size in flips.items()
        },
        **{
            f"{rule}_against": {
                ours: {
                    method: _paired(sizes, flips[ours], flips[method], drops[ours], drops[method])
                    for method in flips
                    if method != ours
                }
                for ours in flips
                if named_noise(ours)[0] == rule
            }
            for rule in INFORMATION
        },
        "shared_rows": {
            method: {
                other: {str(size): _shared(journal, rows, by_size[size], at_size[other][size], size) for size in sizes}
                for other in at_size
                if other != method
            }
            for method, by_size in at_size.items()
        },
    }

    def draw(path: Path) -> None:
        with figure(path, 1, width=8.5, height=4.4) as (axis,):
            draw_lines(axis, table, x="removed", y="flipped", legend=False)
            axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0))  # lines are everywhere
            axis.set_xlabel("examples of the query's class removed")
            axis.set_ylabel("share of predictions lost")
            axis.set_title(f"{counted(len(rows), 'query', 'queries')}, one seed", fontsize=10)

    return Report("Brittleness: share of correct predictions lost after retraining", table, facts, draw)


def _paired(
    sizes: Sequence[int],
    first: Mapping[int, Sequence[bool]],
    second: Mapping[int, Sequence[bool]],
    first_drops: Sequence[float],
    second_drops: Sequence[float],
) -> dict[str, Any]:
    # Of the same queries: shares that differ by little, and errors that overlap, may still be told apart.
    return {
        "mcnemar_p": {str(size): mcnemar_p(first[size], second[size]) for size in sizes},
        **with_error("margin_drop_difference", map(operator.sub, first_drops, second_drops)),
    }


def _shared(journal: Journal, rows: Sequence[int], first: str, second: str, size: int) -> float:
    # The mean share of the removed rows that two methods have in common.
    removed = ((journal[f"rows/{row}/{first}"][:size], journal[f"rows/{row}/{second}"][:size]) for row in rows)
    return fmean(len(set(ours) & set(theirs)) / size for ours, theirs in removed)


def finished(queries: Sequence[int], methods: Sequence[str], sizes: Sequence[int], journal: Journal) -> list[int]:
    """Return the queries for which every method has an outcome at every size.

    Raises:
        StoppedError: If there is none: it is not told from a run that was stopped before the first.
    """
    rows = [row for row in queries if all(next_size(journal, row, method, sizes) is None for method in methods)]
    if not rows:
        raise StoppedError("no query is finished yet")
    return rows


def flipped_at(journal: Journal, row: int, method: str, sizes: Sequence[int], size: int) -> bool | None:
    """Say whether a query's prediction is lost at a size: None where what was retrained does not tell.

    A flip at a smaller size is one here, and a survival at a larger size is one here; a flip counts more.
    """
    known = {
        other: bool(journal[f"removed/{row}/{method}/{other}"]["flipped"])
        for other in sizes
        if f"removed/{row}/{method}/{other}" in journal
    }
    if any(flipped and other <= size for other, flipped in known.items()):
        return True
    if any(not flipped and other >= size for other, flipped in known.items()):
        return False
    return None


def next_size(journal: Journal, row: int, method: str, sizes: Sequence[int]) -> int | None:
    """Return the size to retrain a query at next: the largest, then the middle of those not known; None at the end."""
    if f"removed/{row}/{method}/{sizes[-1]}" not in journal:
        return sizes[-1]
    unknown = [size for size in sizes if flipped_at(journal, row, method, sizes, size) is None]
    return unknown[len(unknown) // 2] if unknown else None
