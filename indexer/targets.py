"""What the evidence of a noise is taken of: the targets that classification, recast as regression, gives every row."""

from __future__ import annotations

import torch
from torch import Tensor

from sketchstore.errors import UnknownMetadataError, listed
from sketchstore.examples import METADATA
from sketchstore.manifest import NO_LABEL
from sketchstore.reader import Index

ONE_HOT = "mean-centred one-hot"


class TargetError(ValueError):
    """An index has no targets that its noise could be tuned on."""


def targets_of(index: Index, view: str, metadata: str | None = None) -> Tensor:
    r"""Give every row the target of what is measured of it.

    With the mean-centred one-hot labels :math:`Y_{ik} = [y_i = k] - n_k / n`, the logit of class k is regressed on
    column k. Hence a class's view has targets Y_ik for all rows i; a view that measures each row at its own label has
    the entry of that label, 1 − n_y/n. (For the margin, the logit of the label minus those of the others, the target is
    that times a constant, which a profiled amplitude takes up.)

    Args:
        index: The open index.
        view: The view.
        metadata: A metadata of numbers to take instead, centred.

    Returns:
        float64 [n].

    Raises:
        TargetError: If rows have no label, or the view measures the recipe's own function and no metadata is named.
    """
    if metadata is not None:
        return _from_metadata(index, metadata)
    if index.manifest.measurement.name == "custom":
        raise TargetError(
            f"view {view!r} of index {index.name!r} measures the recipe's own function, for which labels are no "
            "target. Name a metadata that holds the value it predicts, with --target NAME"
        )
    labels = index.labels
    unlabelled = torch.nonzero(labels == NO_LABEL).squeeze(1)
    if unlabelled.numel():
        row = int(unlabelled[0])
        raise TargetError(
            f"{unlabelled.numel()} of {index.num_rows} rows of index {index.name!r} have no label (the first is "
            f"{index.examples.id(row)!r}), and the evidence needs a target for every row: build it with labels, or "
            "name a metadata of numbers with --target NAME"
        )
    if view.isdigit():
        hot = (labels == int(view)).double()
        return hot - hot.mean()
    counts = torch.bincount(labels).double()
    return 1 - counts[labels] / index.num_rows


def _from_metadata(index: Index, name: str) -> Tensor:
    """Read a target from the examples table.

    Returns:
        float64 [n], centred.

    Raises:
        UnknownMetadataError: If there is no such metadata.
        TargetError: If it holds no number for a row.
    """
    if name not in index.examples.metadata_names:
        raise UnknownMetadataError(
            f"--target {name!r}: the metadata of index {index.name!r} are {listed(index.examples.metadata_names)}"
        )
    values = index.examples.column(METADATA + name).to_pylist()
    for row, value in enumerate(values):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TargetError(
                f"--target {name!r}: example {index.examples.id(row)!r} has {value!r}, must have a number in every row"
            )
    found = torch.tensor(values, dtype=torch.float64)
    return found - found.mean()
