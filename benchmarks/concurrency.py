"""What does an attribution cost when many clients ask one index at once, and how long does each of them wait?

1, 2, 4, … clients, each asking again as soon as it is answered, share one list of questions: first as threads around
one attributor, then over real HTTP. Between the runs the literal loop of as many requests, batched into one FAISS
search a step, is timed, and so is a plain product |Φ r|. Every answer must be the one that was given alone, in every
field but the timings.

    python -m benchmarks.concurrency --index indexes/fashion-mnist --json
"""

import argparse
import contextlib
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from benchmarks.asking import index_facts, queries_over_all_rows, question
from benchmarks.clients import Ask, Plain, Run, ask_all, plain, unlike
from benchmarks.literal_loop import compare_picks, flat_index, literal_loops, rows_of
from benchmarks.measuring import FullScans, Report, markdown_table, print_json, quantile, say, timed
from indexer.attributor import Attributor
from service.client import Client
from service.local_server import local_server
from sketchstore.reader import Index, open_index

CLIENTS = (1, 2, 4, 8, 16, 32)
#: Bars at 32 clients.
MOST_PASSES, LEAST_SPEED_UP, MOST_P99_OVER_P50 = 2.5, 12.0, 3.0
#: A slow machine shall show in the figures, not as refusals.
SERVER_FLAGS = ("--queue", "1024", "--deadline-seconds", "3600", "--log-level", "warning")


@contextlib.contextmanager
def http_clients(index: Index, most: int, flags: Sequence[str]) -> Iterator[list[Client]]:
    """Serve an index under its own name, and connect clients.

    Args:
        index: The index.
        most: How many clients.
        flags: Further flags of the service.

    Yields:
        The clients.
    """
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(local_server(index.path, *SERVER_FLAGS, *flags, name=index.name))
        yield [stack.enter_context(Client(url, timeout=3600.0)) for _ in range(most)]


def over_http(client: Client, index: Index, rows: Sequence[int], options: dict[str, Any]) -> Ask:
    """Make a client ask the questions that ``benchmarks.asking.question`` makes.

    Args:
        client: The client.
        index: The index.
        rows: The stored query of each question.
        options: Budget and noise.

    Returns:
        What the client calls with a question's number.
    """
    fixed: dict[str, Any] = {"strategy": "certified", "rescore": ["infogain"], "available": False, **options}
    return lambda number: client.attribute(index.name, {"type": "row", "split": "query", "row": rows[number]}, **fixed)


def summary(runs: Sequence[Run], products: Sequence[float], clients: int, alone: Sequence[Plain]) -> dict[str, Any]:
    """Summarise the rounds at one number of clients.

    Args:
        runs: A run a round.
        products: Seconds of a plain product in the same rounds.
        clients: How many clients asked.
        alone: The answers given alone.

    Returns:
        The figures of one line of the table.
    """
    each = [run.seconds / len(run.answers) for run in runs]
    p50 = [quantile(run.waits, 0.5) for run in runs]
    p99 = [quantile(run.waits, 0.99) for run in runs]
    compared = [unlike([plain(answer) for answer in run.answers], alone) for run in runs]
    return {
        "clients": clients,
        "attributions_per_second": 1 / statistics.median(each),
        "passes_per_attribution": statistics.median(
            seconds / product for seconds, product in zip(each, products, strict=True)
        ),
        "p50_ms": 1e3 * statistics.median(p50),
        "p99_ms": 1e3 * statistics.median(p99),
        "p99_over_p50": statistics.median(late / middle for late, middle in zip(p99, p50, strict=True)),
        "answers": sum(len(run.answers) for run in runs),
        "answers_unlike_alone": sum(count for count, _ in compared),
        "fields_unlike_alone": sorted({name for _, names in compared for name in names}),
    }


@dataclass
class Rounds:
    """What all rounds saw.

    Attributes:
        runs: By way and number of clients, a run a round.
        products: Seconds of a plain product before the runs of a number of clients, round by round.
        literal_seconds: Of the batched literal loop, round by round.
        literal_products: Seconds of a plain product before it.
        literal_picks: Its picks.
    """

    runs: dict[str, dict[int, list[Run]]]
    products: dict[int, list[float]]
    literal_seconds: list[float] = field(default_factory=list)
    literal_products: list[float] = field(default_factory=list)
    literal_picks: list[list[int]] = field(default_factory=list)


def take_rounds(
    ways: dict[str, list[Ask]],
    literal: Callable[[], list[list[int]]],
    scans: FullScans,
    clients: Sequence[int],
    num_questions: int,
    rounds: int,
) -> Rounds:
    """Run every number of clients every way, and the batched literal loop, in turns.

    Args:
        ways: For each way, what each client calls.
        literal: The batched literal loop.
        scans: The unit.
        clients: Numbers of clients.
        num_questions: Questions of a run.
        rounds: How often.

    Returns:
        Times and answers.
    """
    taken = Rounds({way: {number: [] for number in clients} for way in ways}, {number: [] for number in clients})
    for turn in range(1, rounds + 1):
        for number in clients:
            taken.products[number].append(scans.seconds()[1])
            for way, asking in ways.items():
                run = ask_all(asking[:number], num_questions)
                taken.runs[way][number].append(run)
                say(f"round {turn}, {way}, {number} clients: {num_questions / run.seconds:.2f} a second")
        taken.literal_products.append(scans.seconds()[1])
        seconds, taken.literal_picks = timed(literal)
        taken.literal_seconds.append(seconds)
        say(f"round {turn}, literal loop: {len(taken.literal_picks) / seconds:.2f} a second")
    return taken


def measure(
    index: Index,
    *,
    clients: Sequence[int] = CLIENTS,
    num_questions: int = 128,
    rounds: int = 3,
    budget: int = 50,
    relative_noise: float = 1.0,
    batched: int = 32,
    engine: str = "faiss",
    server_flags: Sequence[str] | None = (),
) -> dict[str, Any]:
    """Measure every number of clients, in process and over HTTP.

    Args:
        index: An open index with stored queries, all of whose rows are comparable.
        clients: Numbers of clients.
        num_questions: Questions of a run, the same at every number of clients; fewer where the index stores fewer.
        rounds: How often everything is run.
        budget: K.
        relative_noise: σ² in units of the mean squared norm.
        batched: Requests in one batch of the literal loop.
        engine: The engine, of the attributor and of the service.
        server_flags: Further flags of the service; None leaves HTTP out.

    Returns:
        The figures.
    """
    clients = sorted(set(clients))
    attributor = Attributor(index, engine=engine)
    attributor.warm()
    queries = queries_over_all_rows(attributor, num_questions)
    questions = [question(query, relative_noise, budget, "certified") for query in queries.values()]
    view = index.view(questions[0].query.view)
    flat = flat_index(view)
    scans = FullScans([rows_of(flat)])
    noise_variance = relative_noise * view.mean_squared_norm()
    alone = [plain(attributor.answer(each)) for each in questions]
    together = [each.query.sketch.numpy() for each in questions[:batched]]
    ways: dict[str, list[Ask]] = {"threads": [lambda number: attributor.answer(questions[number])] * clients[-1]}
    with contextlib.ExitStack() as stack:
        if server_flags is not None:
            flags = ("--engine", engine, *server_flags)
            served = http_clients(index, clients[-1], flags)
            options = {"budget": budget, "relative_noise": relative_noise}
            ways["http"] = [over_http(client, index, list(queries), options) for client in stack.enter_context(served)]
        taken = take_rounds(
            ways,
            lambda: literal_loops(flat, together, noise_variance, budget),
            scans,
            clients,
            len(questions),
            rounds,
        )
    verdicts = [
        compare_picks(flat, query, noise_variance, [hit["row"] for hit in answer["hits"]], picks)
        for query, answer, picks in zip(together, alone[:batched], taken.literal_picks, strict=True)
    ]
    each = [seconds / len(together) for seconds in taken.literal_seconds]
    passes = [seconds / product for seconds, product in zip(each, taken.literal_products, strict=True)]
    return {
        "index": index_facts(index, view),
        "engine": engine,
        "budget": budget,
        "relative_noise": relative_noise,
        "questions": len(questions),
        "rounds": rounds,
        "plain_product_ms": 1e3
        * statistics.median([*taken.literal_products, *chain.from_iterable(taken.products.values())]),
        "threads": [],
        "http": [],
        **{
            way: [summary(runs[number], taken.products[number], number, alone) for number in clients]
            for way, runs in taken.runs.items()
        },
        "literal_batched": {
            "requests": len(together),
            "rows_a_search": 2 * len(together),
            "seconds": statistics.median(taken.literal_seconds),
            "attributions_per_second": 1 / statistics.median(each),
            "passes_per_attribution": statistics.median(passes),
            "selections_unlike": sum(not verdict.same for verdict in verdicts),
            "rounding_ties": sum(verdict.rounding_ties for verdict in verdicts),
        },
        "speed_up_over_literal_batched": {
            way: statistics.median(
                literal * len(run.answers) / run.seconds for literal, run in zip(each, runs[clients[-1]], strict=True)
            )
            for way, runs in taken.runs.items()
        },
    }


def settings(report: dict[str, Any]) -> str:
    """Say what the table is about."""
    index = report["index"]
    return (
        f"{report['budget']} picks at relative noise {report['relative_noise']:g} from {index['rows']:,} rows of d = "
        f"{index['sketch_dim']:,} ({index['dtype']}), engine {report['engine']}; "
        f"questions of a run: {report['questions']}, rounds: {report['rounds']}. "
        f"A plain product took {report['plain_product_ms']:.1f} ms."
    )


def table(report: dict[str, Any]) -> str:
    """Lay out the figures as the table of docs/benchmarks.md.

    Args:
        report: What ``measure`` returned.

    Returns:
        Markdown.
    """
    lines = []
    for way, title in (("threads", "in process"), ("http", "over HTTP")):
        for figures in report[way]:
            most = figures is report[way][-1]
            speed_up = f"{report['speed_up_over_literal_batched'][way]:.1f}" if most else ""
            lines.append(
                [
                    f"{title}, {figures['clients']}",
                    f"{figures['passes_per_attribution']:.2f}",
                    speed_up,
                    f"{figures['attributions_per_second']:.2f}",
                    f"{figures['p50_ms']:.0f}",
                    f"{figures['p99_ms']:.0f}",
                    f"{figures['p99_over_p50']:.2f}",
                    f"{figures['answers_unlike_alone']} of {figures['answers']} unlike"
                    if figures["answers_unlike_alone"]
                    else "identical",
                ]
            )
    batched = report["literal_batched"]
    passes, a_second = batched["passes_per_attribution"], batched["attributions_per_second"]
    lines.append(
        [
            f"literal loop of {batched['requests']} requests, {batched['rows_a_search']} rows a search",
            f"{passes:.1f}",
            "1",
            f"{a_second:.2f}",
            "",
            "",
            "",
            f"{batched['selections_unlike']} unlike" if batched["selections_unlike"] else "identical",
        ]
    )
    limits = ["bar at 32", f"≤ {MOST_PASSES:g}", f"≥ {LEAST_SPEED_UP:g}", "", "", "", f"≤ {MOST_P99_OVER_P50:g}", ""]
    head = [
        "clients",
        "float32 passes an attribution",
        "speed-up over the batched literal loop",
        "attributions a second",
        "p50, ms",
        "p99, ms",
        "p99 / p50",
        "answers",
    ]
    return markdown_table(head, [*lines, limits])


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, measure, print.

    Args:
        arguments: Command line; None takes the process's.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--index", type=Path, required=True, help="an index whose rows are all comparable, with queries"
    )
    parser.add_argument("--clients", type=int, nargs="+", default=list(CLIENTS))
    parser.add_argument("--questions", type=int, default=128, help="questions of a run, shared by the clients")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--budget", type=int, default=50)
    parser.add_argument("--relative-noise", type=float, default=1.0)
    parser.add_argument("--batched", type=int, default=32, help="requests in one batch of the literal loop")
    parser.add_argument("--engine", choices=["faiss", "brute_force"], default="faiss")
    parser.add_argument("--no-http", action="store_true", help="threads in process only")
    parser.add_argument("--server-flags", default="", help="further flags of the service, as one word: '--workers 4'")
    parser.add_argument("--plot", type=Path, help="also draw throughput against clients into this PNG")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    options = parser.parse_args(arguments)
    report = Report("benchmarks.concurrency", vars(options))
    figures = report.finish(
        measure(
            open_index(options.index, check="sizes"),
            clients=options.clients,
            num_questions=options.questions,
            rounds=options.rounds,
            budget=options.budget,
            relative_noise=options.relative_noise,
            batched=options.batched,
            engine=options.engine,
            server_flags=None if options.no_http else options.server_flags.split(),
        )
    )
    if options.plot is not None:
        from benchmarks.plots import plot_concurrency

        plot_concurrency(figures, options.plot)
    if options.json:
        print_json(figures)
    else:
        print(table(figures))


if __name__ == "__main__":
    main()
