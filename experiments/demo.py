"""The whole line on real data: train, index, serve, ask over HTTP, draw the answer, stop. This is ``make demo``.

The scalar that is explained is the margin, the log-odds of the predicted digit, because margins of all training
examples compare: "everything the training set knows" then means every row, not only those of one label.

    python -m experiments.demo [--row 12] [--out demo-output]

Everything it writes lies in demo-output/, which git ignores: the index directory, the answer as JSON and as PNG, the
service's log.
"""

import argparse
import io
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console

from experiments.answer_picture import Card, DrawnAnswer, Picture, print_answer, write_png
from service.client import Client
from service.local_server import local_server
from service.schemas.answers import Answer

INDEX = "digits"
DEFAULT_ROW = 12


def build(console: Console, directory: Path) -> None:
    """Train the digits model (or take it from the cache) and build its index with the command line."""
    arguments = ["build", "digits", "--measurement", "margin", "--sketch", "identity", "--overwrite"]
    arguments += ["--out", str(directory)]
    console.print(f"[bold]$ indexer {shlex.join(arguments)}[/bold]", highlight=False, soft_wrap=True)
    result = subprocess.run([sys.executable, "-m", "indexer.cli", *arguments], check=False)
    if result.returncode != 0:
        sys.exit(f"the build ended with status {result.returncode}")


def picture(client: Client, row: int, split: str) -> Picture:
    """Fetch an example's preview from the service as grey pixels."""
    _, content = client.content(INDEX, row, "query" if split == "query" else "train")
    return np.asarray(Image.open(io.BytesIO(content)).convert("L"), dtype=np.uint8)


def ask(client: Client, row: int) -> tuple[Answer, float]:
    """Ask for the ten training examples that inform a test digit most; the answer and its milliseconds."""
    started = time.perf_counter()
    answer = client.attribute(INDEX, {"type": "row", "split": "query", "row": row}, budget=10, relative_noise=1.0)
    return answer, 1000 * (time.perf_counter() - started)


def drawn(client: Client, row: int) -> tuple[Answer, DrawnAnswer]:
    """Ask, put the answer into words and fetch the images that belong to it.

    The question is asked twice: the first answer includes what a fresh process reads once for its indexes.
    """
    _, first = ask(client, row)
    answer, again = ask(client, row)
    query = client.example(INDEX, row, "query")
    num_rows = client.index(INDEX).num_rows
    information, search = answer.information, answer.search
    assert information.available_nats is not None  # no filter was given, so all of D is judged
    assert information.infogain_nats is not None
    assert information.fraction is not None
    assert answer.query.posterior_variance is not None
    predicted, true = answer.query.predicted_label, query.label
    others = sum(hit.represents.count for hit in answer.hits)
    timings = ", ".join(f"{name} {value:.0f}" for name, value in answer.timings_ms.items() if name != "total")
    return answer, DrawnAnswer(
        query=picture(client, row, "query"),
        title=f"The model reads this as a {predicted}. Which training examples inform that?",
        facts=(
            f"{query.id}, a test digit; its true label is {true}",
            f"measurement: margin, the log-odds of {predicted}",
            f"variance of the belief: {answer.query.prior_variance:.3g} before,",
            f"{answer.query.posterior_variance:.3g} after these {len(answer.hits)} examples",
            f"noise: {answer.relative_noise:g} × the mean squared norm",
        ),
        cards=tuple(
            Card(
                picture=picture(client, hit.row, "train"),
                rank=hit.rank,
                example_id=hit.id,
                label=str(hit.label),
                covariance=hit.covariance,
                step_nats=hit.step_nats,
                cumulative_nats=hit.cumulative_nats,
            )
            for hit in answer.hits
        ),
        sentence=(
            f"These {len(answer.hits)} examples carry {100 * information.fraction:.0f} % of what the {num_rows:,} "
            "training examples\n"
            f"know about this prediction: {information.infogain_nats:.3f} of {information.available_nats:.3f} nats."
        ),
        available_nats=information.available_nats,
        footer=(
            "(+) or (−): sign of the covariance. Nats say how much, not which way.",
            *([f"They stand for {others} near-duplicates as well (kernel cosine > 0.95)."] if others else []),
            f"{search.engine} {search.factory}, {'exact' if search.exact else 'not exact'}, {search.strategy}: "
            f"{search.index_queries} index {'query' if search.index_queries == 1 else 'queries'}, "
            f"{search.rows_scored:,} rows scored.",
            f"{first:,.0f} ms over HTTP; asked again, {again:.0f} ms (in it: {timings}).",
            *(f"warning: {warning}" for warning in answer.warnings),
        ),
    )


def main() -> None:
    """Parse the command line and go through the whole line once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--row", type=int, default=DEFAULT_ROW, help="the test digit to ask about (0 to 359)")
    parser.add_argument("--out", type=Path, default=Path("demo-output"), help="folder for everything that is written")
    arguments = parser.parse_args()
    # Two processes on two cores, each with as many threads as cores, slow each other down many times.
    os.environ.setdefault("OMP_NUM_THREADS", str(min(2, os.cpu_count() or 1)))
    started = time.perf_counter()
    console = Console()
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)

    build(console, out / INDEX)
    console.print(f"[bold]$ attribution-service --index {INDEX}={out / INDEX}[/bold]", highlight=False, soft_wrap=True)
    with local_server(out / INDEX, name=INDEX, log=out / "service.log") as url, Client(url) as client:
        console.print(f"[bold]POST {url}/v1/indexes/{INDEX}/attributions[/bold]", highlight=False, soft_wrap=True)
        answer, to_draw = drawn(client, arguments.row)
    (out / "answer.json").write_text(answer.model_dump_json(indent=2) + "\n", encoding="utf-8")
    write_png(out / "answer.png", to_draw)
    print_answer(console, to_draw)
    console.print(f"\nThe service has stopped. {time.perf_counter() - started:.0f} s in all. Written:", highlight=False)
    console.print(f"{out / 'answer.png'} (this picture), {out / 'answer.json'}", highlight=False)


if __name__ == "__main__":
    main()
