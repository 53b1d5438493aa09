"""How often the model of an index is right: the first thing to know of it, from the predictions that a build stores."""

from __future__ import annotations

from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq

from sketchstore.manifest import NO_LABEL

TABLES = {"train": "examples.parquet", "query": "queries/examples.parquet"}


def accuracies(content: Path) -> dict[str, float]:
    """Share of the labelled rows whose predicted label is their own, for each split that has both.

    Args:
        content: An index directory, or what becomes one.

    Returns:
        By split, ``train`` and ``query``; empty for a model that does not classify.
    """
    found = {split: _accuracy(content / file) for split, file in TABLES.items() if (content / file).is_file()}
    return {split: share for split, share in found.items() if share is not None}


def _accuracy(table: Path) -> float | None:
    columns = pq.read_table(table, columns=["label", "predicted_label"])
    judged = columns.filter(pc.and_(pc.not_equal(columns["label"], NO_LABEL), pc.is_valid(columns["predicted_label"])))
    if not len(judged):
        return None
    return float(pc.mean(pc.equal(judged["label"], judged["predicted_label"]).cast("float64")).as_py())
