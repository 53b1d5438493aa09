"""Slabs of per-example gradients from what the hooks kept of a batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from indexer.layers.factors import FEWEST_ROWS, LEAST_SIDE, MOST_POSITIONS, Factors
from indexer.layers.kinds import MatrixKind
from indexer.layers.modules import HookedModule
from indexer.layers.norms import ScaleAndShift
from indexer.layers.taps import CaptureError
from indexer.parameters import Parameter

CACHED_BYTES = 16 * 1024**2
"""Size of unfolded inputs that stay in a processor's cache, and that the allocator keeps between uses."""
CACHED_ROWS = 16
"""Rows a thread whose gradients are formed together where the sketch does not care how many they are."""
CACHED_SLAB_BYTES = 8 * 1024**2
"""Size a thread of their slab: a cache still has it when it is read, and products have rows enough to be quick."""

Piece = tuple[int, int, Tensor]
"""First row, first coordinate, and NTK-scaled gradients, float32 [rows, p]."""
FactoredPiece = tuple[int, int, Tensor | Factors]
"""The same, or what the gradients of a weight are made of."""


@dataclass(frozen=True)
class SlabSizes:
    """How large slabs may be.

    Attributes:
        slab_bytes: Size that a slab [b, p] keeps to; at least one coordinate, or one row of a weight over positions.
        unfold_bytes: Most that unfolded inputs may take.
        rows: Most rows of a slab whose gradients are sums over positions.
    """

    slab_bytes: int
    unfold_bytes: int
    rows: int

    @staticmethod
    def chosen(slab_bytes: int, memory_budget_bytes: int, many_rows: bool) -> SlabSizes:
        """Sizes for a sketch.

        Args:
            slab_bytes: Size that a slab keeps to.
            memory_budget_bytes: What gradients may take.
            many_rows: Whether the sketch wants many rows in a slab, because they share its random numbers.

        Returns:
            Large pieces for such a sketch; else what fits a processor's cache.
        """
        if many_rows:
            return SlabSizes(slab_bytes, memory_budget_bytes // 2, 2**31)
        threads = torch.get_num_threads()
        slab_bytes = min(slab_bytes, threads * CACHED_SLAB_BYTES)
        return SlabSizes(slab_bytes, min(CACHED_BYTES, memory_budget_bytes // 2), threads * CACHED_ROWS)


@dataclass
class Call:
    """One call of a module with a weight matrix.

    Attributes:
        kind: How its gradients are formed.
        given: Its input, [b, …].
        delta: The gradient at its output, [b, …].
    """

    kind: MatrixKind
    given: Tensor
    delta: Tensor


class Captured:
    """Receives a batch and keeps what gradients are formed from: inputs and δ of matrices, gradients of vectors.

    Attributes:
        calls: Name of a weight matrix to its calls.
        vectors: Name of a bias, scale or shift to its gradient [b, size].
    """

    def __init__(self) -> None:
        self.calls: dict[str, list[Call]] = {}
        self.vectors: dict[str, Tensor] = {}

    def given(self, entry: HookedModule, given: Tensor) -> Any:  # noqa: D102
        # Its version tells a later change in place
        needed = isinstance(entry.kind, ScaleAndShift) or entry.weight is not None
        return (given, given._version) if needed else None

    def delta(self, entry: HookedModule, kept: Any, delta: Tensor) -> None:  # noqa: D102
        given = None
        if kept is not None:
            given, version = kept
            if given._version != version:
                raise CaptureError(entry.name, "has an input that is changed in place after use")
            given = given if not given.is_floating_point() else at_least_float(given)
        for place, gradient in vector_gradients(entry, given, at_least_float(delta)):
            self._add(place, gradient)
        if entry.weight is not None and not isinstance(entry.kind, ScaleAndShift):
            assert given is not None
            self.calls.setdefault(entry.weight.name, []).append(Call(entry.kind, given, at_least_float(delta)))

    def done(self) -> None:  # noqa: D102
        pass

    def _add(self, place: Parameter, gradient: Tensor) -> None:
        before = self.vectors.get(place.name)
        self.vectors[place.name] = gradient if before is None else before + gradient


def vector_gradients(entry: HookedModule, given: Tensor | None, delta: Tensor) -> list[tuple[Parameter, Tensor]]:
    """Gradients of a module's chosen biases, scales and shifts.

    Args:
        entry: The module.
        given: Its input; a bias alone needs none.
        delta: The gradient at its output.

    Returns:
        Each place with its gradient [b, size], not NTK-scaled.
    """
    if isinstance(entry.kind, ScaleAndShift):
        assert given is not None
        scale, shift = entry.kind.gradients(given, delta)
        found = [(entry.weight, scale), (entry.bias, shift)]
    else:
        found = [] if entry.bias is None else [(entry.bias, entry.kind.bias_gradient(delta))]
    return [(place, gradient) for place, gradient in found if place is not None]


def uneven_names(parts: list[Captured]) -> set[str]:
    """Parameters that parts of a batch have other calls of, or none: no gradients of all rows are made of these.

    Args:
        parts: What was kept of consecutive parts of a batch.

    Returns:
        Their names.
    """
    shapes = [
        {
            **{name: [call.delta.shape[1:] for call in calls] for name, calls in part.calls.items()},
            **{name: [vector.shape[1:]] for name, vector in part.vectors.items()},
        }
        for part in parts
    ]
    return {name for part in shapes for name in part if any(other.get(name) != part[name] for other in shapes)}


def joined(parts: list[Captured]) -> Captured:
    """What was kept of consecutive parts of a batch, as if of the whole, without what is uneven (`uneven_names`).

    Args:
        parts: At least one; emptied on the way, so that only one weight's numbers exist twice.

    Returns:
        One for all rows.
    """
    if len(parts) == 1:
        return parts[0]
    whole, uneven = Captured(), uneven_names(parts)
    for name in [name for name in parts[0].calls if name not in uneven]:
        of_parts = [part.calls.pop(name) for part in parts]
        whole.calls[name] = [
            Call(
                together[0].kind,
                torch.cat([call.given for call in together]),
                torch.cat([call.delta for call in together]),
            )
            for together in zip(*of_parts, strict=True)
        ]
    for name in [name for name in parts[0].vectors if name not in uneven]:
        whole.vectors[name] = torch.cat([part.vectors.pop(name) for part in parts])
    return whole


def matrix_slabs(
    place: Parameter,
    calls: list[Call],
    rows: int,
    sizes: SlabSizes,
    device: torch.device,
    *,
    all_rows: bool,
    factored: bool = False,
) -> Iterator[FactoredPiece]:
    """The gradient of a weight matrix, some of its rows at a time, all calls added.

    Args:
        place: Its place.
        calls: The calls of the modules that hold it; none where the measurement does not depend on it.
        rows: b.
        sizes: How large slabs may be.
        device: Where to compute.
        all_rows: Whether every slab must hold all rows.
        factored: Whether factors may come in the place of gradients.

    Yields:
        First row, coordinate and NTK-scaled gradients, float32 [rows of the slab, p], or their factors.
    """
    height, width = place.shape[0], place.size // place.shape[0]
    if factored and (whole := _factors(calls, place, rows)) is not None:
        yield 0, place.offset, whole
        return
    calls, scale = _scaled(calls, place, rows)
    numbers = sum(call.kind.unfolded_numbers(call.given) for call in calls)
    summed = bool(numbers) or any(call.given.shape[1] > 1 for call in calls)
    at_once = min(rows, sizes.unfold_bytes // (4 * numbers)) if numbers else rows
    if summed and not all_rows:
        at_once = min(at_once, sizes.rows)
    at_once = max(1, at_once)

    def weight_rows(count: int) -> int:
        return max(1, sizes.slab_bytes // (4 * count * width))

    if all_rows and at_once < rows:
        for start, stop in even_parts(height, weight_rows(rows)):
            parts = [
                _gradient(_taken(calls, row, end), place, start, stop, end - row, scale, device)
                for row, end in even_parts(rows, at_once)
            ]
            yield 0, place.offset + start * width, torch.cat(parts)
        return
    for row, end in even_parts(rows, at_once):
        some = _taken(calls, row, end) if at_once < rows else calls
        unfolded = [(call, call.kind.unfolded(call.given)) for call in some]
        here = end - row
        for start, stop in even_parts(height, weight_rows(here)):
            gradient = _sum(unfolded, place, start, stop, here, scale, device)
            if 4 * here * width <= sizes.slab_bytes or summed:
                yield row, place.offset + start * width, gradient
                continue
            for left, right in even_parts(width, max(1, sizes.slab_bytes // (4 * here))):  # wider than a slab
                yield row, place.offset + start * width + left, gradient[:, left:right]


def _taken(calls: list[Call], start: int, stop: int) -> list[Call]:
    return [Call(call.kind, call.given[start:stop], call.delta[start:stop]) for call in calls]


def _scaled(calls: list[Call], place: Parameter, rows: int) -> tuple[list[Call], float]:
    # NTK scaling where there are fewer numbers to multiply: of δ, or else (the factor left over) of the gradient
    numbers = sum(call.delta.numel() for call in calls)
    if place.ntk_scale == 1.0 or numbers > rows * place.size:
        return calls, place.ntk_scale
    return [Call(call.kind, call.given, call.delta * place.ntk_scale) for call in calls], 1.0


def _factors(calls: list[Call], place: Parameter, rows: int) -> Factors | None:
    if len(calls) != 1 or rows < FEWEST_ROWS or min(place.shape[0], place.size // place.shape[0]) < LEAST_SIDE:
        return None
    call = calls[0]
    factors = call.kind.factors(call.given, call.delta * place.ntk_scale, MOST_POSITIONS)
    return None if factors is None else replace(factors, left=factors.left.float(), right=factors.right.float())


def _gradient(
    calls: list[Call], place: Parameter, start: int, stop: int, rows: int, scale: float, device: torch.device
) -> Tensor:
    return _sum([(call, call.kind.unfolded(call.given)) for call in calls], place, start, stop, rows, scale, device)


def _sum(
    unfolded: list[tuple[Call, Tensor]],
    place: Parameter,
    start: int,
    stop: int,
    rows: int,
    scale: float,
    device: torch.device,
) -> Tensor:
    if not unfolded:
        return torch.zeros(rows, (stop - start) * (place.size // place.shape[0]), device=device)
    total = None
    for call, inputs in unfolded:
        gradient = call.kind.gradient(inputs, call.delta, start, stop).flatten(1)
        total = gradient if total is None else total + gradient
    assert total is not None
    return total.float() if scale == 1.0 else total.float().mul_(scale)


def merged(group: Sequence[Parameter], gradients: Sequence[Tensor]) -> Iterator[tuple[int, Tensor]]:
    """Small neighbours (biases, normalisation) as one: a sketch is not called for a few numbers at a time.

    Args:
        group: Places in the order of their coordinates.
        gradients: The gradient of each, [b, size].

    Yields:
        First coordinate and gradients [b, p].
    """
    waiting: list[Tensor] = []
    first = end = 0
    for place, block in zip(group, gradients, strict=True):
        small = block.shape[1] <= 4096
        if waiting and (place.offset != end or not small):
            yield first, torch.cat(waiting, dim=1)
            waiting = []
        if not small:
            yield place.offset, block
            continue
        if not waiting:
            first = place.offset
        waiting.append(block)
        end = place.offset + block.shape[1]
    if waiting:
        yield first, torch.cat(waiting, dim=1)


def even_parts(size: int, largest: int) -> Iterator[tuple[int, int]]:
    """Equal parts of a range.

    Args:
        size: Length of the range.
        largest: Longest part allowed, at least 1.

    Yields:
        Start and stop of each.
    """
    count = -(-size // largest)
    for part in range(count):
        yield size * part // count, size * (part + 1) // count


def at_least_float(tensor: Tensor) -> Tensor:
    """Widen half precision.

    Args:
        tensor: Floating point.

    Returns:
        float32 for float16 and bfloat16, else the tensor itself.
    """
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
