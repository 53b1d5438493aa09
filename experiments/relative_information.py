"""What the noise does: relative information and fraction of 50 picks, over six noises.

Expected on Fashion-MNIST (25 %, MLP 512-256, own-label logit, NTK scaling, rademacher, d = 4096): relative information
of InfoGain 0.62, 0.70, 0.87, 0.90, 0.85, 0.98 at relative noise 0.01 … 1000, with the dip at 100; the approximation
tracks it from 1 upward; the largest inner products lag until 1000; cosine is ahead at 0.01 and 100.

    python -m experiments.relative_information --index indexes/fashion-mnist --out results/relative-information

Pool and conditioning set D are the rows of the query's label, because an own-label index has no other comparable rows:
a departure from the paper, whose D is the whole training set. Every figure is computed twice from the same stored
sketches, by this project's index and attribution code and by a dense float64 program that shares none of it; the
largest difference of any two cells is printed and written beside them.
"""

import argparse
import csv
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from attribution.candidates import DenseCandidates
from attribution.infogain import select_infogain
from attribution.infogain_approx import select_infogain_approx
from attribution.infoloss import select_infoloss
from attribution.information import info_gain
from attribution.posterior import SetPosterior
from attribution.spectrum import Spectrum, spectrum_of
from experiments import dense_reference
from sketchstore.brute_force import BruteForceSearch
from sketchstore.reader import Index, open_index

RELATIVE_NOISES = (0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)
RULES = ("infogain", "infogain_approx", "inner_product", "cosine")
TITLES = {
    "infogain": "InfoGain",
    "infogain_approx": "InfoGain approx",
    "inner_product": "top by |inner product|",
    "cosine": "top by cosine",
}
SHORT = {"infogain": "InfoGain", "infogain_approx": "approx", "inner_product": "|φ·φ*|", "cosine": "cosine"}
PLOTTED = {"infogain": "tab:blue", "infogain_approx": "tab:orange", "inner_product": "tab:green", "cosine": "tab:red"}


@dataclass(frozen=True)
class Pool:
    """The rows comparable with queries of one label, as read from the index; positions count from 0 in ``rows``.

    Attributes:
        rows: Row numbers in the training set, ascending, shape [n].
        sketches: Their stored sketches in measurement units, float64 [n, d].
        spectrum: Eigendecomposition of their kernel matrix, for the posterior given all of them.
        mean_squared_norm: What a relative noise is relative to.
    """

    rows: Tensor
    sketches: Tensor
    spectrum: Spectrum
    mean_squared_norm: float


@dataclass(frozen=True)
class Measured:
    """One query at one noise: what each rule picked and what the picks are worth.

    Attributes:
        picks: Positions chosen by each rule, in order; ``infoloss`` among them.
        loss_nats: InfoLoss of each rule's picks.
        gain_nats: InfoGain of each rule's picks.
        available_nats: InfoGain of the whole pool.
    """

    picks: dict[str, list[int]]
    loss_nats: dict[str, float]
    gain_nats: dict[str, float]
    available_nats: float


def read_pool(index: Index, label: int) -> Pool:
    """Read one label's rows of the own view and decompose their kernel matrix once for all noises."""
    view = index.view("own")
    rows = view.partition_rows(label)
    sketches = view.sketches(rows, dtype=torch.float64)
    return Pool(rows, sketches, spectrum_of(sketches), view.mean_squared_norm(label))


def baselines(sketches: Tensor, query: Tensor, budget: int) -> dict[str, list[int]]:
    """The nearest rows by absolute inner product and by cosine; a stable sort, so ties go to the lowest row."""
    products = sketches @ query
    cosine = products / sketches.norm(dim=1)
    by = {"inner_product": products.abs(), "cosine": cosine}
    return {name: torch.argsort(-scores, stable=True)[:budget].tolist() for name, scores in by.items()}


def measure_with_project(index: Index, pool: Pool, query: Tensor, noise_variance: float, budget: int) -> Measured:
    """Select and judge with this project's search, rules and posterior."""
    posterior = SetPosterior(pool.spectrum, noise_variance).of_query(
        query, pool.sketches @ query, lambda positions: pool.sketches[positions]
    )
    everything = torch.arange(len(pool.rows))
    search = BruteForceSearch(index.view("own"), pool.rows)
    position = {int(row): number for number, row in enumerate(pool.rows)}
    approx = select_infogain_approx(
        query,
        search,
        lambda rows: index.view("own").sketches(rows, dtype=torch.float64),
        noise_variance,
        budget=budget,
        rows_allowed=pool.rows,
        num_allowed=len(pool.rows),
        largest_norm=float(pool.sketches.norm(dim=1).max()),
    )
    exact = select_infogain(query, DenseCandidates(pool.sketches), noise_variance, budget=budget)
    picks = {
        "infogain": [step.position for step in exact],
        "infogain_approx": [position[step.position] for step in approx],
        "infoloss": [step.position for step in select_infoloss(posterior, everything, budget=budget)],
        **baselines(pool.sketches, query, budget),
    }
    return Measured(
        picks=picks,
        loss_nats={rule: posterior.info_loss_nats(torch.tensor(chosen)) for rule, chosen in picks.items()},
        gain_nats={rule: info_gain(query, pool.sketches[chosen], noise_variance) for rule, chosen in picks.items()},
        available_nats=posterior.info_gain_nats,
    )


def measure_densely(pool: Pool, query: Tensor, noise_variance: float, budget: int) -> Measured:
    """The same from the dense kernel matrix in float64."""
    sketches = pool.sketches.numpy()
    kernel, cross, prior = sketches @ sketches.T, sketches @ query.numpy(), float(query.numpy() @ query.numpy())
    picks = {
        "infogain": dense_reference.greedy_gain(kernel, cross, noise_variance, budget, exact=True),
        "infogain_approx": dense_reference.greedy_gain(kernel, cross, noise_variance, budget, exact=False),
        "infoloss": dense_reference.greedy_loss(kernel, cross, noise_variance, budget),
        "inner_product": np.argsort(-np.abs(cross), kind="stable")[:budget].tolist(),
        "cosine": np.argsort(-cross / np.sqrt(np.diag(kernel)), kind="stable")[:budget].tolist(),
    }
    given = (kernel, cross, prior, noise_variance)
    return Measured(
        picks=picks,
        loss_nats={rule: dense_reference.information_loss(*given, chosen) for rule, chosen in picks.items()},
        gain_nats={rule: dense_reference.information_gain(*given, chosen) for rule, chosen in picks.items()},
        available_nats=dense_reference.information_gain(*given, list(range(len(kernel)))),
    )


def cells(measured: list[Measured]) -> dict[str, float]:
    """The table's row for one noise: means over the queries."""
    row: dict[str, float] = {}
    for rule in RULES:
        ratios = [one.loss_nats[rule] / one.loss_nats["infoloss"] for one in measured]
        row[f"relative_information_{rule}"] = float(np.mean(ratios))
    for rule in ("infogain", "infogain_approx", "inner_product"):
        row[f"fraction_{rule}"] = float(np.mean([one.gain_nats[rule] / one.available_nats for one in measured]))
    shared = [
        len(set(one.picks["infogain"]) & set(one.picks["infogain_approx"])) / len(one.picks["infogain"])
        for one in measured
    ]
    row["picks_shared"] = float(np.mean(shared))
    return row


def chosen_queries(index: Index, count: int) -> Iterator[tuple[int, int]]:
    """The first stored queries that the model gets right, with their label: the paper asks about such queries only."""
    assert index.queries is not None
    found = 0
    for row in range(index.queries.count):
        label = index.queries.label(row)
        if label == index.queries.predicted_label(row):
            yield row, label
            found += 1
        if found == count:
            return


def plot(rows: list[dict[str, float]], budget: int, path: Path) -> None:
    """Draw both criteria against the noise."""
    import matplotlib

    matplotlib.use("Agg")  # no display is needed, and none is opened
    from matplotlib import pyplot

    noises = [row["relative_noise"] for row in rows]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.3), dpi=150, layout="constrained", sharey=True)
    for rule, colour in PLOTTED.items():
        style = {"marker": "o", "markersize": 4, "color": colour, "label": TITLES[rule]}
        left.plot(noises, [row[f"relative_information_{rule}"] for row in rows], **style)
        if rule != "cosine":
            right.plot(noises, [row[f"fraction_{rule}"] for row in rows], **style)
    right.plot(
        noises,
        [row["picks_shared"] for row in rows],
        color="tab:gray",
        linestyle="--",
        label="picks shared by InfoGain and approx",
    )
    left.set_title(f"InfoLoss of {budget} picks / InfoLoss of the greedy InfoLoss picks", fontsize=10)
    right.set_title(f"InfoGain of {budget} picks / InfoGain of the whole pool", fontsize=10)
    for axis in (left, right):
        axis.set_xscale("log")
        axis.set_ylim(0, 1.03)
        axis.set_xlabel("noise variance relative to the mean squared norm")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8, loc="lower right" if axis is left else "lower left")
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)
    pyplot.close(figure)


def printed(console: Console, title: str, rows: list[dict[str, float]]) -> None:
    """Print one table noise by noise."""
    table = Table(title=title, title_justify="left", header_style="none")
    table.add_column("relative\nnoise", justify="right")
    for rule in RULES:
        table.add_column(f"relative\ninformation\n{SHORT[rule]}", justify="right")
    for rule in RULES[:3]:
        table.add_column(f"fraction\n\n{SHORT[rule]}", justify="right")
    table.add_column("picks\nshared", justify="right")
    for row in rows:
        information = [f"{row[f'relative_information_{rule}']:.2f}" for rule in RULES]
        fraction = [f"{row[f'fraction_{rule}']:.2f}" for rule in RULES[:3]]
        table.add_row(f"{row['relative_noise']:g}", *information, *fraction, f"{row['picks_shared']:.0%}")
    console.print(table)


def recompute(index: Index, num_queries: int, budget: int, report: Callable[[str], None]) -> dict[str, Any]:
    """Measure every query at every noise both ways and average.

    Args:
        index: An index of own-label logits with stored queries.
        num_queries: How many correctly classified queries, from the first on.
        budget: Picks a query.
        report: Called with a line of progress after each query.

    Returns:
        The two tables, the queries, and the largest difference between corresponding cells.
    """
    chosen = list(chosen_queries(index, num_queries))
    pools: dict[int, Pool] = {}
    project: dict[float, list[Measured]] = {noise: [] for noise in RELATIVE_NOISES}
    dense: dict[float, list[Measured]] = {noise: [] for noise in RELATIVE_NOISES}
    assert index.queries is not None
    for number, (row, label) in enumerate(chosen, start=1):
        started = time.perf_counter()
        pool = pools.setdefault(label, read_pool(index, label)) if label not in pools else pools[label]
        query = index.queries.sketch(row, "own", label)
        for relative_noise in RELATIVE_NOISES:
            noise_variance = relative_noise * pool.mean_squared_norm
            project[relative_noise].append(measure_with_project(index, pool, query, noise_variance, budget))
            dense[relative_noise].append(measure_densely(pool, query, noise_variance, budget))
        seconds = time.perf_counter() - started
        report(f"query {number} of {len(chosen)} (row {row}, label {label}, pool {len(pool.rows)}): {seconds:.1f} s")
    tables = {
        name: [{"relative_noise": noise, **cells(measured[noise])} for noise in RELATIVE_NOISES]
        for name, measured in (("project", project), ("dense", dense))
    }
    largest = max(
        abs(ours[column] - theirs[column])
        for ours, theirs in zip(tables["project"], tables["dense"], strict=True)
        for column in ours
    )
    return {
        "index": index.manifest.name,
        "revision": index.manifest.revision,
        "sketch_dim": index.manifest.sketch_dim,
        "conditioning_set": "the rows of the query's label",
        "budget": budget,
        "queries": [{"row": row, "label": label, "pool": len(pools[label].rows)} for row, label in chosen],
        **tables,
        "largest_cell_difference": largest,
    }


def main() -> None:
    """Parse the command line, recompute, print, write JSON, CSV and the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--index", type=Path, required=True, help="an index of label_logit with stored queries")
    parser.add_argument("--out", type=Path, required=True, help="folder for the tables and the plot")
    parser.add_argument("--queries", type=int, default=8, help="correctly classified queries to average over")
    parser.add_argument("--budget", type=int, default=50, help="picks a query")
    arguments = parser.parse_args()

    index = open_index(arguments.index)
    if index.queries is None or "own" not in index.manifest.views:
        sys.exit(f"{arguments.index} needs stored queries and the view 'own': build it with --measurement label_logit")
    console, progress = Console(), Console(stderr=True)
    result = recompute(index, arguments.queries, arguments.budget, lambda line: progress.print(line, style="dim"))

    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "relative_information.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    with (arguments.out / "relative_information.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["computed_by", *result["project"][0]])
        writer.writeheader()
        for name in ("project", "dense"):
            writer.writerows({"computed_by": name, **row} for row in result[name])
    plot(result["project"], arguments.budget, arguments.out / "relative_information.png")

    assert math.isfinite(result["largest_cell_difference"])
    printed(
        console, f"{result['index']}, d = {result['sketch_dim']}, {len(result['queries'])} queries", result["project"]
    )
    printed(console, "the same, dense float64", result["dense"])
    console.print(f"largest difference of any cell: {result['largest_cell_difference']:.1e}")
    console.print(f"written to {arguments.out}")


if __name__ == "__main__":
    main()
