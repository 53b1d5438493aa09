"""Does the cost of an attribution grow faster than the rows? Scans of Φ for one, from 100,000 rows to a million.

Writes real index directories of synthetic sketches (benchmarks.synthetic_sketches says what they are) with what
`indexer derive` makes by default, except spectra, into a temporary folder, one size after the other, and asks the same
queries of each. One scan is the time of a plain float32 product |Φ r|, taken in the same turn, or its bytes.

    python -m benchmarks.growth --json
"""

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from benchmarks.asking import median_bytes_read, queries_over_all_rows, question, rows_of_hits, selection_ms
from benchmarks.measuring import FullScans, Report, markdown_table, median_ratio, print_json, say, stored_pieces, timed
from benchmarks.synthetic_sketches import Spectrum, write_index
from indexer.attributor import Attributor
from indexer.derive import derive
from sketchstore.reader import Index

SIZES = (100_000, 300_000, 1_000_000)
#: Scans per attribution at the largest size over those at the smallest must not exceed this.
MOST_GROWTH = 1.1


def measure_size(
    index: Index, *, num_queries: int, num_checked: int, budget: int, relative_noise: float, engine: str
) -> dict[str, Any]:
    """Measure attributions on one index.

    Args:
        index: The open index, its derived entries made.
        num_queries: How many queries are asked.
        num_checked: Of how many the picks are compared with the literal strategy's.
        budget: K.
        relative_noise: σ² in units of the mean squared norm.
        engine: The attributor's engine.

    Returns:
        The figures of one line of the table.
    """
    attributor = Attributor(index, engine=engine)
    attributor.warm()
    queries = list(queries_over_all_rows(attributor, num_queries).values())
    scans = FullScans(stored_pieces(index.view(queries[0].view)))
    attributor.answer(question(queries[0], relative_noise, budget, "certified"))
    reads, products, waits, answers = [], [], [], []
    for query in queries:
        read, product = scans.seconds()
        asked = question(query, relative_noise, budget, "certified")
        seconds, answer = timed(partial(attributor.answer, asked))
        reads.append(1e3 * read)
        products.append(1e3 * product)
        waits.append(1e3 * seconds)
        answers.append(answer)
    unlike = sum(
        rows_of_hits(answer) != rows_of_hits(attributor.answer(question(query, relative_noise, budget, "literal")))
        for query, answer in zip(queries[:num_checked], answers, strict=False)
    )
    selections = [selection_ms(answer) for answer in answers]
    bytes_read = median_bytes_read(answers)
    return {
        "rows": index.num_rows,
        "queries": len(queries),
        "float32_bytes": scans.float32_bytes,
        "read_only_pass_ms": statistics.median(reads),
        "plain_product_ms": statistics.median(products),
        "selection_ms": statistics.median(selections),
        "answer_ms": statistics.median(waits),
        "scans_by_time": median_ratio(selections, products),
        "scans_by_time_of_answer": median_ratio(waits, products),
        "bytes_read": bytes_read,
        "scans_by_bytes": None if bytes_read is None else bytes_read / scans.float32_bytes,
        "rows_scored": statistics.median(answer.search.rows_scored for answer in answers),
        "index_queries": statistics.median(answer.search.index_queries for answer in answers),
        "all_exact": all(answer.search.exact for answer in answers),
        "compared_with_literal": min(num_checked, len(queries)),
        "selections_unlike_literal": unlike,
    }


def measure(
    *,
    sizes: Sequence[int] = SIZES,
    sketch_dim: int = 512,
    decay: float = 0.6,
    dtype: Literal["float32", "float16"] = "float32",
    num_queries: int = 10,
    num_checked: int = 1,
    budget: int = 50,
    relative_noise: float = 10.0,
    engine: str = "faiss",
    folder: Path | None = None,
) -> dict[str, Any]:
    """Build and measure every size.

    Args:
        sizes: Numbers of rows.
        sketch_dim: d.
        decay: α of the spectrum.
        dtype: Storage type, float32 or float16.
        num_queries: Queries asked at every size.
        num_checked: Of how many the picks are compared with the literal strategy's.
        budget: K.
        relative_noise: σ² in units of the mean squared norm.
        engine: The attributor's engine.
        folder: Where the directories are written; None: the system's folder for temporary files.

    Returns:
        The figures of every size, and the largest over the smallest.
    """
    spectrum = Spectrum(sketch_dim, decay)
    lines = []
    for size in sorted(sizes):
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            path = Path(temporary) / f"synthetic-{size}"
            seconds, index = timed(partial(write_index, path, spectrum, size, num_queries=num_queries, dtype=dtype))
            derive(index, spectra=False)
            say(f"{size:,} rows written in {seconds:.0f} s")
            lines.append(
                measure_size(
                    index,
                    num_queries=num_queries,
                    num_checked=num_checked,
                    budget=budget,
                    relative_noise=relative_noise,
                    engine=engine,
                )
            )
            say(f"{size:,} rows: {lines[-1]['scans_by_time']:.2f} plain products an attribution")
    first, last = lines[0], lines[-1]
    by_bytes = None if first["scans_by_bytes"] is None else last["scans_by_bytes"] / first["scans_by_bytes"]
    return {
        "sketch_dim": sketch_dim,
        "decay": decay,
        "dtype": dtype,
        "budget": budget,
        "relative_noise": relative_noise,
        "engine": engine,
        "by_size": lines,
        "growth": {
            "rows": last["rows"] / first["rows"],
            "scans_by_time": last["scans_by_time"] / first["scans_by_time"],
            "scans_by_time_of_answer": last["scans_by_time_of_answer"] / first["scans_by_time_of_answer"],
            "scans_by_bytes": by_bytes,
        },
    }


def settings(report: dict[str, Any]) -> str:
    """Say what the table is about."""
    return (
        f"{report['budget']} picks at relative noise {report['relative_noise']:g} from rows of d = "
        f"{report['sketch_dim']:,} ({report['dtype']}), α = {report['decay']:g}, engine {report['engine']}; "
        f"queries at each size: {report['by_size'][0]['queries']}."
    )


def table(report: dict[str, Any]) -> str:
    """Lay out the figures as the table of docs/benchmarks.md.

    Args:
        report: What ``measure`` returned.

    Returns:
        Markdown.
    """

    def by_bytes(value: float | None) -> str:
        return "not counted" if value is None else f"{value:.2f}"

    lines = [
        [
            f"{figures['rows']:,}",
            by_bytes(figures["scans_by_bytes"]),
            f"{figures['scans_by_time']:.2f}",
            f"{figures['scans_by_time_of_answer']:.2f}",
            f"{figures['selection_ms']:.0f}",
            f"{figures['plain_product_ms']:.0f}",
            f"{figures['rows_scored']:,.0f}",
            f"{figures['index_queries']:g}",
            f"{figures['selections_unlike_literal']} unlike" if figures["selections_unlike_literal"] else "identical",
        ]
        for figures in report["by_size"]
    ]
    growth = report["growth"]
    by_time, of_answer = growth["scans_by_time"], growth["scans_by_time_of_answer"]
    ratio = ["largest / smallest", by_bytes(growth["scans_by_bytes"]), f"{by_time:.2f}", f"{of_answer:.2f}"]
    bar = ["bar", f"≤ {MOST_GROWTH}", f"≤ {MOST_GROWTH}", ""]
    head = [
        "N",
        "scans by bytes",
        "scans by time, selection",
        "scans by time, whole answer",
        "selection, ms",
        "plain product, ms",
        "rows looked at",
        "index queries",
        "picks",
    ]
    blank = [""] * (len(head) - len(bar))
    return markdown_table(head, [*lines, ratio + blank, bar + blank])


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, measure, print.

    Args:
        arguments: Command line; None takes the process's.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), help="numbers of rows")
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--decay", type=float, default=0.6, help="α of the spectrum s_k ∝ k^(−α)")
    parser.add_argument("--dtype", choices=["float32", "float16"], default="float32")
    parser.add_argument("--queries", type=int, default=10)
    parser.add_argument("--checked", type=int, default=1, help="queries compared with the literal strategy")
    parser.add_argument("--budget", type=int, default=50)
    parser.add_argument("--relative-noise", type=float, default=10.0)
    parser.add_argument("--engine", choices=["faiss", "brute_force"], default="faiss")
    parser.add_argument("--folder", type=Path, help="where the directories are written and deleted again")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    options = parser.parse_args(arguments)
    report = Report("benchmarks.growth", vars(options))
    figures = report.finish(
        measure(
            sizes=options.sizes,
            sketch_dim=options.dim,
            decay=options.decay,
            dtype=options.dtype,
            num_queries=options.queries,
            num_checked=options.checked,
            budget=options.budget,
            relative_noise=options.relative_noise,
            engine=options.engine,
            folder=options.folder,
        )
    )
    if options.json:
        print_json(figures)
    else:
        print(table(figures))


if __name__ == "__main__":
    main()
