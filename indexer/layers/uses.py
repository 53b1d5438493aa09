"""Counts what a forward pass does with parameters, to tell whether all of it is calls of their modules."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

_DATA = Tensor.data.__get__  # type: ignore[attr-defined]


class ParameterUses(TorchFunctionMode):
    """Counts the operations on some parameters, of which every call of their module is to be one.

    Args:
        parameters: The parameters.
    """

    #: Operations whose result the parameter's numbers do not reach, or not with a gradient, by name.
    _APART = frozenset(
        {
            *("detach", "new_empty", "new_full", "new_ones", "new_tensor", "new_zeros"),
            *("empty_like", "full_like", "ones_like", "rand_like", "randn_like", "zeros_like"),
        }
    )

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        super().__init__()
        self._left = {id(parameter): 0 for parameter in parameters}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        given = func(*args, **named)
        # Whether gradients are on does not matter: within an autograd.Function they are off.
        apart = getattr(func, "__name__", "") in self._APART or func == _DATA
        if not apart and _holds_numbers(given):
            for value in (*args, *named.values()):
                for item in value if isinstance(value, list | tuple) else (value,):
                    # What gives the parameter itself, such as `to` its own type, is no use yet.
                    if id(item) in self._left and given is not item:
                        self._left[id(item)] += 1
        return given

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
