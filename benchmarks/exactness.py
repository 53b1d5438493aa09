"""Do the service's picks and nats equal a dense float64 Gaussian process on the stored sketches?

Reads the index directory by FORMAT.md alone (json, numpy, safetensors), recomputes every answer with dense float64
algebra that shares no code with the project, asks the running service over HTTP and compares. A different pick counts
as equal only when both rows' scores agree to 1e-10 relative: an exact tie resolved in another order.

    python -m benchmarks.exactness --index indexes/fashion-mnist --queries 20 --budget 50 --json
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import load_file

from service.client import Client
from service.local_server import local_server

METHODS = ("infogain_approx", "infogain", "infoloss")
RELATIVE_NOISES = (0.01, 1.0, 100.0)
TIE = 1e-10  # relative; float64 products of 4,096 terms differ by about 1e-13 between summation orders

Array = NDArray[np.float64]


def read_view(index: Path, manifest: dict[str, Any], view: str, rows: NDArray[np.int64]) -> Array:
    """Read the given rows of a view in measurement units, float64 [len(rows), d]."""
    facts = manifest["views"][view]
    shards = []
    for shard in facts["shards"]:
        with safe_open(index / shard["file"], framework="numpy") as file:
            shards.append(file.get_tensor("sketches"))
    stored = np.concatenate(shards)[rows]
    return stored.astype(np.float64) * 2.0 ** facts["scale_exponent"]


def oracle_gain(
    kernel: Array, cross: Array, prior: float, noise: float, budget: int, *, exact_rule: bool
) -> tuple[list[int], list[float], list[Array]]:
    """Greedy InfoGain (8) or its approximation (15), every step from dense solves.

    Returns:
        Picks, cumulative InfoGain in nats, and each step's scores over all candidates.
    """
    picks: list[int] = []
    nats: list[float] = []
    all_scores: list[Array] = []
    for _ in range(budget):
        if picks:
            gram = kernel[np.ix_(picks, picks)] + noise * np.eye(len(picks))
            solved = np.linalg.solve(gram, np.column_stack([cross[picks], kernel[picks]]))
            covariance = cross - kernel[:, picks] @ solved[:, 0]
            variance = np.diag(kernel) - np.einsum("nt,tn->n", kernel[:, picks], solved[:, 1:])
        else:
            covariance, variance = cross.copy(), np.diag(kernel).copy()
        scores = covariance**2 / (noise + variance) if exact_rule else covariance**2
        scores[picks] = -np.inf
        picks.append(int(scores.argmax()))
        all_scores.append(scores)
        gram = kernel[np.ix_(picks, picks)] + noise * np.eye(len(picks))
        reduction = float(cross[picks] @ np.linalg.solve(gram, cross[picks]))
        nats.append(-0.5 * math.log1p(-reduction / prior))
    return picks, nats, all_scores


def oracle_loss(
    kernel: Array, cross: Array, prior: float, noise: float, budget: int
) -> tuple[list[int], list[float], list[Array]]:
    """Greedy InfoLoss (62): leave one more row out of the whole set each step, by (54) with a growing set.

    Returns:
        Picks, cumulative InfoLoss in nats, and each step's scores over all candidates.
    """
    precision = np.linalg.inv(kernel + noise * np.eye(len(kernel)))
    weights = precision @ cross
    variance = prior - cross @ weights
    picks: list[int] = []
    nats: list[float] = []
    all_scores: list[Array] = []
    for _ in range(budget):
        if picks:
            block = np.linalg.solve(
                precision[np.ix_(picks, picks)], np.column_stack([weights[picks], precision[picks]])
            )
            left_weights = weights - precision[:, picks] @ block[:, 0]
            left_diagonal = np.diag(precision) - np.einsum("nt,tn->n", precision[:, picks], block[:, 1:])
        else:
            left_weights, left_diagonal = weights, np.diag(precision)
        with np.errstate(divide="ignore", invalid="ignore"):
            scores = left_weights**2 / left_diagonal
        scores[picks] = -np.inf
        picks.append(int(scores.argmax()))
        all_scores.append(scores)
        increase = float(weights[picks] @ np.linalg.solve(precision[np.ix_(picks, picks)], weights[picks]))
        nats.append(0.5 * math.log1p(increase / variance))
    return picks, nats, all_scores


def different_picks(served: list[int], expected: list[int], scores: list[Array]) -> int:
    """Count the steps at which the served pick is not the oracle's and is no exact tie with it."""
    wrong = 0
    for mine, theirs, step in zip(served, expected, scores, strict=True):
        if mine != theirs and not abs(step[mine] - step[theirs]) <= TIE * abs(step[theirs]):
            wrong += 1
    return wrong


def measure(index: Path, num_queries: int, budget: int, client: Client) -> dict[str, Any]:
    """Compare every (query, method, noise) cell; the largest relative difference of any nats and all wrong picks."""
    manifest = json.loads((index / "manifest.json").read_text())
    labels = np.load(index / "columns" / "labels.npy")
    stored = load_file(index / "queries" / "own.safetensors")
    cells: list[dict[str, Any]] = []
    kernels: dict[int, tuple[NDArray[np.int64], Array, Array]] = {}
    chosen = np.linspace(0, manifest["queries"]["count"] - 1, num_queries).round().astype(int)
    for query_row in chosen:
        slot = int(np.flatnonzero(stored["query_rows"] == query_row)[0])
        query = stored["sketches"][slot].astype(np.float64)
        label = int(stored["target_labels"][slot])
        if label not in kernels:
            rows = np.flatnonzero(labels == label)
            sketches = read_view(index, manifest, "own", rows)
            kernels[label] = (rows, sketches, sketches @ sketches.T)
        rows, sketches, kernel = kernels[label]
        cross = sketches @ query
        prior = float(query @ query)
        for relative in RELATIVE_NOISES:
            noise = relative * float(np.mean(np.diag(kernel)))
            posterior = np.linalg.solve(kernel + noise * np.eye(len(kernel)), cross)
            available = -0.5 * math.log1p(-float(cross @ posterior) / prior)
            for method in METHODS:
                if method == "infoloss":
                    picks, nats, scores = oracle_loss(kernel, cross, prior, noise, budget)
                else:
                    picks, nats, scores = oracle_gain(
                        kernel, cross, prior, noise, budget, exact_rule=method == "infogain"
                    )
                answer = client.attribute(
                    index.resolve().name,
                    {"type": "row", "split": "query", "row": int(query_row)},
                    target={"label": label},
                    method=method,
                    budget=budget,
                    noise_variance=noise,
                    rescore=["infogain", "infoloss"],
                ).model_dump()
                to_pool = {int(row): position for position, row in enumerate(rows)}
                served = [to_pool[hit["row"]] for hit in answer["hits"]]
                served_nats = [hit["cumulative_nats"] for hit in answer["hits"]]
                chosen_set = served
                gram = kernel[np.ix_(chosen_set, chosen_set)] + noise * np.eye(len(chosen_set))
                gain = -0.5 * math.log1p(-float(cross[chosen_set] @ np.linalg.solve(gram, cross[chosen_set])) / prior)
                figures = [
                    *zip(served_nats, nats, strict=True),
                    (answer["information"]["infogain_nats"], gain),
                    (answer["information"]["available_nats"], available),
                ]
                wrong = different_picks(served, picks, scores)
                cells.append(
                    {
                        "query": int(query_row),
                        "method": method,
                        "relative_noise": relative,
                        "wrong_picks": wrong,
                        "largest_relative_difference": max(abs(a - b) / abs(b) for a, b in figures),
                        "exact": answer["search"]["exact"],
                    }
                )
    return {
        "index": manifest["name"],
        "cells": len(cells),
        "cells_with_other_picks": sum(cell["wrong_picks"] > 0 for cell in cells),
        "largest_relative_difference_of_nats": max(cell["largest_relative_difference"] for cell in cells),
        "all_exact": all(cell["exact"] for cell in cells),
        "worst": sorted(cells, key=lambda cell: -cell["largest_relative_difference"])[:5],
    }


def main() -> None:
    """Parse the command line, start a service on loopback, print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--index", type=Path, required=True, help="an own-label index directory with stored queries")
    parser.add_argument("--queries", type=int, default=20)
    parser.add_argument("--budget", type=int, default=50)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a summary line")
    arguments = parser.parse_args()
    with local_server(arguments.index) as url, Client(url) as client:
        result = measure(arguments.index, arguments.queries, arguments.budget, client)
    if arguments.json:
        print(json.dumps(result, indent=2))
    else:
        print(
            f"{result['cells']} answers, {result['cells_with_other_picks']} with other picks, "
            f"nats differ by at most {result['largest_relative_difference_of_nats']:.2e} relative"
        )


if __name__ == "__main__":
    main()
