r"""Two-sided sketches of weight matrices, from a layer's inputs and output gradients: no gradient is ever formed.

For a gradient :math:`G = \sum_p u_p v_p^\top` of a weight, block k of its numbers is

.. math:: \tfrac{1}{\sqrt{B m n}} R_k G C_k^\top = \tfrac{1}{\sqrt{B m n}} \sum_p (R_k u_p)(C_k v_p)^\top,

R_k [m, rows] and C_k [n, columns] of random signs (LoGra's form). A side that is kept whole has the identity in the
place of signs, and its 1/√m or 1/√n is left out. E[φ·φ′] = g·g′; `theory` has the spread.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass

import torch
from blake3 import blake3
from torch import Tensor

from indexer.parameters import Parameter, ParameterList
from indexer.sketches.base import check_add
from indexer.sketches.kronecker_plan import MatrixPart, VectorPart, read_parts, sides
from indexer.sketches.rademacher import RademacherSketch
from indexer.sketches.spec import SketchSpec


@dataclass(frozen=True)
class PlacedMatrix:
    """A matrix part with its places.

    Attributes:
        part: Blocks and dimensions.
        parameter: Where it stands in the parameter list.
        start: Its first number in the sketch.
    """

    part: MatrixPart
    parameter: Parameter
    start: int

    @property
    def scale(self) -> float:
        """1/√(B m n), without the sides that are kept."""
        height, width = sides(self.parameter)
        rows = 1 if self.keeps_rows else self.part.row_dim
        columns = 1 if self.keeps_columns else self.part.column_dim
        assert self.part.row_dim <= height
        assert self.part.column_dim <= width
        return 1.0 / math.sqrt(self.part.blocks * rows * columns)

    @property
    def keeps_rows(self) -> bool:
        """Whether R is the identity."""
        return self.part.row_dim == self.parameter.shape[0]

    @property
    def keeps_columns(self) -> bool:
        """Whether C is the identity."""
        return self.part.column_dim == sides(self.parameter)[1]


class KroneckerSketch:
    """A two-sided sketch of every weight, and dense signs for all other parameters together.

    Attributes:
        spec: Its spec, with the parts among the options.
        num_parameters: P.
        matrices: Name of each weight to its part.
        vectors: The vector part's parameters with their places among its own coordinates.
        vector_size: Coordinates of the vector part.
    """

    def __init__(self, spec: SketchSpec, parameters: ParameterList, num_threads: int | None = None) -> None:
        """Take the parts of a spec to their places.

        Args:
            spec: Of the family kronecker.
            parameters: The coordinates.
            num_threads: Threads of the compiled kernels; None takes torch's number.
        """
        self.spec = spec
        self.num_parameters = parameters.num_parameters
        self.matrices: dict[str, PlacedMatrix] = {}
        self.vectors: dict[str, tuple[Parameter, int]] = {}
        self.vector_size = 0
        self._vector_start = self._vector_dim = 0
        self._signs: RademacherSketch | None = None
        self._tables: dict[tuple[str, str, torch.device], Tensor] = {}
        self._lock = threading.Lock()
        self._num_threads = num_threads
        places = {parameter.name: parameter for parameter in parameters}
        start = 0
        for part in read_parts(spec, parameters):
            if isinstance(part, MatrixPart):
                self.matrices[part.parameter] = PlacedMatrix(part, places[part.parameter], start)
            else:
                self._place_vectors(part, [places[name] for name in part.parameters], start)
            start += part.dim

    def _place_vectors(self, part: VectorPart, parameters: list[Parameter], start: int) -> None:
        for parameter in parameters:
            self.vectors[parameter.name] = (parameter, self.vector_size)
            self.vector_size += parameter.size
        self._vector_start, self._vector_dim = start, part.dim
        if part.dim < self.vector_size:
            spec = SketchSpec("rademacher", part.dim, part_seed(self.spec.seed, "vectors", ""))
            self._signs = RademacherSketch(spec, self.vector_size, self._num_threads)

    def add(self, gradients: Tensor, offset: int, out: Tensor) -> None:
        """Add what R makes of a slab of gradients, however they came about; see `Sketch.add`.

        Args:
            gradients: Tangent features of consecutive parameters, float32 [b, p].
            offset: Index of the first of them.
            out: Sketches so far, float32 [b, d].
        """
        check_add(self, gradients, offset, out)
        last = offset + gradients.shape[1]
        for placed in self.matrices.values():
            first, stop = _overlap(placed.parameter, offset, last)
            if first < stop:
                self._add_matrix(placed, gradients[:, first - offset : stop - offset], first, out)
        for parameter, place in self.vectors.values():
            first, stop = _overlap(parameter, offset, last)
            if first < stop:
                some = gradients[:, first - offset : stop - offset]
                self.add_vectors(some, place + first - parameter.offset, out)

    def columns(self, offset: int, num_parameters: int) -> Tensor:
        """Part of R, scale included; see `Sketch.columns`.

        Args:
            offset: Index of the first parameter.
            num_parameters: How many, p.

        Returns:
            float32 [p, d].
        """
        columns = torch.zeros(num_parameters, self.spec.dim)
        self.add(torch.eye(num_parameters), offset, columns)
        return columns

    def add_products(self, placed: PlacedMatrix, rows: Tensor, columns: Tensor, out: Tensor) -> None:
        """Add a weight's share from both sides' products at every position.

        Args:
            placed: The weight.
            rows: R u_p of all blocks, [b, B·m, positions].
            columns: C v_p of all blocks, [b, B·n, positions].
            out: Sketches so far, float32 [b, d], changed in place.
        """
        part, count = placed.part, rows.shape[0] * placed.part.blocks
        if rows.shape[2] == 1:
            # Thousands of 4 × 4 products over one position each are calls, not work, and loops of four where they are
            # one broadcast product: with both factors gathered to where they meet it is one long loop.
            of_rows, of_columns = self._meeting_places(placed, rows.device)
            products = rows.float().squeeze(2).index_select(1, of_rows)
            products *= columns.float().squeeze(2).index_select(1, of_columns)
        else:
            left = rows.float().reshape(count, part.row_dim, -1)
            right = columns.float().reshape(count, part.column_dim, -1)
            products = (left @ right.transpose(1, 2)).view(rows.shape[0], -1)
        scale = placed.scale * placed.parameter.ntk_scale
        out[:, placed.start : placed.start + part.dim].add_(products, alpha=scale)

    def add_vectors(self, gradients: Tensor, place: int, out: Tensor) -> None:
        """Add the share of consecutive coordinates of the vector part.

        Args:
            gradients: NTK-scaled, float32 [b, p].
            place: Coordinate of the first among those of the vector part.
            out: Sketches so far, float32 [b, d], changed in place.
        """
        if self._signs is None:
            start = self._vector_start + place
            out[:, start : start + gradients.shape[1]] += gradients
            return
        total = torch.zeros(gradients.shape[0], self._vector_dim, device=gradients.device)
        self._signs.add(gradients.contiguous(), place, total)
        out[:, self._vector_start : self._vector_start + self._vector_dim] += total

    def ranges(self) -> list[list[tuple[int, int]]]:
        """Which coordinates each part is made of.

        Returns:
            For each weight, and last for the vectors if there are any: first coordinate and the one after the last.
        """
        spans = [[(p.parameter.offset, p.parameter.offset + p.parameter.size)] for p in self.matrices.values()]
        vectors = [(parameter.offset, parameter.offset + parameter.size) for parameter, _ in self.vectors.values()]
        return [*spans, vectors] if vectors else spans

    def row_table(self, placed: PlacedMatrix, device: torch.device) -> Tensor:
        """R of all blocks, transposed and without scale.

        Args:
            placed: The weight.
            device: Where to.

        Returns:
            float32 [rows, B·m]: ±1, or the identity.
        """
        height, _ = sides(placed.parameter)
        return self._table("rows", placed, height, placed.part.row_dim, placed.keeps_rows, device)

    def column_table(self, placed: PlacedMatrix, device: torch.device) -> Tensor:
        """C of all blocks, transposed and without scale.

        Args:
            placed: The weight.
            device: Where to.

        Returns:
            float32 [columns, B·n]: ±1, or the identity.
        """
        _, width = sides(placed.parameter)
        return self._table("columns", placed, width, placed.part.column_dim, placed.keeps_columns, device)

    def _table(self, side: str, placed: PlacedMatrix, size: int, dim: int, kept: bool, device: torch.device) -> Tensor:
        key = (side, placed.parameter.name, device)
        with self._lock:
            table = self._tables.get(key)
            if table is None:
                if kept:
                    table = torch.eye(size).repeat(1, placed.part.blocks)
                else:
                    seed = part_seed(self.spec.seed, side, placed.parameter.name)
                    spec = SketchSpec("rademacher", placed.part.blocks * dim, seed)
                    signs = RademacherSketch(spec, size, self._num_threads)
                    table = torch.empty(size, spec.dim)
                    signs.fill(0, table)
                table = self._tables[key] = table.to(device)
        return table

    def _meeting_places(self, placed: PlacedMatrix, device: torch.device) -> tuple[Tensor, Tensor]:
        # For each of a weight's numbers in a sketch, which of R u and which of C v are its factors.
        key = ("meeting", placed.parameter.name, device)
        with self._lock:
            table = self._tables.get(key)
            if table is None:
                part = placed.part
                block = torch.arange(part.blocks).view(-1, 1, 1)
                row = block * part.row_dim + torch.arange(part.row_dim).view(1, -1, 1)
                column = block * part.column_dim + torch.arange(part.column_dim).view(1, 1, -1)
                whole = (part.blocks, part.row_dim, part.column_dim)
                table = torch.stack([row.expand(whole).reshape(-1), column.expand(whole).reshape(-1)]).to(device)
                self._tables[key] = table
        return table[0], table[1]

    def _add_matrix(self, placed: PlacedMatrix, gradients: Tensor, first: int, out: Tensor) -> None:
        part, (_, width) = placed.part, sides(placed.parameter)
        local = first - placed.parameter.offset
        top, bottom = local // width, -(-(local + gradients.shape[1]) // width)
        if gradients.shape[1] != (bottom - top) * width:  # the slab begins or ends within a row of the weight
            whole = gradients.new_zeros(gradients.shape[0], (bottom - top) * width)
            whole[:, local - top * width : local - top * width + gradients.shape[1]] = gradients
            gradients = whole
        right = self.column_table(placed, gradients.device)
        left = self.row_table(placed, gradients.device)[top:bottom].view(bottom - top, part.blocks, part.row_dim)
        halfway = gradients.reshape(-1, width) @ right
        halfway = halfway.view(gradients.shape[0], bottom - top, part.blocks, part.column_dim)
        products = torch.einsum("rkm,brkn->bkmn", left, halfway).flatten(1)
        out[:, placed.start : placed.start + part.dim].add_(products, alpha=placed.scale)


def part_seed(seed: int, side: str, parameter: str) -> int:
    """Key of the generator for one side of one weight.

    Args:
        seed: The user's seed.
        side: ``rows``, ``columns`` or ``vectors``.
        parameter: The weight's name; empty for vectors.

    Returns:
        The first eight bytes, little-endian, of the blake3 digest of "kronecker SEED SIDE PARAMETER" in UTF-8.
    """
    return int.from_bytes(blake3(f"kronecker {seed} {side} {parameter}".encode()).digest()[:8], "little")


def _overlap(parameter: Parameter, offset: int, last: int) -> tuple[int, int]:
    return max(offset, parameter.offset), min(last, parameter.offset + parameter.size)
