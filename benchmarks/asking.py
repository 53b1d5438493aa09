"""The questions that the speed of approximate InfoGain is measured with, and what is read off their answers."""

import statistics
from collections.abc import Sequence
from typing import Any

from indexer.attributor import Answer, Attributor, QuerySketch, Question
from sketchstore.reader import Index
from sketchstore.view import View


def queries_over_all_rows(attributor: Attributor, count: int) -> dict[int, QuerySketch]:
    """Take stored queries, spread evenly, that are compared with every row of one view.

    Args:
        attributor: The attributor.
        count: How many; fewer where the index stores fewer.

    Returns:
        Queries of one view by their row in the query set.

    Raises:
        SystemExit: If the index stores no queries, or compares rows within a label only.
    """
    index = attributor.index
    if index.queries is None:
        raise SystemExit(f"{index.path} stores no queries; build it with --num-queries")
    stored = index.queries.count
    rows = [place * stored // min(count, stored) for place in range(min(count, stored))]
    asked = {row: attributor.resolve_query_row(row) for row in rows}
    view = asked[rows[0]].view
    if index.view(view).comparable != "all":
        raise SystemExit(
            f"{index.path} compares rows within a label; a selection over all rows needs the margin, a class logit or "
            "another measurement that compares all"
        )
    return {row: query for row, query in asked.items() if query.view == view}


def index_facts(index: Index, view: View) -> dict[str, Any]:
    """Name an index and say how large one float32 scan of a view is."""
    return {
        "name": index.name,
        "revision": index.revision,
        "rows": index.num_rows,
        "sketch_dim": index.sketch_dim,
        "dtype": view.storage_dtype.name,
        "float32_bytes": 4 * index.num_rows * index.sketch_dim,
    }


def question(query: QuerySketch, relative_noise: float, budget: int, strategy: str) -> Question:
    """Ask for the selection and its InfoGain, without the InfoLoss and the total that other benchmarks time."""
    return Question(
        query,
        "infogain_approx",
        budget,
        relative_noise=relative_noise,
        strategy=strategy,
        rescore=("infogain",),
        available=False,
    )


def rows_of_hits(answer: Answer) -> list[int]:
    """Return the selected rows in order."""
    return [hit.row for hit in answer.hits]


def selection_ms(answer: Answer) -> float:
    """Return the time from the question to the last pick."""
    return answer.timings_ms["prepare"] + answer.timings_ms["select"]


def median_bytes_read(answers: Sequence[Answer]) -> float | None:
    """Return the median of the bytes that answers say they read; None where they do not count them."""
    counted = [getattr(answer.search, "bytes_read", None) for answer in answers]
    return statistics.median([count for count in counted if count is not None]) if None not in counted else None
