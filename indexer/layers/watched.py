"""Watches a forward pass: what it does with parameters beside calls of their modules, and whether it moves rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

from indexer.layers.row_moves import moves_rows

_DATA = Tensor.data.__get__  # type: ignore[attr-defined]


class Watched(TorchFunctionMode):
    """Counts the operations on some parameters, of which every call of their module is to be one, and sees rows move.

    Args:
        parameters: The parameters.
        rows: Rows of the batch. A first dimension that is smaller is of something else.
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
        if not self.moved and self._rows > 1 and (operands := args or (*named.values(),)[:1]):
            self.moved = moves_rows(name, operands, named, self._is_rows)
        # Whether gradients are on does not matter: within an autograd.Function they are off.
        apart = name in self._APART or func == _DATA
        if not apart and (name == "__setitem__" or _holds_numbers(given)):
            for value in (*args, *named.values()):
                for item in value if isinstance(value, list | tuple) else (value,):
                    # What gives the parameter itself, such as `to` its own type, is no use yet.
                    if id(item) in self._left and given is not item:
                        self._left[id(item)] += 1
        return given

    def _is_rows(self, tensor: Any) -> bool:
        # Whether its first dimension may be of the batch; of more than the batch where an entry for nobody is added.
        if not isinstance(tensor, Tensor) or tensor.ndim == 0 or id(tensor) in self._of_model:
            return False
        return len(tensor) >= max(2, self._rows)

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


def _holds_numbers(given: Any) -> bool:
    if isinstance(given, list | tuple):
        return any(_holds_numbers(item) for item in given)
    return isinstance(given, Tensor) and (given.is_floating_point() or given.is_complex())
