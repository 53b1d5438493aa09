"""How long does an attribution take over real HTTP, by row and by example, and what is the sketch's share?

Starts the real service on loopback, asks once to warm each label's caches, then asks one query after another.

    python -m benchmarks.serving --index indexes/fashion-mnist --queries 100 --json
"""

import argparse
import base64
import statistics
from pathlib import Path
from typing import Any

from benchmarks.measuring import Report, print_json, quantile, timed
from service.client import Client
from service.local_server import local_server
from service.schemas.answers import Answer

SKETCH = "sketch"


def summary(seconds: list[float]) -> dict[str, float]:
    """Return p50, p95 and mean in milliseconds."""
    times = [1e3 * each for each in seconds]
    return {
        "p50_ms": round(quantile(times, 0.5), 2),
        "p95_ms": round(quantile(times, 0.95), 2),
        "mean_ms": round(statistics.fmean(times), 2),
    }


def by_row(client: Client, index: str, queries: list[int], method: str, budget: int, noise: float) -> dict[str, Any]:
    """Time attributions of stored queries.

    Args:
        client: The client.
        index: The index's name.
        queries: Query rows.
        method: The rule.
        budget: Picks.
        noise: Relative noise.

    Returns:
        The times, and how the index was asked.
    """

    def ask(row: int) -> Answer:
        return client.attribute(
            index, {"type": "row", "split": "query", "row": row}, method=method, budget=budget, relative_noise=noise
        )

    labels = {row: ask(row).query.label for row in queries}  # warms the caches of every label that is timed below
    timings = [timed(lambda row=row: ask(row)) for row in queries]
    answers = [answer for _, answer in timings]
    return {
        "method": method,
        **summary([seconds for seconds, _ in timings]),
        "queries": len(queries),
        "labels": len(set(labels.values())),
        "budget": budget,
        "relative_noise": noise,
        "index_queries_mean": statistics.fmean(answer.search.index_queries for answer in answers),
        "all_exact": all(answer.search.exact for answer in answers),
        "server_ms": {
            name: round(statistics.fmean(answer.timings_ms.get(name, 0.0) for answer in answers), 2)
            for name in answers[0].timings_ms
        },
    }


def by_example(client: Client, index: str, queries: list[int], budget: int, noise: float) -> dict[str, Any] | None:
    """Time attributions of the same queries sent as images.

    Args:
        client: The client.
        index: The index's name.
        queries: Query rows whose stored previews are sent.
        budget: Picks.
        noise: Relative noise.

    Returns:
        The times with the sketch's share, None where the index takes no examples or stores no images.
    """
    if "example" not in client.index(index).query_types:
        return None
    contents = []
    for row in queries:
        media_type, content = client.content(index, row, "query")
        if media_type != "image/png":
            return None
        contents.append({"image": base64.b64encode(content).decode()})
    timings = [
        timed(
            lambda content=content: client.attribute(
                index, {"type": "example", "content": content}, budget=budget, relative_noise=noise
            )
        )
        for content in contents
    ]
    total_ms = 1e3 * sum(seconds for seconds, _ in timings)
    sketching_ms = sum(answer.timings_ms[SKETCH] for _, answer in timings)
    return {
        **summary([seconds for seconds, _ in timings]),
        "queries": len(queries),
        "budget": budget,
        "relative_noise": noise,
        "sketch_share": round(sketching_ms / total_ms, 3),
    }


def measure(index: Path, num_queries: int, num_examples: int, budget: int, noise: float) -> dict[str, Any]:
    """Serve an index and time it.

    Args:
        index: The index directory.
        num_queries: Queries by row for each method.
        num_examples: Queries by example.
        budget: Picks.
        noise: Relative noise.

    Returns:
        All figures.
    """
    with local_server(index) as url, Client(url) as client:
        card = client.index(index.name)
        if card.queries is None:
            raise SystemExit(f"{index} stores no queries; build it with --num-queries")
        count = card.queries.count
        rows = [position * count // num_queries for position in range(num_queries)]
        return {
            "index": card.name,
            "rows": card.num_rows,
            "sketch_dim": card.sketch.dim,
            "by_row": [
                by_row(client, card.name, rows, method, budget, noise)
                for method in ("infogain_approx", "infogain", "infoloss")
            ],
            "by_example": by_example(client, card.name, rows[:: max(1, num_queries // num_examples)], budget, noise),
        }


def main() -> None:
    """Parse the command line, start a service on loopback, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--index", type=Path, required=True, help="an index directory with stored queries")
    parser.add_argument("--queries", type=int, default=100, help="queries by row for each method")
    parser.add_argument("--examples", type=int, default=10, help="queries by example")
    parser.add_argument("--budget", type=int, default=50)
    parser.add_argument("--relative-noise", type=float, default=1.0)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a summary")
    arguments = parser.parse_args()
    report = Report("benchmarks.serving", vars(arguments))
    result = report.finish(
        measure(arguments.index, arguments.queries, arguments.examples, arguments.budget, arguments.relative_noise)
    )
    if arguments.json:
        print_json(result)
        return
    for figures in result["by_row"]:
        print(f"by row, {figures['method']}: p50 {figures['p50_ms']} ms, p95 {figures['p95_ms']} ms")
    if result["by_example"] is not None:
        figures = result["by_example"]
        print(f"by example: p50 {figures['p50_ms']} ms, the sketch takes {figures['sketch_share']:.0%}")


if __name__ == "__main__":
    main()
