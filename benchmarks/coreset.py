"""What does a pick of a coreset cost, over the memory traffic it cannot avoid, and are the picks those of a full scan?

A pick must read Φ once in its stored type, and read and write the table of candidates × queries once. Both are measured
beside every pick, in the same process with the same threads, so that a busy machine slows both alike.

    python -m benchmarks.coreset --index indexes/fashion-mnist --queries 1000 --budget 1000 --json
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numba import njit

from benchmarks.dense_coreset import dense_picks
from indexer.attributor.coreset import RULES, Coreset, CoresetQuestion
from indexer.attributor.scan_threads import in_pieces
from sketchstore.reader import open_index
from sketchstore.view import View

LANES = {"reassoc"}


@njit(nogil=True, fastmath=LANES)
def _read(words, sums, start, stop):  # type: ignore[no-untyped-def]
    for i in range(start, stop):
        total = np.uint64(0)
        for j in range(words.shape[1]):
            total ^= words[i, j]
        sums[i] = total


@njit(nogil=True)
def _rewrite(table, factor, start, stop):  # type: ignore[no-untyped-def]
    for i in range(start, stop):
        for j in range(table.shape[1]):
            table[i, j] *= factor


class Traffic:
    """The memory traffic that a pick cannot avoid.

    Args:
        view: The view.
        num_queries: Queries.
    """

    def __init__(self, view: View, num_queries: int) -> None:
        self._shards = [np.asarray(view.shard(number)).view(np.uint64) for number in range(view.num_shards)]
        self._sums = np.empty(view.num_rows, np.uint64)
        self._table = np.ones((view.num_rows, num_queries), np.float32)
        self.read(), self.rewrite()  # compiles, and brings Φ into memory

    def read(self) -> None:
        """Read Φ once in its stored type."""
        for words in self._shards:
            in_pieces(lambda a, b, words=words: _read(words, self._sums, a, b), words.shape[0])

    def rewrite(self) -> None:
        """Read and write a float32 matrix of candidates × queries once."""
        in_pieces(lambda a, b: _rewrite(self._table, np.float32(1.0), a, b), self._table.shape[0])


def seconds(work: Callable[[], Any]) -> float:
    """Return how long something took."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def measure(path: Path, question: CoresetQuestion, checked: int) -> dict[str, Any]:
    """Select a coreset, timing the unavoidable traffic between the picks.

    Args:
        path: The index directory.
        question: What is asked.
        checked: How many picks are compared with a float64 scan.

    Returns:
        All figures.
    """
    # Of derived files only a spectrum is used, by InfoLoss.
    index = open_index(path, check="sizes", derived=question.rule == "infoloss")
    selection = Coreset(index, question)
    if selection.label is not None:
        raise SystemExit("choose an index whose rows all compare: --measurement margin or class_logit")
    traffic = Traffic(selection.view, selection.num_queries)
    load_before = os.getloadavg()[0]
    steps = selection.picks()
    picks, times, reads, rewrites, ratios = [], [], [], [], []
    first = seconds(lambda: picks.append(next(steps)))
    while len(picks) < question.budget:
        before = len(picks)
        taken = seconds(lambda: picks.extend(pick for pick in [next(steps, None)] if pick is not None))
        if len(picks) == before:
            break
        read, rewrite = seconds(traffic.read), seconds(traffic.rewrite)
        times.append(taken)
        reads.append(read)
        rewrites.append(rewrite)
        ratios.append(taken / (read + rewrite))
    result = {
        "index": index.name,
        "rows": selection.candidates,
        "sketch_dim": index.sketch_dim,
        "dtype": index.manifest.dtype,
        "queries": selection.num_queries,
        "rule": question.rule,
        "weighting": question.weighting,
        "relative_noise": selection.noise.relative,
        "picks": len(picks),
        "threads": torch.get_num_threads(),
        "load_average": [round(load_before, 2), round(os.getloadavg()[0], 2)],
        "table_bytes": selection.table_bytes,
        "first_pick_seconds": round(first, 2),
        "pick_ms_median": round(1e3 * statistics.median(times), 2),
        "read_ms_median": round(1e3 * statistics.median(reads), 2),
        "rewrite_ms_median": round(1e3 * statistics.median(rewrites), 2),
        "ratio": round(statistics.median(times) / (statistics.median(reads) + statistics.median(rewrites)), 3),
        "ratio_median_of_pairs": round(statistics.median(ratios), 3),
        "ratio_last_tenth": round(statistics.median(ratios[-max(1, len(ratios) // 10) :]), 3),
        "mean_nats": picks[-1].mean_nats,
        "scores_last": picks[-1].score,
    }
    if checked:
        wanted = list(dense_picks(selection, min(checked, len(picks))))
        result["checked_picks"] = len(wanted)
        result["picks_equal"] = wanted == [pick.row for pick in picks[: len(wanted)]]
    return result


def main() -> None:
    """Parse the command line and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--index", type=Path, required=True, help="an index directory with stored queries")
    parser.add_argument("--queries", type=int, default=1000, help="the first N stored queries")
    parser.add_argument("--budget", type=int, default=1000)
    parser.add_argument("--rule", choices=RULES, default="infogain")
    parser.add_argument("--weighting", default="inverse_variance")
    parser.add_argument("--label", type=int, help="the class, for an index with one view per class")
    parser.add_argument("--relative-noise", type=float, default=1.0)
    parser.add_argument("--check", type=int, default=50, help="picks compared with a dense float64 scan; 0: none")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a summary")
    arguments = parser.parse_args()
    question = CoresetQuestion(
        budget=arguments.budget,
        rule=arguments.rule,
        weighting=arguments.weighting,
        num_queries=arguments.queries,
        label=arguments.label,
        relative_noise=arguments.relative_noise,
    )
    result = measure(arguments.index, question, arguments.check)
    if arguments.json:
        print(json.dumps(result, indent=2))
        return
    print(f"{result['picks']} picks of {result['rows']} rows for {result['queries']} queries, {result['rule']}")
    print(
        f"a pick {result['pick_ms_median']} ms, the traffic {result['read_ms_median']} + "
        f"{result['rewrite_ms_median']} ms: {result['ratio']} times"
    )
    if "picks_equal" in result:
        print(f"the first {result['checked_picks']} picks equal those of a float64 scan: {result['picks_equal']}")


if __name__ == "__main__":
    main()
