"""What a kronecker sketch's numbers are made of: which parameters share the d numbers, and how many each gets.

A weight of at least two rows and two columns is a *matrix part*, sketched from both sides in one or several blocks. All
other parameters (biases, scales, shifts) together are the *vector part*, sketched by dense signs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from indexer.parameters import Parameter, ParameterList
from indexer.sketches.spec import SketchSpec, SketchSpecError

SIDE = 16
"""Numbers of a convolution's block on either side: small blocks stray less for the same d, but every number of a side
is one more channel at every position of an image."""
LINEAR_SIDE = 4
"""The same for weights of two dimensions, whose positions are few."""
LEAST_SIDE = 2
"""What a part gets on either side even if its gradients hardly matter."""


@dataclass(frozen=True)
class MatrixPart:
    """A weight, its d numbers being blocks × row_dim × column_dim in row-major order.

    Attributes:
        parameter: Its name.
        blocks: Independent two-sided sketches, side by side.
        row_dim: Numbers that the weight's first dimension is brought to in each block; all of them: it is kept.
        column_dim: The same for its other dimensions together.
    """

    parameter: str
    blocks: int
    row_dim: int
    column_dim: int

    @property
    def dim(self) -> int:
        """Numbers of the sketch that it takes."""
        return self.blocks * self.row_dim * self.column_dim

    def as_json(self) -> dict[str, Any]:
        """The part as a manifest stores it.

        Returns:
            A JSON object.
        """
        return {
            "parameter": self.parameter,
            "blocks": self.blocks,
            "row_dim": self.row_dim,
            "column_dim": self.column_dim,
        }


@dataclass(frozen=True)
class VectorPart:
    """All parameters that are no matrices, one after the other in the parameter list's order.

    Attributes:
        parameters: Their names.
        dim: Numbers of the sketch that they take; all of them: they are kept.
    """

    parameters: tuple[str, ...]
    dim: int

    def as_json(self) -> dict[str, Any]:
        """The part as a manifest stores it.

        Returns:
            A JSON object.
        """
        return {"parameters": list(self.parameters), "dim": self.dim}


Part = MatrixPart | VectorPart


def is_matrix(parameter: Parameter) -> bool:
    """Whether a parameter has two sides.

    Args:
        parameter: Any parameter.

    Returns:
        True where its first dimension and its others together are both longer than 1.
    """
    return len(parameter.shape) >= 2 and parameter.shape[0] > 1 and parameter.size > parameter.shape[0]


def kronecker_spec(parameters: ParameterList, dim: int, seed: int, parts: Sequence[Part]) -> SketchSpec:
    """Spec of a kronecker sketch from its parts.

    Args:
        parameters: The coordinates.
        dim: d; what the parts leave over stays zero.
        seed: The user's seed.
        parts: The parts, in the order of their numbers.

    Returns:
        The spec, checked against the parameters.
    """
    spec = SketchSpec("kronecker", dim, seed, {"parts": [part.as_json() for part in parts]})
    read_parts(spec, parameters)
    return spec


def read_parts(spec: SketchSpec, parameters: ParameterList) -> list[Part]:
    """Parts of a spec.

    Args:
        spec: Of the family kronecker.
        parameters: The coordinates.

    Returns:
        The parts.

    Raises:
        SketchSpecError: If they are not parts, do not fit the parameters, or take more than d numbers.
    """
    entries = spec.options["parts"]
    parts = [_read_part(entry) for entry in entries]
    shapes = {parameter.name: parameter for parameter in parameters}
    seen: list[str] = []
    for part in parts:
        names = [part.parameter] if isinstance(part, MatrixPart) else list(part.parameters)
        for name in names:
            if name not in shapes or name in seen or is_matrix(shapes[name]) != isinstance(part, MatrixPart):
                raise SketchSpecError(f"part {part.as_json()} of a kronecker sketch does not fit parameter {name!r}.")
            seen.append(name)
        if isinstance(part, MatrixPart):
            height, width = sides(shapes[part.parameter])
            if not (1 <= part.row_dim <= height and 1 <= part.column_dim <= width and part.blocks >= 1):
                raise SketchSpecError(f"part {part.as_json()} does not fit a weight of {height} by {width}.")
        elif not 1 <= part.dim <= sum(shapes[name].size for name in part.parameters):
            raise SketchSpecError(f"part {part.as_json()} has more numbers than parameters, or none.")
    missing = [name for name in shapes if name not in seen]
    if missing:
        raise SketchSpecError(f"the parts of the kronecker sketch leave out parameter {missing[0]!r}.")
    total = sum(part.dim for part in parts)
    if total > spec.dim:
        raise SketchSpecError(f"the parts of the kronecker sketch take {total} numbers, its dim is {spec.dim}.")
    return parts


def sides(parameter: Parameter) -> tuple[int, int]:
    """Extents of a weight read as a matrix.

    Args:
        parameter: A matrix part's parameter.

    Returns:
        Its first dimension, and the product of its others.
    """
    return parameter.shape[0], parameter.size // parameter.shape[0]


def plan_parts(
    parameters: ParameterList, dim: int, weights: Mapping[str, float] | None = None, *, side: int | None = None
) -> list[Part]:
    r"""Divide d among parts so that the sketched inner product strays least.

    A part with mean squared gradient norm v and d numbers adds about :math:`\kappa v^2/d` to the variance, κ being
    2·side + 1 for a matrix in blocks of side × side, its shorter side where that is less and kept, and 1 for vectors.
    The sum is least for d in proportion to :math:`v\sqrt\kappa`.

    Args:
        parameters: The coordinates.
        dim: d.
        weights: Name of each parameter (the first one's for the vector part) to v; None: all parts alike.
        side: Numbers of a block on either side; None: ``SIDE`` or ``LINEAR_SIDE``.

    Returns:
        The matrix parts in the order of their parameters, then the vector part.

    Raises:
        SketchSpecError: If d is too small for so many parts, or larger than the number of parameters.
    """
    matrices = [parameter for parameter in parameters if is_matrix(parameter)]
    vectors = [parameter for parameter in parameters if not is_matrix(parameter)]
    sizes = [parameter.size for parameter in matrices] + ([sum(p.size for p in vectors)] if vectors else [])
    blocks = [side or (LINEAR_SIDE if len(parameter.shape) == 2 else SIDE) for parameter in matrices]
    kappas = [min(2.0 * b + 1, *map(float, sides(parameter))) for b, parameter in zip(blocks, matrices, strict=True)]
    kappas += [1.0] if vectors else []
    leasts = [math.prod(min(LEAST_SIDE, extent) for extent in sides(parameter)) for parameter in matrices]
    leasts += [min(LEAST_SIDE, sizes[-1])] if vectors else []
    if dim < sum(leasts):
        raise SketchSpecError(
            f"a kronecker sketch of these {len(sizes)} parts needs a dim of at least {sum(leasts)}, got {dim}."
        )
    if dim > sum(sizes):
        raise SketchSpecError(f"the model has {sum(sizes)} parameters, fewer than dim {dim}: use an identity sketch.")
    names = [parameter.name for parameter in (*matrices, *vectors[:1])]
    given = dict.fromkeys(names, 1.0) if weights is None else weights
    wanted = [math.sqrt(kappa) * given[name] for name, kappa in zip(names, kappas, strict=True)]
    shares = _shares(dim, wanted, leasts, sizes)
    parts: list[Part] = [
        _matrix_part(parameter, share, block) for parameter, share, block in zip(matrices, shares, blocks, strict=False)
    ]
    if vectors:
        left = dim - sum(part.dim for part in parts)
        parts.append(VectorPart(tuple(parameter.name for parameter in vectors), min(sizes[-1], left)))
    return parts


def part_lines(spec: SketchSpec, parameters: ParameterList) -> list[str]:
    """The parts in words.

    Args:
        spec: Of the family kronecker.
        parameters: The coordinates.

    Returns:
        A line for each part, and one for numbers that stay zero.
    """
    shapes = {parameter.name: parameter for parameter in parameters}
    lines = []
    for part in read_parts(spec, parameters):
        if isinstance(part, MatrixPart):
            height, width = sides(shapes[part.parameter])
            blocks = "1 block" if part.blocks == 1 else f"{part.blocks} blocks"
            to = f"{blocks} of {part.row_dim} x {part.column_dim} = {part.dim}"
            lines.append(f"{part.parameter}: {height} x {width} to {to}")
        else:
            size = sum(shapes[name].size for name in part.parameters)
            lines.append(f"{len(part.parameters)} vectors: {size} to {part.dim}")
    unused = spec.dim - sum(part.dim for part in read_parts(spec, parameters))
    return [*lines, f"{unused} left over, zero in every row"] if unused else lines


def _read_part(entry: Any) -> Part:
    keys = {"parameter", "blocks", "row_dim", "column_dim"}
    if isinstance(entry, Mapping):
        numbers = [value for key, value in entry.items() if key not in ("parameter", "parameters")]
        whole = all(isinstance(number, int) and not isinstance(number, bool) for number in numbers)
        if whole and set(entry) == keys and isinstance(entry["parameter"], str):
            return MatrixPart(**entry)
        if whole and set(entry) == {"parameters", "dim"}:
            return VectorPart(tuple(str(name) for name in entry["parameters"]), entry["dim"])
    raise SketchSpecError(f"{entry!r} is no part of a kronecker sketch; docs/sketches.md says what a part is.")


def _shares(dim: int, wanted: Sequence[float], leasts: Sequence[int], most: Sequence[int]) -> list[int]:
    # In proportion to what is wanted, but within bounds: who hits one gets it, the others share what is left.
    shares = [float(least) for least in leasts]
    open_parts = set(range(len(wanted)))
    left = float(dim)
    while open_parts:
        total = sum(wanted[i] for i in open_parts) or 1.0
        even = 0.0 if any(wanted[i] > 0 for i in open_parts) else left / len(open_parts)
        proposed = {i: even + left * wanted[i] / total for i in open_parts}
        low = {i for i in open_parts if proposed[i] < leasts[i]}
        high = {i for i in open_parts if proposed[i] > most[i]}
        # Only one kind at a time: fixing the low ones takes from the others, fixing the high ones gives to them.
        bound = low or high
        if not bound:
            return [int(proposed.get(i, shares[i])) for i in range(len(wanted))]
        for i in bound:
            shares[i] = float(leasts[i] if i in low else most[i])
            left -= shares[i]
        open_parts -= bound
    return [int(share) for share in shares]


def _matrix_part(parameter: Parameter, share: int, side: int) -> MatrixPart:
    height, width = sides(parameter)
    blocks = max(1, round(share / side**2))
    if min(height, width) <= side or share <= side**2:
        blocks = 1
    root = max(1, math.isqrt(share // blocks))
    row_dim = min(height, root, side)
    column_dim = min(width, share // (blocks * row_dim))
    if width <= side and row_dim * width < share:  # the columns are all kept: the rows take the rest
        column_dim, row_dim = width, min(height, share // (blocks * width))
    return MatrixPart(parameter.name, blocks, row_dim, column_dim)
