"""What a manifest says of its rows: how many per label, and the mean squared norms that are the unit of noise."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sketchstore.arrays import Array
from sketchstore.kept import Kept, Ranges
from sketchstore.manifest import NO_LABEL
from sketchstore.norms import mean_squared_norms


def state_rows(fields: dict[str, Any], removed: Ranges, labels: Array, norms: Mapping[str, Array]) -> None:
    """Set what a manifest says of its rows.

    Args:
        fields: The manifest's fields as JSON values, changed in place; ``views`` must have all views.
        removed: Removed ranges of places.
        labels: Label of every place, int64.
        norms: Squared norm of every place by view, float64, in squared units of the measurement.
    """
    kept = Kept(len(labels) - sum(stop - first for first, stop in removed), removed)
    left = kept.take(labels)
    values, counts = np.unique(left[left != NO_LABEL], return_counts=True)
    fields["removed"] = [list(each) for each in removed]
    fields["num_rows"] = kept.num_rows
    fields["labels"] = {
        **fields["labels"],
        "counts": {str(value): int(count) for value, count in zip(values, counts, strict=True)},
    }
    for name, view in fields["views"].items():
        mean, by_label = mean_squared_norms(kept.take(norms[name]), left)
        view["mean_squared_norm"], view["mean_squared_norm_by_label"] = mean, by_label


def united_ranges(parts: Sequence[tuple[int, Ranges]]) -> tuple[tuple[int, int], ...]:
    """Ranges of several runs of places put one after the other.

    Args:
        parts: For each run, how many places it has and which of them are removed.

    Returns:
        Ranges over all places, those that touch joined.
    """
    joined: list[tuple[int, int]] = []
    offset = 0
    for num_places, removed in parts:
        for first, stop in removed:
            if joined and joined[-1][1] == offset + first:
                joined[-1] = joined[-1][0], offset + stop
            else:
                joined.append((offset + first, offset + stop))
        offset += num_places
    return tuple(joined)
