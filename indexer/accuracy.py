"""How often the model of an index is right: the first thing to know of it, from the predictions that a build stores."""

from __future__ import annotations

from pathlib import Path

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
    columns = pq.read_table(table, columns=["label", "predicted_label"]).to_pydict()
    pairs = zip(columns["label"], columns["predicted_label"], strict=True)
    judged = [own == predicted for own, predicted in pairs if own != NO_LABEL and predicted is not None]
    return sum(judged) / len(judged) if judged else None
