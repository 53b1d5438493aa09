"""Compares rows of every batch with the same rows collated and sketched alone: what a row gives is to be its own.

Few rows decide at the beginning how gradients are taken (`layers/route.py`), and `indexer check` looks at sixteen. A
later batch may be padded where theirs were not, put in another order, or cut up by the model itself.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from indexer.batches import Batch
from indexer.featurise import Featuriser, SketchedBatch
from indexer.representation_place import OTHER_BATCH_ROUNDING, is_same

TOLERANCE = 0.02
"""Relative change of a row's sketch with its batch, far above rounding and far below another row's gradient."""
SHORT_TOLERANCE = 0.5
"""The same for passes in a shorter type, where a ReLU changes sides more often."""
REPRESENTATION_ROUNDING = 0.01
"""The same for a representation, in units of its largest number: a short type's activations round to so much."""
ROWS_A_LOOK = 64
"""One of so many rows of a batch is looked at, at least one: some percent of the time of a pass."""
MOST_LOOKS = 4
"""At most so many rows of a batch; as many more where one of them differs."""
LEAST_NORM = 1e-3
"""A sketch shorter than this part of the usual length is compared by that part: what it has may be rounding."""


@dataclass(frozen=True)
class Compared:
    """What rows alone say of a block.

    Attributes:
        given_agrees: Whether what the watched module was given is the same, too.
        changed: What is wrong with a row of the block; None where all is well.
    """

    given_agrees: bool
    changed: Changed | None = None


@dataclass(frozen=True)
class Changed:
    """A row whose sketch is not the one that plain autograd gives of the row alone.

    Attributes:
        row: The row.
        beside: Rows of its batch.
        change: How far the sketches are apart, in units of their norm.
        by_itself: Whether the row's batch-mates have no part in it: computed alone it is wrong, too.
    """

    row: int
    beside: int
    change: float
    by_itself: bool


def looked_at(rows: int, drawn_by: str) -> list[int]:
    """Choose rows of a batch to look at.

    Args:
        rows: Rows of the batch.
        drawn_by: Decides which.

    Returns:
        Places in the batch, at most `MOST_LOOKS`; none where there is one row only.
    """
    return random.Random(drawn_by).sample(range(rows), _looks(rows)) if rows > 1 else []


def compare_alone(
    featuriser: Featuriser,
    found: SketchedBatch,
    labels: Tensor,
    view: str,
    batches: Sequence[Sequence[int]],
    alone: Callable[[int], Batch],
    drawn_by: int,
) -> Compared:
    """Compare rows of every batch of a block with the rows alone.

    Args:
        featuriser: What sketches.
        found: What was made of the block.
        labels: Labels of its rows, shape [b].
        view: The view.
        batches: Which rows of the block went together.
        alone: Gives the collated inputs of one row of the block.
        drawn_by: Number that decides which rows are looked at, such as the block's first row.

    Returns:
        What was found; of the first batch with two rows that differ, since a single one may sit on a kink, a ReLU at
        zero, where rounding decides.
    """
    tolerance = TOLERANCE if featuriser.compute_dtype == "float32" else SHORT_TOLERANCE
    dense = featuriser.spec.family in ("rademacher", "gaussian")  # a row alone costs as many random numbers as a batch
    least = LEAST_NORM * float(found.sketches.square().sum(1).mean().sqrt())
    given_agrees = True

    def change_of(sketch: Tensor, plain: Tensor) -> float:
        off = float((sketch - plain).norm())
        return off / max(float(plain.norm()), least) if off else 0.0

    for number, (beside, rows) in enumerate(_looked_through(batches)):
        looks = 1 if dense else _looks(len(rows))
        drawn = random.Random(f"{drawn_by} {number}").sample(rows, min(looks + MOST_LOOKS, len(rows)))
        changes: list[tuple[int, float, Batch, Tensor]] = []
        for looked, row in enumerate(drawn if len(rows) > 1 else ()):
            if looked >= looks and not changes:
                break
            inputs = alone(row)
            kept = featuriser.sketch_plainly(inputs, labels[row : row + 1], view)
            change = change_of(found.sketches[row], kept.sketches[0])
            if change > tolerance:
                changes.append((row, change, inputs, kept.sketches[0]))
            if found.given is not None:
                here = found.given[row : row + 1]
                given_agrees &= kept.given is not None and is_same(kept.given, here, OTHER_BATCH_ROUNDING)
        if len(changes) > 1:
            row, change, inputs, plain = changes[0]
            by_itself = change_of(featuriser.sketch_batch(inputs, labels[row : row + 1], view)[0], plain) > tolerance
            return Compared(given_agrees, Changed(row, beside, change, by_itself))
    return Compared(given_agrees)


def _looked_through(batches: Sequence[Sequence[int]]) -> list[tuple[int, list[int]]]:
    # Rows of which a sample is looked at, with the rows of their batch; those that went alone are one such lot.
    single = [row for batch in batches if len(batch) == 1 for row in batch]
    lots = [(len(batch), list(batch)) for batch in batches if len(batch) > 1]
    return [*lots, (1, single)] if single else lots


def _looks(rows: int) -> int:
    return max(1, min(MOST_LOOKS, rows // ROWS_A_LOOK))
