"""What does a selection by approximate InfoGain cost over all rows, against the loop of 2K searches it replaces?

Query by query and noise by noise, three ways in turns within one process: the attributor (certified), the attributor's
own literal strategy, and the literal loop a user of FAISS would write (benchmarks.literal_loop). Around each turn a
read-only pass over the float32 bytes and a plain product |Φ r| are timed: what memory allows, and what one step costs
without an index. The picks must be the literal loop's at every noise.

    python -m benchmarks.selection --index indexes/fashion-mnist --queries 5 --budget 50 --json
"""

import argparse
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.asking import index_facts, queries_over_all_rows, question, rows_of_hits, selection_ms
from benchmarks.literal_loop import compare_picks, flat_index, literal_loops, rows_of
from benchmarks.measuring import FullScans, Report, markdown_table, median_ratio, print_json, say, timed
from indexer.attributor import Answer, Attributor, QuerySketch
from sketchstore.reader import Index, open_index

RELATIVE_NOISES = (1000.0, 100.0, 10.0, 1.0, 0.1, 0.01)
#: Speed over the literal FAISS loop that 50 picks among 50,000 or more rows of d = 4096 must reach, by relative noise.
REQUIRED_SPEED_UPS = {1000.0: 40.0, 100.0: 40.0, 10.0: 20.0, 1.0: 7.0, 0.1: 3.5, 0.01: 3.5}


def one_turn(
    attributor: Attributor,
    flat: Any,
    scans: FullScans,
    query: QuerySketch,
    relative_noise: float,
    budget: int,
    first: int,
) -> dict[str, Any]:
    """Run the three ways one after the other, beginning with another one each turn, and compare their picks.

    The loop ends with the picks, so what the attributor needs for its picks, from the question on, is compared with it;
    the rest of an answer (nats of the whole set, what each hit stands for) is shown beside it.

    Args:
        attributor: The attributor.
        flat: The IndexFlatIP of the same rows.
        scans: The units.
        query: The query.
        relative_noise: σ² in units of the mean squared norm.
        budget: K.
        first: Which way begins.

    Returns:
        Times in milliseconds, counts and verdicts.
    """
    noise_variance = relative_noise * attributor.index.view(query.view).mean_squared_norm()
    sketch = query.sketch.numpy()
    ways: dict[str, Callable[[], Any]] = {
        "certified": lambda: attributor.answer(question(query, relative_noise, budget, "certified")),
        "literal_strategy": lambda: attributor.answer(question(query, relative_noise, budget, "literal")),
        "literal_faiss": lambda: literal_loops(flat, [sketch], noise_variance, budget)[0],
    }
    read_seconds, product_seconds = scans.seconds()
    names = list(ways)
    ran = {name: timed(ways[name]) for name in names[first % 3 :] + names[: first % 3]}
    answer: Answer = ran["certified"][1]
    literal: Answer = ran["literal_strategy"][1]
    picks = rows_of_hits(answer)
    verdict = compare_picks(flat, sketch, noise_variance, picks, ran["literal_faiss"][1])
    return {
        "relative_noise": relative_noise,
        "read_only_pass_ms": 1e3 * read_seconds,
        "plain_product_ms": 1e3 * product_seconds,
        "answer_ms": 1e3 * ran["certified"][0],
        "selection_ms": selection_ms(answer),
        "timings_ms": answer.timings_ms,
        "literal_faiss_ms": 1e3 * ran["literal_faiss"][0],
        "literal_strategy_ms": selection_ms(literal),
        "picks": len(picks),
        "exact": answer.search.exact,
        "index_queries": answer.search.index_queries,
        "rows_scored": answer.search.rows_scored,
        "bytes_read": getattr(answer.search, "bytes_read", None),
        "same_as_literal_faiss": verdict.same,
        "rounding_ties": verdict.rounding_ties,
        "same_as_literal_strategy": picks == rows_of_hits(literal),
    }


def summary(turns: Sequence[dict[str, Any]], float32_bytes: int) -> dict[str, Any]:
    """Summarise the turns of one noise: medians over queries, ratios taken turn by turn.

    Args:
        turns: What ``one_turn`` returned.
        float32_bytes: Bytes of one float32 scan.

    Returns:
        The figures of one line of the table.
    """

    def column(name: str) -> list[float]:
        return [turn[name] for turn in turns]

    rest = [answer - picking for answer, picking in zip(column("answer_ms"), column("selection_ms"), strict=True)]
    bytes_read = [turn["bytes_read"] for turn in turns if turn["bytes_read"] is not None]
    return {
        "relative_noise": turns[0]["relative_noise"],
        "queries": len(turns),
        "answer_ms": statistics.median(column("answer_ms")),
        "selection_ms": statistics.median(column("selection_ms")),
        "rest_ms": statistics.median(rest),
        "literal_faiss_ms": statistics.median(column("literal_faiss_ms")),
        "literal_strategy_ms": statistics.median(column("literal_strategy_ms")),
        "speed_up": median_ratio(column("literal_faiss_ms"), column("selection_ms")),
        "speed_up_over_literal_strategy": median_ratio(column("literal_strategy_ms"), column("selection_ms")),
        "speed_up_of_answer": median_ratio(column("literal_faiss_ms"), column("answer_ms")),
        "plain_products": median_ratio(column("selection_ms"), column("plain_product_ms")),
        "plain_products_of_answer": median_ratio(column("answer_ms"), column("plain_product_ms")),
        "plain_products_of_literal_faiss": median_ratio(column("literal_faiss_ms"), column("plain_product_ms")),
        "plain_products_of_a_read": median_ratio(column("read_only_pass_ms"), column("plain_product_ms")),
        "read_only_passes": median_ratio(column("selection_ms"), column("read_only_pass_ms")),
        "rows_scored": statistics.median(column("rows_scored")),
        "bytes_read": statistics.median(bytes_read) if bytes_read else None,
        "scans_by_bytes": statistics.median(bytes_read) / float32_bytes if bytes_read else None,
        "index_queries": statistics.median(column("index_queries")),
        "all_exact": all(column("exact")),
        "selections_unlike_literal_faiss": sum(not turn["same_as_literal_faiss"] for turn in turns),
        "selections_unlike_literal_strategy": sum(not turn["same_as_literal_strategy"] for turn in turns),
        "rounding_ties": sum(turn["rounding_ties"] for turn in turns),
    }


def measure(
    index: Index,
    *,
    num_queries: int = 5,
    budget: int = 50,
    relative_noises: Sequence[float] = RELATIVE_NOISES,
    engine: str = "faiss",
) -> dict[str, Any]:
    """Measure every query at every noise.

    Args:
        index: An open index with stored queries, all of whose rows are comparable.
        num_queries: Queries at each noise.
        budget: K.
        relative_noises: Noises.
        engine: The attributor's engine.

    Returns:
        The figures, a line for each noise, and every turn behind them.
    """
    attributor = Attributor(index, engine=engine)
    attributor.warm()
    asked = list(queries_over_all_rows(attributor, num_queries).values())
    view = index.view(asked[0].view)
    flat = flat_index(view)
    scans = FullScans([rows_of(flat)])
    budget = min(budget, index.num_rows)
    for noise in relative_noises:  # compiles kernels and touches every page before a clock runs
        attributor.answer(question(asked[0], noise, budget, "certified"))
    turns: list[dict[str, Any]] = []
    for number, query in enumerate(asked):
        for place, noise in enumerate(relative_noises):
            turn = one_turn(attributor, flat, scans, query, noise, budget, first=number + place)
            turns.append(turn)
            speed_up = turn["literal_faiss_ms"] / turn["selection_ms"]
            say(f"query {number + 1} of {len(asked)}, relative noise {noise:g}: {speed_up:.1f} times the literal loop")
    return {
        "index": index_facts(index, view),
        "engine": engine,
        "budget": budget,
        "read_only_pass_ms": statistics.median(turn["read_only_pass_ms"] for turn in turns),
        "plain_product_ms": statistics.median(turn["plain_product_ms"] for turn in turns),
        "by_noise": [
            summary([turn for turn in turns if turn["relative_noise"] == noise], scans.float32_bytes)
            for noise in relative_noises
        ],
        "turns": turns,
    }


def settings(report: dict[str, Any]) -> str:
    """Say what the table is about."""
    index = report["index"]
    return (
        f"{report['budget']} picks from {index['rows']:,} rows of d = {index['sketch_dim']:,} ({index['dtype']}), "
        f"engine {report['engine']}; queries at each noise: {report['by_noise'][0]['queries']}. A plain product took "
        f"{report['plain_product_ms']:.1f} ms, a read-only pass {report['read_only_pass_ms']:.1f} ms."
    )


def table(report: dict[str, Any]) -> str:
    """Lay out the figures as the table of docs/benchmarks.md.

    Args:
        report: What ``measure`` returned.

    Returns:
        Markdown.
    """
    lines = []
    for figures in report["by_noise"]:
        required = REQUIRED_SPEED_UPS.get(figures["relative_noise"])
        unlike = figures["selections_unlike_literal_faiss"] + figures["selections_unlike_literal_strategy"]
        ties = figures["rounding_ties"]
        scans = figures["scans_by_bytes"]
        lines.append(
            [
                f"{figures['relative_noise']:g}",
                f"**{figures['speed_up']:.1f}**",
                "" if required is None else f"{required:g}",
                f"{figures['speed_up_over_literal_strategy']:.1f}",
                f"{figures['plain_products']:.1f}",
                f"{figures['read_only_passes']:.1f}",
                f"{figures['selection_ms']:.0f}",
                f"{figures['rest_ms']:.0f}",
                f"{figures['speed_up_of_answer']:.1f}",
                f"{figures['rows_scored']:,.0f}",
                "not counted" if scans is None else f"{figures['bytes_read'] / 1e9:.2f} GB = {scans:.2f}",
                f"{figures['index_queries']:g}",
                (f"{unlike} unlike" if unlike else "identical") + (f", {ties} rounding ties" if ties else ""),
            ]
        )
    head = [
        "relative noise",
        "speed-up over literal FAISS",
        "bar",
        "over strategy literal",
        "plain products",
        "read-only passes",
        "selection, ms",
        "rest of the answer, ms",
        "speed-up, whole answer",
        "rows looked at",
        "bytes read = float32 scans",
        "index queries",
        "picks",
    ]
    return markdown_table(head, lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, measure, print.

    Args:
        arguments: Command line; None takes the process's.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--index", type=Path, required=True, help="an index whose rows are all comparable, with queries"
    )
    parser.add_argument("--queries", type=int, default=5, help="stored queries at each noise")
    parser.add_argument("--budget", type=int, default=50)
    parser.add_argument("--noise", type=float, nargs="+", default=list(RELATIVE_NOISES), help="relative noises")
    parser.add_argument("--engine", choices=["faiss", "brute_force"], default="faiss")
    parser.add_argument("--plot", type=Path, help="also draw passes against noise into this PNG")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    options = parser.parse_args(arguments)
    report = Report("benchmarks.selection", vars(options))
    figures = report.finish(
        measure(
            open_index(options.index, check="sizes"),
            num_queries=options.queries,
            budget=options.budget,
            relative_noises=options.noise,
            engine=options.engine,
        )
    )
    if options.plot is not None:
        from benchmarks.plots import plot_selection

        plot_selection(figures, options.plot)
    if options.json:
        print_json(figures)
    else:
        print(table(figures))


if __name__ == "__main__":
    main()
