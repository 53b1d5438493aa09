r"""Layers with a weight matrix: how its gradient follows from the layer's input and the gradient at its output.

Every weight is read as a matrix W [rows, columns], its first dimension against the others. The gradient of one example
is a sum over positions p (of a sequence or an image) of outer products, :math:`G = \sum_p u_p v_p^\top`, where one of
u and v is made of the layer's input and the other of δ, the gradient at its output.
"""

from __future__ import annotations

from math import prod
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from indexer.layers.factors import Factors, convolution_factors, position_factors

Side = Literal["row", "column"]


class UnfitInputError(ValueError):
    """A layer was fed with something that does not tell the examples apart."""


class MatrixKind(Protocol):
    """A layer with a weight matrix.

    Attributes:
        input_side: Whether the layer's input stands on the rows or on the columns of the weight.
    """

    input_side: Side

    def split(self, given: Tensor, rows: int) -> Tensor:
        """The layer's input with the example as first dimension.

        Args:
            given: What the layer was called with.
            rows: b.

        Returns:
            [b, …].

        Raises:
            UnfitInputError: If its rows cannot be told apart.
        """
        ...

    def split_delta(self, delta: Tensor, rows: int) -> Tensor:
        """The gradient at the output in the same manner; what follows takes both as split.

        Returns:
            [b, …].
        """
        ...

    def unfolded_numbers(self, given: Tensor) -> int:
        """What `unfolded` has to make for one example.

        Returns:
            How many numbers; 0 where it is the input itself.
        """
        ...

    def unfolded(self, given: Tensor) -> Tensor:
        """The input as the sum over positions needs it, made once and used for all rows of the weight.

        Returns:
            [b, …].
        """
        ...

    def gradient(self, unfolded: Tensor, delta: Tensor, start: int, stop: int) -> Tensor:
        """Rows start … stop − 1 of the weight's gradient.

        Returns:
            [b, stop − start, columns].
        """
        ...

    def factors(self, given: Tensor, delta: Tensor, most_positions: int) -> Factors | None:
        """What the gradient is made of, for a sketch that forms none.

        Returns:
            The factors, in the types of input and δ; None where they have no such form, or more positions.
        """
        ...

    def project_input(self, given: Tensor, table: Tensor) -> Tensor:
        """The input's side of every position times a table [side, k].

        Returns:
            [b, k, positions].
        """
        ...

    def project_delta(self, delta: Tensor, table: Tensor) -> Tensor:
        """The side of δ of every position times a table [side, k].

        Returns:
            [b, k, positions], in the order of `project_input`.
        """
        ...

    def bias_gradient(self, delta: Tensor) -> Tensor:
        """Gradient of the bias: δ summed over positions.

        Returns:
            [b, out].
        """
        ...


class PositionWise:
    """nn.Linear, and transformers' Conv1D, whose weight is stored transposed: the same product at every position."""

    def __init__(self, *, transposed: bool) -> None:
        self.input_side: Side = "row" if transposed else "column"

    def split(self, given: Tensor, rows: int) -> Tensor:  # noqa: D102
        # Inputs [b, p, in]
        return split_positions(given, rows, given.shape[-1:])

    def split_delta(self, delta: Tensor, rows: int) -> Tensor:  # noqa: D102
        # δ [b, p, out]
        return split_positions(delta, rows, delta.shape[-1:])

    def unfolded_numbers(self, given: Tensor) -> int:  # noqa: D102
        return 0

    def unfolded(self, given: Tensor) -> Tensor:  # noqa: D102
        return given

    def gradient(self, unfolded: Tensor, delta: Tensor, start: int, stop: int) -> Tensor:  # noqa: D102
        # Σ_p δ_p a_pᵀ, or its transpose
        left, right = (unfolded, delta) if self.input_side == "row" else (delta, unfolded)
        return _outer(left[..., start:stop], right)

    def factors(self, given: Tensor, delta: Tensor, most_positions: int) -> Factors | None:  # noqa: D102
        if delta.shape[1] > most_positions:
            return None
        return position_factors(given, delta) if self.input_side == "row" else position_factors(delta, given)

    def project_input(self, given: Tensor, table: Tensor) -> Tensor:  # noqa: D102
        return (given @ table.to(given.dtype)).transpose(1, 2)

    def project_delta(self, delta: Tensor, table: Tensor) -> Tensor:  # noqa: D102
        return (delta @ table.to(delta.dtype)).transpose(1, 2)

    def bias_gradient(self, delta: Tensor) -> Tensor:  # noqa: D102
        return delta.sum(1)


class Lookup:
    """nn.Embedding: the row side of a position is one-hot at its index, the column side is δ."""

    input_side: Side = "row"

    def __init__(self, module: nn.Embedding) -> None:
        self.padding = module.padding_idx

    def split(self, given: Tensor, rows: int) -> Tensor:  # noqa: D102
        # Indices [b, p]
        return split_positions(given, rows, ())

    def split_delta(self, delta: Tensor, rows: int) -> Tensor:  # noqa: D102
        # δ [b, p, columns]
        return split_positions(delta, rows, delta.shape[-1:])

    def unfolded_numbers(self, given: Tensor) -> int:  # noqa: D102
        return 0

    def unfolded(self, given: Tensor) -> Tensor:  # noqa: D102
        # The indices
        return given

    def gradient(self, unfolded: Tensor, delta: Tensor, start: int, stop: int) -> Tensor:  # noqa: D102
        # δ added at the row of its index
        rows, width = unfolded.shape[0], delta.shape[-1]
        inside = (unfolded >= start) & (unfolded < stop)
        if self.padding is not None:
            inside &= unfolded != self.padding
        example, position = inside.nonzero(as_tuple=True)
        size = stop - start
        total = torch.zeros(rows * size, width, dtype=delta.dtype, device=delta.device)
        places = example * size + unfolded[example, position] - start
        return total.index_add_(0, places, delta[example, position]).view(rows, size, width)

    def factors(self, given: Tensor, delta: Tensor, most_positions: int) -> Factors | None:  # noqa: D102
        # One-hot rows: most of the gradient is zero
        return None

    def project_input(self, given: Tensor, table: Tensor) -> Tensor:  # noqa: D102
        # Rows of the table
        projected = table[given]
        if self.padding is not None:
            projected = projected.masked_fill((given == self.padding).unsqueeze(-1), 0.0)
        return projected.transpose(1, 2)

    def project_delta(self, delta: Tensor, table: Tensor) -> Tensor:  # noqa: D102
        return (delta @ table.to(delta.dtype)).transpose(1, 2)

    def bias_gradient(self, delta: Tensor) -> Tensor:  # noqa: D102
        # An embedding has no bias
        raise NotImplementedError("an embedding has no bias")


class Convolution:
    """nn.Conv1d and nn.Conv2d with any stride, dilation, groups and padding: a Conv1d is a Conv2d of height 1.

    With groups, an output channel sees the inputs of its own group only; positions of the groups are then listed one
    after the other, and the sum over positions runs over all of them.
    """

    input_side: Side = "column"

    def __init__(self, module: nn.Conv1d | nn.Conv2d) -> None:
        flat = isinstance(module, nn.Conv1d)
        self.dimensions = 3 if flat else 4
        self.groups = module.groups
        self.kernel = _pair(module.kernel_size, 1, flat)
        self.stride = _pair(module.stride, 1, flat)
        self.dilation = _pair(module.dilation, 1, flat)
        self.ahead: list[int] | None = None  # padding that functional.pad does before the convolution
        self.mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        self.padding = (0, 0)
        if isinstance(module.padding, str) or module.padding_mode != "zeros":
            self.ahead = list(module._reversed_padding_repeated_twice)
        else:
            self.padding = _pair(module.padding, 0, flat)

    def split(self, given: Tensor, rows: int) -> Tensor:  # noqa: D102
        # Images [b, channels, …]
        if given.ndim != self.dimensions or given.shape[0] != rows:
            raise UnfitInputError(f"has inputs of shape {list(given.shape)} for {rows} examples")
        return given

    def split_delta(self, delta: Tensor, rows: int) -> Tensor:  # noqa: D102
        # δ [b, out, …]
        return delta

    def unfolded_numbers(self, given: Tensor) -> int:  # noqa: D102
        # The kernel's size at every position
        return prod(given.shape[1:]) * prod(self.kernel)

    def unfolded(self, given: Tensor) -> Tensor:  # noqa: D102
        # Patches [b, groups, channels/groups · kernel, p]
        patches = functional.unfold(
            self._padded(given), self.kernel, dilation=self.dilation, padding=self.padding, stride=self.stride
        )
        return patches.view(patches.shape[0], self.groups, -1, patches.shape[2])

    def gradient(self, unfolded: Tensor, delta: Tensor, start: int, stop: int) -> Tensor:  # noqa: D102
        # Σ_p δ_p patch_pᵀ, each group with its own patches
        rows, size, positions = delta.shape[0], delta.shape[1] // self.groups, unfolded.shape[3]
        first, last = start // size, -(-stop // size)
        some = delta[:, first * size : last * size].reshape(rows, last - first, size, positions)
        if self.groups == 1:
            some = some[:, :, start:stop]
        gradient = (some @ unfolded[:, first:last].transpose(2, 3)).flatten(1, 2)
        return gradient if self.groups == 1 else gradient[:, start - first * size : stop - first * size]

    def factors(self, given: Tensor, delta: Tensor, most_positions: int) -> Factors | None:  # noqa: D102
        if self.groups > 1 or prod(delta.shape[2:]) > most_positions:
            return None
        tall, wide = self.padding
        images = functional.pad(self._padded(given), (wide, wide, tall, tall))
        return convolution_factors(delta, images, self.kernel, self.stride, self.dilation)

    def project_input(self, given: Tensor, table: Tensor) -> Tensor:  # noqa: D102
        # A convolution with the table as its weight, so that no patch exists
        images = self._padded(given)
        channels = images.shape[1] // self.groups
        weight = table.T.to(given.dtype).reshape(table.shape[1], channels, *self.kernel)
        if self.groups > 1:
            weight = weight.repeat(self.groups, 1, 1, 1)
        projected = functional.conv2d(
            images, weight, None, self.stride, self.padding, self.dilation, groups=self.groups
        ).flatten(2)
        return self._by_example(projected, table.shape[1])

    def project_delta(self, delta: Tensor, table: Tensor) -> Tensor:  # noqa: D102
        # A product over the output channels
        flat = delta.flatten(2)
        table = table.T.to(delta.dtype)
        if self.groups == 1:
            return table @ flat
        grouped = flat.view(flat.shape[0], self.groups, -1, flat.shape[2])
        tables = table.view(table.shape[0], self.groups, -1).transpose(0, 1)  # [groups, k, out/groups]
        return self._by_example((tables @ grouped).flatten(1, 2), table.shape[0])

    def bias_gradient(self, delta: Tensor) -> Tensor:  # noqa: D102
        return delta.flatten(2).sum(2)

    def _by_example(self, projected: Tensor, size: int) -> Tensor:
        # [b, groups · k, p] with the groups' positions one after the other: [b, k, groups · p]
        if self.groups == 1:
            return projected
        split = projected.view(projected.shape[0], self.groups, size, -1)
        return split.transpose(1, 2).flatten(2)

    def _padded(self, given: Tensor) -> Tensor:
        padded = given if self.ahead is None else functional.pad(given, self.ahead, mode=self.mode)
        return padded.unsqueeze(2) if padded.ndim == 3 else padded


def matrix_kind(module: nn.Module) -> MatrixKind | None:
    """How a module with a weight matrix is differentiated.

    Args:
        module: Any module.

    Returns:
        Its kind; None where there is none (subclasses may compute otherwise and count as unknown).
    """
    if type(module) is nn.Linear:
        return PositionWise(transposed=False)
    if type(module) in (nn.Conv1d, nn.Conv2d):
        return Convolution(module)  # type: ignore[arg-type]
    if type(module) is nn.Embedding:
        plain = module.max_norm is None and not module.scale_grad_by_freq and not module.sparse
        return Lookup(module) if plain else None
    if type(module).__name__ == "Conv1D" and type(module).__module__ == "transformers.pytorch_utils":
        return PositionWise(transposed=True)
    return None


def split_positions(given: Tensor, rows: int, tail: tuple[int, ...]) -> Tensor:
    """The input of a module that works position by position, with the example first.

    Args:
        given: [b, …, *tail], or [b·p, …, *tail] with an example's positions side by side.
        rows: b.
        tail: Shape of a position.

    Returns:
        [b, p, *tail].

    Raises:
        UnfitInputError: If the first dimension is no multiple of b.
    """
    if given.ndim <= len(tail) or given.shape[0] % rows or given.shape[0] == 0:
        raise UnfitInputError(f"has inputs of shape {list(given.shape)} for {rows} examples")
    return given.reshape(rows, -1, *tail)


def _outer(left: Tensor, right: Tensor) -> Tensor:
    if left.shape[1] == 1:
        return left.squeeze(1).unsqueeze(2) * right
    return left.transpose(1, 2) @ right


def _pair(values: Any, filler: int, flat: bool) -> tuple[int, int]:
    return (filler, int(values[0])) if flat else (int(values[0]), int(values[1]))
