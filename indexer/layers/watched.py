"""Watches a forward pass: what it does with parameters beside calls of their modules, and whether it moves rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_DATA = Tensor.data.__get__  # type: ignore[attr-defined]


class Watched(TorchFunctionMode):
    """Counts the operations on some parameters, of which every call of their module is to be one, and sees rows move.

    Args:
        parameters: The parameters.
        rows: Rows of the batch. A first dimension that is no multiple of it is of something else.
        apart: Other tensors of the model, such as tables of positions, of which a part may be taken at any time.

    Attributes:
        moved: Whether, so far, an operation gave parts of a tensor's first dimension, put it in another order or looked
            for one: what modules are given from here on may have entries of other examples than their place says.
    """

    #: Operations whose result the parameter's numbers do not reach, or not with a gradient, by name.
    _APART = frozenset(
        {
            *("detach", "new_empty", "new_full", "new_ones", "new_tensor", "new_zeros"),
            *("empty_like", "full_like", "ones_like", "rand_like", "randn_like", "zeros_like"),
        }
    )

    def __init__(self, parameters: Iterable[Tensor], rows: int = 1, apart: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self._rows = rows
        self.moved = False
        self._looks_away = False
        self._left = {id(parameter): 0 for parameter in parameters}
        self._of_model = {*self._left, *map(id, apart)}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        given = func(*args, **named)
        if self._looks_away:
            return given
        name = getattr(func, "__name__", "").partition(".")[0]  # torch.ops.aten: index_select.default
        if not self.moved and self._rows > 1 and args:
            self.moved = self._moves(name.rstrip("_") if not name.endswith("__") else name, args, named)
        # Whether gradients are on does not matter: within an autograd.Function they are off.
        apart = name in self._APART or func == _DATA
        if not apart and (name == "__setitem__" or _holds_numbers(given)):
            for value in (*args, *named.values()):
                for item in value if isinstance(value, list | tuple) else (value,):
                    # What gives the parameter itself, such as `to` its own type, is no use yet.
                    if id(item) in self._left and given is not item:
                        self._left[id(item)] += 1
        return given

    def _moves(self, name: str, args: Sequence[Any], named: Mapping[str, Any]) -> bool:
        if name == "einsum":
            return _mixes(args[0], [*args[1]] if isinstance(args[1], list | tuple) else [*args[1:]], self._is_rows)
        if name in _PRODUCTS and len(args) > 1:  # of 2-D tensors: the second one's rows are summed
            return isinstance(args[1], Tensor) and args[1].ndim == 2 and self._is_rows(args[1])
        if name == "embedding" and len(args) > 1:
            return self._is_rows(args[1])
        if name == "where" and len(args) == 1 and not named:
            name = "nonzero"
        return name in MOVES and self._is_rows(args[0]) and moves_rows(name, args, named)

    def _is_rows(self, tensor: Any) -> bool:
        # Whether its first dimension may be of the batch.
        if not isinstance(tensor, Tensor) or tensor.ndim == 0 or id(tensor) in self._of_model:
            return False
        return len(tensor) > 1 and len(tensor) % self._rows == 0

    @contextmanager
    def looking_away(self) -> Iterator[None]:
        """Take no notice within the block, where hooks compute: what they do is not the model's.

        Yields:
            Nothing.
        """
        self._looks_away = True
        try:
            yield
        finally:
            self._looks_away = False

    def expect(self, parameters: Iterable[Tensor | None]) -> bool:
        """Take one use of some parameters for what it should be.

        Args:
            parameters: Those of a module.

        Returns:
            Whether all of them are counted; others stand in their place within a ``functional_call``.
        """
        held = [parameter for parameter in parameters if parameter is not None]
        if not all(id(parameter) in self._left for parameter in held):
            return False
        for parameter in held:
            self._left[id(parameter)] -= 1
        return True

    def is_unexpected(self, parameter: Tensor | None) -> bool:
        """Say whether a parameter was used more often, or less, than was expected.

        Returns:
            Whether it was.
        """
        return self._left.get(id(parameter), 0) != 0


_PRODUCTS = frozenset({"matmul", "mm", "__matmul__", "__rmatmul__"})
#: Operations that give parts of a dimension, put it or what is written there in another order, or say of which entries
#: or in which order: where their argument of the dimension stands, and which dimension it is by default.
MOVES: Mapping[str, tuple[int, int | None]] = {
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


def moves_rows(name: str, args: Sequence[Any], named: Mapping[str, Any]) -> bool:
    """Say whether an operation of ``MOVES`` is on a tensor's first dimension.

    Args:
        name: Its name.
        args: What it was given: the tensor first.
        named: The same, by name.

    Returns:
        Whether it is.
    """
    tensor = args[0]
    if name in ("__getitem__", "__setitem__"):
        index = args[1] if isinstance(args[1], tuple) else (args[1],)
        return _takes_rows(index, tensor.ndim)
    place, default = MOVES[name]
    dims = named.get("dim", named.get("dims", args[place] if 0 < place < len(args) else default))
    listed = dims if isinstance(dims, list | tuple) else args[place:] if name == "flip" else (dims,)
    return any(not isinstance(dim, int) or dim % tensor.ndim == 0 for dim in listed)


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


def _holds_numbers(given: Any) -> bool:
    if isinstance(given, list | tuple):
        return any(_holds_numbers(item) for item in given)
    return isinstance(given, Tensor) and (given.is_floating_point() or given.is_complex())
