"""Which stored queries a coreset can inform together: those that meet the same rows of the same view."""

from indexer.attributor.errors import EmptyPoolError, LabelMismatchError, MethodUnavailableError, UnknownRowError
from indexer.attributor.pool import partition_label, query_view
from indexer.attributor.queries import resolve_query_row
from indexer.attributor.questions import QuerySketch
from sketchstore.reader import Index


def comparable_queries(index: Index, num_queries: int | None, label: int | None) -> list[QuerySketch]:
    """Take stored queries that meet the same rows of the same view, each explained as the model predicts it.

    Args:
        index: The index.
        num_queries: The first so many; None: all.
        label: Only queries that the model gives this label; None: all.

    Returns:
        The queries, at least one.

    Raises:
        UnknownRowError: If the index stores no queries, or fewer than asked for.
        EmptyPoolError: If none has the label.
        MethodUnavailableError: If the measurement has no classes and a label was given.
        LabelMismatchError: If they cannot be compared with one another.
    """
    if index.queries is None:
        raise UnknownRowError(
            f"index {index.name!r} has no stored queries; build it with --num-queries.", pointer="/queries", allowed=[]
        )
    if num_queries is not None and (isinstance(num_queries, bool) or not 1 <= num_queries <= index.queries.count):
        raise UnknownRowError(
            f"{num_queries} queries were asked for; the index stores {index.queries.count}. Ask for 1 to "
            f"{index.queries.count}, or for all.",
            pointer="/queries",
            allowed={"ge": 1, "le": index.queries.count},
        )
    if label is not None and index.manifest.measurement.name == "custom":
        raise MethodUnavailableError(
            "a label was given, but this index's measurement is not of a class. Leave it out.", pointer="/label"
        )
    predicted = [index.queries.predicted_label(row) for row in range(index.queries.count)]
    rows = [row for row in range(index.queries.count) if label is None or predicted[row] == label]
    if not rows:
        raise EmptyPoolError(
            f"the model gives label {label} to none of the stored queries.",
            pointer="/label",
            allowed=sorted({known for known in predicted if known is not None}),
        )
    queries = [resolve_query_row(index, row) for row in rows[:num_queries]]
    partitions = {(query.view, partition_label(query_view(index, query), query)) for query in queries}
    if len(partitions) > 1:
        labels = sorted({query.label for query in queries if query.label is not None})
        raise LabelMismatchError(
            f"the queries are about {len(labels)} classes, and this index ({index.manifest.measurement.name}) compares "
            "rows with queries of one class only. Choose one of them (--label), or build the index with --measurement "
            "margin.",
            pointer="/label",
            allowed=labels,
        )
    return queries
