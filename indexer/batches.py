"""Rows of a collated batch: a tensor, or dicts, lists and tuples of tensors whose first dimension is the row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import cast

import torch
from torch import Tensor

Batch = Tensor | Mapping[str, "Batch"] | list["Batch"] | tuple["Batch", ...]
"""What a recipe's ``collate`` may give as inputs."""


class BatchError(TypeError):
    """A recipe collated examples into something that has no rows."""


def map_tensors(function: Callable[[Tensor], Tensor], batch: Batch) -> Batch:
    """Apply a function to every tensor of a batch.

    Args:
        function: From tensor to tensor.
        batch: A tensor, or mappings, lists and tuples of them.

    Returns:
        The same structure, named tuples too; mappings become dicts, which torch.func understands.

    Raises:
        BatchError: If something in it is neither.
    """
    if isinstance(batch, Tensor):
        return function(batch)
    if isinstance(batch, Mapping):
        return {name: map_tensors(function, value) for name, value in batch.items()}
    if isinstance(batch, list):
        return [map_tensors(function, value) for value in batch]
    if isinstance(batch, tuple):
        values = [map_tensors(function, value) for value in batch]
        return cast(Batch, type(batch)(*values)) if hasattr(batch, "_fields") else tuple(values)  # type: ignore[arg-type]
    raise BatchError(
        f"collate must give tensors, or dicts, lists and tuples of tensors; it gave a {type(batch).__name__}."
    )


def num_rows(batch: Batch) -> int:
    """Number of rows of a batch.

    Args:
        batch: A tensor, or mappings, lists and tuples of them.

    Returns:
        The common first dimension.

    Raises:
        BatchError: If there is no tensor, one has no dimension, or they disagree.
    """
    sizes: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        if tensor.ndim == 0:
            raise BatchError("collate gave a tensor without dimensions; the first dimension must be the row.")
        sizes.append(tensor.shape[0])
        return tensor

    map_tensors(note, batch)
    if not sizes or len(set(sizes)) != 1:
        raise BatchError(f"all tensors of a batch must have the same first dimension; they have {sizes}.")
    return sizes[0]


def take_rows(batch: Batch, start: int, stop: int) -> Batch:
    """Rows start … stop − 1 of a batch.

    Args:
        batch: A tensor, or mappings, lists and tuples of them.
        start: First row.
        stop: Row after the last.

    Returns:
        The same structure, without copies.
    """
    return map_tensors(lambda tensor: tensor[start:stop], batch)


def pad_rows(batch: Batch, rows: int) -> Batch:
    """Repeat a batch's last row until it has so many.

    Args:
        batch: A tensor, or mappings, lists and tuples of them; at least one row.
        rows: Rows wanted, at least as many as there are.

    Returns:
        The same structure.
    """

    def padded(tensor: Tensor) -> Tensor:
        missing = rows - tensor.shape[0]
        return torch.cat((tensor, tensor[-1:].expand(missing, *tensor.shape[1:]))) if missing else tensor

    return map_tensors(padded, batch)


def move(batch: Batch, device: torch.device) -> Batch:
    """Put every tensor of a batch on a device.

    Args:
        batch: A tensor, or mappings, lists and tuples of them.
        device: Where to.

    Returns:
        The same structure.
    """
    return map_tensors(lambda tensor: tensor.to(device), batch)
