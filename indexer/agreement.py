"""How far two kernels of the same rows agree on what matters to a user: which examples are picked, and their nats."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from attribution.candidates import DenseCandidates
from attribution.infogain import select_infogain
from attribution.information import info_gain


def compare_nats(kernels: Mapping[str, tuple[Tensor, float]], pool: int, picks: int) -> dict[str, Any]:
    """Select for every query under two kernels, and compare the selections and the nats.

    Args:
        kernels: Two kernels by name, each as rows with these inner products, float64 [n, k], the pool's first and then
            the queries', and its σ².
        pool: Rows of the pool.
        picks: Size of the sets that greedy InfoGain selects for each query.

    Returns:
        ``pool_ratio`` and ``set_ratio``: nats under the first kernel over nats under the second, of the whole pool and
        of the first kernel's picks (the set that a user would be given), summed over the queries, null where the second
        has none; ``shared_picks_fraction``; ``by_query``: the nats of each, under both.
    """
    first, second = kernels
    queries = []
    for position in range(pool, len(kernels[first][0])):
        chosen = {}
        for name, (rows, noise_variance) in kernels.items():
            steps = select_infogain(rows[position], DenseCandidates(rows[:pool]), noise_variance, budget=picks)
            chosen[name] = [step.position for step in steps]
        entry: dict[str, Any] = {"shared_picks": len(set(chosen[first]) & set(chosen[second]))}
        for name, (rows, noise_variance) in kernels.items():
            entry[f"{name}_set_nats"] = info_gain(rows[position], rows[chosen[first]], noise_variance)
            entry[f"{name}_pool_nats"] = info_gain(rows[position], rows[:pool], noise_variance)
        queries.append({name: float(value) for name, value in entry.items()})
    total = {name: sum(query[name] for query in queries) for name in queries[0]}
    return {
        "pool_ratio": _ratio(total[f"{first}_pool_nats"], total[f"{second}_pool_nats"]),
        "set_ratio": _ratio(total[f"{first}_set_nats"], total[f"{second}_set_nats"]),
        "shared_picks_fraction": total["shared_picks"] / (picks * len(queries)),
        "by_query": queries,
    }


def _ratio(first: float, second: float) -> float | None:
    # Queries that no row informs (all gradients zero) have no ratio, and JSON has no NaN.
    return first / second if second > 0 else None
