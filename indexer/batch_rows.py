"""How many rows go through model and sketch together, and which: from a memory budget, recorded before the first row.

A block's rows are sorted by length where the recipe gives one, cut into batches and put back into their order, so that
short sequences are not padded to the longest of the block. All of it follows from the block alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from indexer.batches import Batch, map_tensors, move, take_rows
from indexer.featurise import Featuriser
from indexer.jacobians import PROBE_ROWS, TangentFeatures
from indexer.reading import CollatedRows, ExampleReader

MOST_ROWS = 1024
"""More rows than this make no product faster."""
BATCHES_OF_LENGTHS = 8
"""Where examples have lengths, a block falls into at least so many batches: one batch alone would pad all to one."""
LENGTH_SAMPLE = 64
"""Evenly spaced training rows whose longest stands for the longest of all when batches are planned."""
CUDA_BUDGET_SHARE = 4
"""A GPU's budget is this part of its memory, rounded down to whole GiB."""
GIB = 1024**3


def default_budget(device: str, on_cpu: int) -> int:
    """Memory that a batch may take where the user names none.

    Args:
        device: ``cpu`` or ``cuda``.
        on_cpu: The CPU's, in bytes: the same on every machine, so that the same rows go together everywhere.

    Returns:
        Bytes.
    """
    if device != "cuda":
        return on_cpu
    total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    return max(on_cpu, int(total) // CUDA_BUDGET_SHARE // GIB * GIB)


def row_bytes(features: TangentFeatures, inputs: Batch, targets: Tensor, sketch_dim: int) -> int:
    """What one row holds while its batch is computed: its inputs, what autograd keeps for it, and its sketch.

    Args:
        features: The tangent features.
        inputs: A batch of one example, the longest there is, on the model's device.
        targets: Its target, shape [1].
        sketch_dim: d.

    Returns:
        Bytes.
    """
    sizes: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        sizes.append(tensor.numel() * tensor.element_size())
        return tensor

    map_tensors(note, inputs)
    return sum(sizes) + features.activation_bytes(inputs, targets) + 4 * sketch_dim


def rows_for(budget_bytes: int, bytes_of_a_row: int, block_rows: int, *, lengths: bool) -> int:
    """Rows of a batch: the largest power of two that fits into the budget.

    Args:
        budget_bytes: What a batch may take.
        bytes_of_a_row: What one row takes (`row_bytes`).
        block_rows: Rows of a block.
        lengths: Whether the recipe gives the length of its examples.

    Returns:
        At least 1, at most ``block_rows`` and `MOST_ROWS`; a power of two where the block does not decide.
    """
    fit = max(1, budget_bytes // max(1, bytes_of_a_row))
    rows: int = 1 << (fit.bit_length() - 1)
    most = max(1, block_rows // BATCHES_OF_LENGTHS) if lengths else block_rows
    return min(rows, most, MOST_ROWS)


def plan_batches(
    featuriser: Featuriser,
    train: ExampleReader,
    views: Sequence[str],
    num_outputs: int,
    *,
    block_rows: int,
    budget_bytes: int,
    wanted: int | None = None,
) -> int:
    """Fix, from the same rows in every process, the routes of the gradients and the rows that go together.

    Args:
        featuriser: What sketches; told the rows.
        train: The training rows.
        views: The measurement's views.
        num_outputs: C, or 1 for a scalar output.
        block_rows: Rows of a block.
        budget_bytes: What a batch may take.
        wanted: The user's own number of rows, None to find it.

    Returns:
        Rows that go through model and sketch together.
    """
    rows, has_lengths = _probe_rows(train)
    labels = rows.labels.clamp(0, num_outputs - 1)
    held = 1
    try:
        for view in views:
            featuriser.probe(rows.inputs, labels, view)
        one = move(take_rows(rows.inputs, 0, 1), featuriser.device)
        targets = featuriser.measurement.targets(views[0], labels[:1].to(featuriser.device))
        held = row_bytes(featuriser.features, one, targets, featuriser.spec.dim)
    except (MemoryError, RuntimeError, TypeError, ValueError):
        pass  # what is wrong with the model or the row is said where rows are sketched, with the row's number
    found = rows_for(budget_bytes, held, block_rows, lengths=has_lengths)
    featuriser.compute_rows = found if wanted is None else min(wanted, block_rows)
    return featuriser.compute_rows


def _probe_rows(train: ExampleReader) -> tuple[CollatedRows, bool]:
    # From all over the training set, so that they are unlike each other; the longest first, for it is measured.
    last = train.num_rows - 1
    spread = list(dict.fromkeys(last * part // (PROBE_ROWS - 1) for part in range(PROBE_ROWS)))
    first = train.collate_chosen(spread)
    if train.lengths(first) is None:
        return first, False
    step = max(1, train.num_rows // LENGTH_SAMPLE)
    sample = [(train.lengths(train.collate(row, row + 1)) or [0], row) for row in range(0, train.num_rows, step)]
    longest = max(sample)[1]
    return train.collate_chosen([longest, *(row for row in spread if row != longest)][:PROBE_ROWS]), True


def batches_of(rows: int, at_once: int, lengths: Sequence[int] | None = None) -> list[list[int]]:
    """Cut a block into batches.

    Args:
        rows: Rows of the block.
        at_once: Rows of a batch; the last may have fewer.
        lengths: Length of each row; None keeps them in order.

    Returns:
        Positions within the block, batch by batch: rows of about one length together, equal lengths in row order.
    """
    order = list(range(rows)) if lengths is None else sorted(range(rows), key=lambda row: (lengths[row], row))
    return [order[start : start + at_once] for start in range(0, rows, at_once)]
