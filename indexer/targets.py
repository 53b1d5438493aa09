"""What the evidence of a noise is taken of: the targets that classification, recast as regression, gives every row."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sketchstore.errors import UnknownMetadataError, listed
from sketchstore.examples import METADATA
from sketchstore.manifest import NO_LABEL, OWN
from sketchstore.reader import Index
from sketchstore.view import View

ONE_HOT, RESIDUAL = "one-hot", "residual"


class TargetError(ValueError):
    """An index has no targets that its noise could be tuned on."""


def default_targets(index: Index) -> str:
    """Name the targets that an index is tuned on.

    Where rows compare within a label only, their one-hot targets are one constant, which every small noise explains
    perfectly; there the model's residuals take their place.

    Args:
        index: The open index.

    Returns:
        ``one-hot`` or ``residual``.
    """
    return RESIDUAL if OWN in index.views else ONE_HOT


def targets_of(index: Index, view: View, label: int | None, targets: str) -> Tensor:
    r"""Give the comparable rows the target of what is measured of them.

    ``one-hot``: with the mean-centred labels :math:`Y_{ik} = [y_i = k] - n_k / n`, the logit of class k is regressed on
    column k. Hence a class's view has Y_ik for every row i; a view that measures each row at its own label has the
    entry of that label, 1 − n_y/n. (For the margin, the logit of the label minus those of the others, it is that times
    a constant, which a profiled amplitude takes up.)

    ``residual``: what of the label the model has left open, 1 − p_y, centred among the comparable rows.

    ``metadata.NAME``: numbers that the examples carry, centred over all rows.

    Args:
        index: The open index.
        view: The view.
        label: The label of the rows, None where all rows of the view compare.
        targets: Which of these.

    Returns:
        float64, one for each row of the partition.

    Raises:
        TargetError: If there are no such targets.
    """
    rows = view.partition_rows(label)
    if targets.startswith(METADATA):
        return _of_metadata(index, targets.removeprefix(METADATA))[rows]
    if targets not in (ONE_HOT, RESIDUAL):
        raise TargetError(f"--targets {targets!r} must be one-hot, residual or metadata.NAME")
    if index.manifest.measurement.name == "custom":
        raise TargetError(
            f"view {view.name!r} of index {index.name!r} measures the recipe's own function, for which labels are no "
            "target. Name a metadata that holds the value it predicts, with --targets metadata.NAME"
        )
    labels = _labels(index)
    if targets == RESIDUAL:
        if view.name.isdigit() or "one_minus_p" not in index.manifest.columns:
            raise TargetError(
                f"index {index.name!r} has no residuals for view {view.name!r}: they are the column one_minus_p, of "
                "the row's own label. Use --targets one-hot"
            )
        left = index.column("one_minus_p").double()[rows]
        return left - left.mean()
    if view.name.isdigit():
        hot = (labels == int(view.name)).double()
        return (hot - hot.mean())[rows]
    return (1 - torch.bincount(labels).double()[labels] / index.num_rows)[rows]


def _labels(index: Index) -> Tensor:
    """Give the labels of all rows.

    Returns:
        int64 [n].

    Raises:
        TargetError: If a row has none.
    """
    unlabelled = torch.nonzero(index.labels == NO_LABEL).squeeze(1)
    if unlabelled.numel():
        raise TargetError(
            f"{unlabelled.numel()} of {index.num_rows} rows of index {index.name!r} have no label (the first is "
            f"{index.examples.id(int(unlabelled[0]))!r}), and the evidence needs a target for every row: build it with "
            "labels, or name a metadata of numbers with --targets metadata.NAME"
        )
    return index.labels


def _of_metadata(index: Index, name: str) -> Tensor:
    """Read a target from the examples table.

    Returns:
        float64 [n], centred.

    Raises:
        UnknownMetadataError: If there is no such metadata.
        TargetError: If it holds no number for a row.
    """
    names = index.examples.metadata_names
    if name not in names:
        raise UnknownMetadataError(f"--targets metadata.{name}: the metadata of {index.name!r} are {listed(names)}")
    values = index.examples.column(METADATA + name).to_pylist()
    for row, value in enumerate(values):
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise TargetError(
                f"--targets metadata.{name}: example {index.examples.id(row)!r} has {value!r}; every row must have a "
                "number"
            )
    found = torch.tensor(values, dtype=torch.float64)
    return found - found.mean()
