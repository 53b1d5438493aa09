"""What the exact rules cost, in units of one plain pass over the sketches and one plain float32 matrix product.

All in one process, every figure the median of pairs: a selection beside a pass (`torch.mv` over the float32 sketches),
a preparation beside a product (float32, 2·n·d² operations). T is the largest partition, every row of it a candidate.
Every pick is held against the rule itself, in dense float64. With ``--rules infogain`` nothing is prepared, with
``--stored`` each selection is made once more without codes.

    python -m benchmarks.exact_rules --index indexes/fashion-mnist-margin --queries 5 --budget 50 --json
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attribution.leverage_curves import LeverageCurves
from attribution.posterior import SetPosterior, Spectrum
from attribution.steps import Step
from benchmarks.literal_exact import LiteralRules
from indexer.attributor.candidates import PoolRows
from indexer.attributor.coarse import CoarseViews
from indexer.attributor.compiled_filter import spectral_filter
from indexer.attributor.conditioning import Conditioning
from indexer.attributor.pool import Pool, resolve_pool
from indexer.attributor.queries import resolve_query_row
from indexer.attributor.questions import CandidateFilter
from indexer.attributor.rules import Asked, gain_steps, loss_steps
from indexer.attributor.spectra import Spectra, compute_gram, compute_spectrum
from indexer.attributor.stored_rows import StoredRows
from indexer.derive_leverages import curves_of_rows
from sketchstore.reader import Index, open_index
from sketchstore.view import View

RULES: dict[str, Callable[[Asked], Iterator[Step]]] = {"infogain": gain_steps, "infoloss": loss_steps}
PASSES = ("pick_ms", "pass_ms", "passes_per_pick")
#: σ² after the first, in multiples of it.
NOISE_FACTORS = (1e-3, 1e-2, 0.1, 1.3, 10.0, 1e3)
#: Rows of a plain product at a time: its output stays small.
BLOCK_ROWS = 2048


def seconds(work: Callable[[], object]) -> float:
    """Time one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def ratio_to(plain: Callable[[], object], work: Callable[[], object], plain_runs: int) -> tuple[float, float, float]:
    """Time work between runs of its unit.

    Args:
        plain: The unit.
        work: What to measure.
        plain_runs: How often the unit runs before and after; their median counts.

    Returns:
        Seconds of the work, seconds of the unit, and their ratio.
    """
    before = [seconds(plain) for _ in range(plain_runs)]
    taken = seconds(work)
    unit = statistics.median([*before, *(seconds(plain) for _ in range(plain_runs))])
    return taken, unit, taken / unit


def medians(pairs: list[tuple[float, float, float]], names: tuple[str, str, str]) -> dict[str, float]:
    """Summarise pairs by the median of each figure."""
    return {name: statistics.median(figures) for name, figures in zip(names, zip(*pairs, strict=True), strict=True)}


def plain_product(sketches: Tensor) -> Callable[[], None]:
    """One float32 product of all sketches with a d × d matrix."""
    right = torch.randn(sketches.shape[1], sketches.shape[1])
    out = torch.empty(BLOCK_ROWS, sketches.shape[1])

    def multiply() -> None:
        for block in torch.split(sketches, BLOCK_ROWS):
            torch.mm(block, right, out=out[: block.shape[0]])

    return multiply


def preparation(index: Index, view: View, label: int | None, noise: float, repeats: int) -> tuple[Any, SetPosterior]:
    """Time the spectrum with leverages of all rows at one σ², and those at others, against a plain product.

    Returns:
        The figures, and the posterior at σ².
    """
    rows, stored = view.partition_rows(label), StoredRows(view)
    product = plain_product(stored.read(rows, torch.float32))
    places = torch.arange(rows.numel())
    prepared: list[tuple[Spectrum, LeverageCurves | None]] = []
    made: list[SetPosterior] = []

    def leverages(variance: float) -> None:
        spectrum, curves = prepared[-1]
        known = None if curves is None else curves.at(spectrum, variance)
        posterior = SetPosterior(spectrum, variance, known, spectral_filter)
        if posterior.leverages is not None:
            posterior.leverages.of(places, lambda some: stored.sketches(rows[some]))
        made.append(posterior)

    def prepare() -> None:
        spectrum = compute_spectrum(view, rows)
        curves = curves_of_rows(view, rows, spectrum) if spectrum.form == "gram" else None
        prepared[:] = [(spectrum, curves)]
        leverages(noise)

    product()
    whole = [ratio_to(product, prepare, 1) for _ in range(repeats)]
    first = made[0]
    again = [ratio_to(product, lambda factor=factor: leverages(noise * factor), 1) for factor in NOISE_FACTORS]
    parts = {
        "gram": ratio_to(product, lambda: compute_gram(view, rows), 1)[2],
        "eigendecomposition": ratio_to(product, lambda: torch.linalg.eigh(first.spectrum.gram), 1)[2],
    }
    if first.leverages is not None:
        parts["leverages"] = ratio_to(product, lambda: curves_of_rows(view, rows, first.spectrum), 1)[2]
    facts = {
        "form": first.spectrum.form,
        "whole": medians(whole, ("seconds", "product_seconds", "products")),
        "parts_products": parts,
        "new_noise": medians(again, ("seconds", "product_seconds", "products")),
        "leverages": [leverage_errors(posterior, places) for posterior in [first, *made[-len(NOISE_FACTORS) :]]],
    }
    return facts, first


def leverage_errors(posterior: SetPosterior, places: Tensor) -> dict[str, float]:
    """Say how well the leverages at one σ² are known, all of them being at hand."""

    def refuse(_: Tensor) -> Tensor:
        raise AssertionError("all leverages are at hand")

    if posterior.leverages is None:
        return {"noise_variance": posterior.noise_variance}
    values, errors = posterior.leverages.of(places, refuse)
    return {
        "noise_variance": posterior.noise_variance,
        "median_relative_error": float((errors / values).median()),
        "largest_relative_error": float((errors / values).max()),
        "largest_error": float(errors.max()),
    }


class StoredRowsOnly(CoarseViews):
    """An index as if it had no codes."""

    def rounded(self, pool: Pool) -> None:
        """There are none."""


class OneSpectrum(Spectra):
    """Spectra of an index of which one posterior is at hand, wherever it came from."""

    def __init__(self, index: Index, posterior: SetPosterior) -> None:
        super().__init__(index, 1 << 32)
        self._at_hand = posterior

    def available(self, view: View, label: int | None) -> bool:
        """It is."""
        return True

    def posterior(self, view: View, label: int | None, noise_variance: float) -> SetPosterior:
        """Give it."""
        return self._at_hand


def selection(
    index: Index,
    view: View,
    spectra: Spectra,
    noise: float,
    coarse: CoarseViews,
    *,
    rule: str,
    query_row: int,
    budget: int,
) -> tuple[tuple[float, float, float], list[int]]:
    """Time one selection against a pass: milliseconds a pick, milliseconds a pass, passes a pick; and its picks."""
    query = resolve_query_row(index, query_row)
    pool = resolve_pool(index, query, CandidateFilter(), "comparable")
    stored = StoredRows(view)
    sketches = stored.read(pool.candidates, torch.float32)
    vector = torch.randn(sketches.shape[1])
    steps: list[Step] = []

    def select() -> None:
        values = query.sketch.double()
        conditioning = Conditioning(pool, stored, spectra, values, noise)
        rows = PoolRows(pool, stored, None, values, conditioning.cross)
        steps.extend(RULES[rule](Asked(pool, stored, rows, conditioning, values, noise, budget, coarse)))

    taken, unit, _ = ratio_to(lambda: torch.mv(sketches, vector), select, 5)
    picks = max(1, len(steps))
    return (1e3 * taken / picks, 1e3 * unit, taken / picks / unit), [step.position for step in steps]


def judge(
    index: Index,
    view: View,
    label: int | None,
    noise: float,
    query_rows: list[int],
    selected: dict[str, list[list[int]]],
    rules: dict[str, Any],
) -> None:
    """Hold every selection against its rule in dense float64, and write into the figures what was found."""
    rows = view.partition_rows(label)
    literal = LiteralRules(StoredRows(view).read(rows, torch.float32), noise)
    for rule, selections in selected.items():
        judged = [
            literal.judge(
                rule,
                resolve_query_row(index, query_row).sketch.double(),
                torch.searchsorted(rows, torch.tensor(picks)).tolist(),
            )
            for query_row, picks in zip(query_rows, selections, strict=True)
        ]
        rules[rule]["picks"] = [each.picks for each in judged]
        rules[rule]["picks_of_the_rule"] = [each.best for each in judged]
        rules[rule]["worst_relative"] = max(each.worst_relative for each in judged)


def measure(
    path: Path,
    relative_noise: float,
    num_queries: int,
    budget: int,
    repeats: int,
    *,
    wanted: list[str],
    stored: bool,
) -> dict[str, Any]:
    """Measure everything on one index."""
    index = open_index(path, check="sizes")
    partitions = [(view, label) for view in index.views.values() for label in view.partitions]
    view, label = max(partitions, key=lambda each: each[0].partition_rows(each[1]).numel())
    noise = relative_noise * view.mean_squared_norm(label)
    prepared, spectra = None, Spectra(index, 1 << 32)
    if "infoloss" in wanted:
        prepared, posterior = preparation(index, view, label, noise, repeats)
        spectra = OneSpectrum(index, posterior)
    ways = {"codes": CoarseViews(index)} | ({"stored": StoredRowsOnly(index)} if stored else {})
    queries = [row for row in range(index.queries.count) if label in (None, resolve_query_row(index, row).label)]
    chosen = queries[:num_queries]
    rules: dict[str, Any] = {}
    selected: dict[str, list[list[int]]] = {}
    for rule in wanted:
        for name, coarse in ways.items():
            selection(index, view, spectra, noise, coarse, rule=rule, query_row=queries[0], budget=2)  # compiles, warms
            found = [
                selection(index, view, spectra, noise, coarse, rule=rule, query_row=row, budget=budget)
                for row in chosen
            ]
            figures: dict[str, Any] = medians([figures for figures, _ in found], PASSES)
            if name == "stored":
                rules[rule]["stored"] = figures | {"identical": selected[rule] == [rows for _, rows in found]}
            else:
                rules[rule], selected[rule] = figures, [rows for _, rows in found]
    judge(index, view, label, noise, chosen, selected, rules)
    return {
        "index": index.name,
        "rows": view.partition_rows(label).numel(),
        "sketch_dim": index.sketch_dim,
        "relative_noise": relative_noise,
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
        "preparation": prepared,
        "rules": rules,
    }


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--index", type=Path, required=True, help="an index directory with stored queries")
    parser.add_argument("--relative-noise", type=float, default=1.0)
    parser.add_argument("--queries", type=int, default=5)
    parser.add_argument("--budget", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=3, help="of each preparation")
    parser.add_argument("--rules", nargs="+", choices=sorted(RULES), default=sorted(RULES))
    parser.add_argument("--stored", action="store_true", help="select without codes too")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a summary")
    arguments = parser.parse_args()
    result = measure(
        arguments.index,
        arguments.relative_noise,
        arguments.queries,
        arguments.budget,
        arguments.repeats,
        wanted=arguments.rules,
        stored=arguments.stored,
    )
    if arguments.json:
        print(json.dumps(result, indent=2))
        return
    for rule, figures in result["rules"].items():
        print(f"{rule}: {figures['passes_per_pick']:.2f} passes a pick ({figures['pick_ms']:.0f} ms)")
        if stored := figures.get("stored"):
            print(f"  without codes: {stored['passes_per_pick']:.2f}, the same picks: {stored['identical']}")
        print(f"  the rule's own: {sum(figures['picks_of_the_rule'])} of {sum(figures['picks'])} picks")
    if result["preparation"] is None:
        return
    for what, figures in (("preparation", "whole"), ("another noise", "new_noise")):
        print(f"{what}: {result['preparation'][figures]['products']:.2f} plain products")


if __name__ == "__main__":
    main()
