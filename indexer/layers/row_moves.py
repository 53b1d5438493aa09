"""Which of torch's operations move rows: take some out, cut them apart or put them in another order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

_PRODUCTS = frozenset({"matmul", "mm", "__matmul__", "__rmatmul__"})
#: Operations that give parts of a dimension, put it or what is written there in another order, or say of which entries
#: or in which order: where their argument of the dimension stands, and which dimension it is by default.
_MOVES: Mapping[str, tuple[int, int | None]] = {
    "__getitem__": (0, None),
    "__setitem__": (0, None),
    "argsort": (1, -1),
    "argwhere": (0, 0),
    "chunk": (2, 0),
    "flip": (1, None),
    "flipud": (0, 0),
    "gather": (1, None),
    "index": (0, 0),
    "index_add": (1, None),
    "index_copy": (1, None),
    "index_put": (0, 0),
    "index_reduce": (1, None),
    "index_select": (1, None),
    "masked_scatter": (0, 0),
    "masked_select": (0, 0),
    "narrow": (1, None),
    "narrow_copy": (1, None),
    "nonzero": (0, 0),
    "roll": (2, 0),
    "scatter": (1, None),
    "scatter_add": (1, None),
    "scatter_reduce": (1, None),
    "select": (1, None),
    "sort": (1, -1),
    "split": (2, 0),
    "split_with_sizes": (2, 0),
    "take": (0, 0),
    "take_along_dim": (2, 0),
    "tensor_split": (2, 0),
    "topk": (2, -1),
    "unbind": (1, 0),
    "unique_consecutive": (0, 0),
    "unique_dim": (1, None),
    "unique": (0, 0),
    "__iter__": (0, 0),
    "__reversed__": (0, 0),
}


def moves_rows(name: str, args: Sequence[Any], named: Mapping[str, Any], is_rows: Callable[[Any], bool]) -> bool:
    """Say whether an operation moves rows, or looks for an order of theirs or for some of them.

    Args:
        name: Its name.
        args: What it was given.
        named: The same, by name.
        is_rows: Whether a tensor's first dimension may be of rows.

    Returns:
        Whether it does.
    """
    name = name if name.endswith("__") else name.rstrip("_")  # index_copy_, which changes its tensor, is index_copy
    if name == "einsum" and len(args) > 1:
        return _mixes(args[0], args[1] if isinstance(args[1], list | tuple) else args[1:], is_rows)
    if name in _PRODUCTS and len(args) > 1:  # of 2-D tensors: the second one's rows are summed
        return isinstance(args[1], Tensor) and args[1].ndim == 2 and is_rows(args[1])
    if name in ("embedding", "tensordot") and len(args) > 1:
        return is_rows(args[1])
    if name == "where" and len(args) == 1 and not named:
        name = "nonzero"
    if name not in _MOVES or not is_rows(args[0]):
        return False
    if name in ("__getitem__", "__setitem__"):
        return _takes_rows(args[1] if isinstance(args[1], tuple) else (args[1],), args[0].ndim)
    place, default = _MOVES[name]
    dims = named.get("dim", named.get("dims", args[place] if 0 < place < len(args) else default))
    listed = dims if isinstance(dims, list | tuple) else args[place:] if name == "flip" else (dims,)
    return any(not isinstance(dim, int) or dim % args[0].ndim == 0 for dim in listed)


def _takes_rows(index: Sequence[Any], ndim: int) -> bool:
    # What is asked of the first dimension: all of it, or not. None adds a dimension, and … stands for many.
    for item in index:
        if item is None:
            continue
        if item is Ellipsis:
            return sum(_dimensions(other) for other in index) >= ndim
        return not (isinstance(item, slice) and item == slice(None))
    return False


def _mixes(equation: Any, operands: Sequence[Any], is_rows: Callable[[Any], bool]) -> bool:
    # Whether a first dimension that may be of the batch does not come out as the first.
    if not isinstance(equation, str):
        return any(is_rows(operand) for operand in operands)
    given, _, result = equation.replace(" ", "").partition("->")
    first = result[:1]
    return any(
        is_rows(operand) and axes[:1] != first for axes, operand in zip(given.split(","), operands, strict=False)
    )


def _dimensions(item: Any) -> int:
    # How many dimensions a part of an index is for.
    if item is None or item is Ellipsis:
        return 0
    return item.ndim if isinstance(item, Tensor) and item.dtype == torch.bool else 1
