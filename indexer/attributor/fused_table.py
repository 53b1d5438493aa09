"""The table of a coreset selection over stored rows: one loop multiplies a row, changes its line of the table, sums it.

Everything streams once: Φ in its stored type is read, the table is read and written while its line is at hand. The
products that decide are made here too, by both cores, in an order that no thread count changes.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from attribution.exact_sums import inner_product_error
from indexer.attributor.compiled import compiled_in_lanes
from indexer.attributor.scan_threads import in_pieces
from indexer.attributor.stored_rows import Array, StoredRows
from sketchstore.view import View

#: Rows multiplied at a time: their sums are independent, so that additions need not wait for each other.
_TOGETHER = 4
#: Lines of the table changed at a time, after the rows that they belong to were multiplied.
_LINES = 64
#: Float16 rows widened to float32 before they are multiplied: 8 MiB at d = 4096.
_WIDENED_ROWS = 512
#: Rows widened to float64 while the table is filled: 64 MiB at d = 4096.
_FILL_ROWS = 2048


@compiled_in_lanes
def _dots(stored, rows, first, vector, sums):  # type: ignore[no-untyped-def]
    # Products of the four rows from ``first`` on with a vector, which may be shorter: a slice would not be contiguous.
    a, b = stored[rows[first]], stored[rows[first + 1]]
    c, d = stored[rows[first + 2]], stored[rows[first + 3]]
    at, bt, ct, dt = 0.0, 0.0, 0.0, 0.0
    for j in range(vector.shape[0]):
        value = vector[j]
        at += np.float64(a[j]) * value
        bt += np.float64(b[j]) * value
        ct += np.float64(c[j]) * value
        dt += np.float64(d[j]) * value
    sums[0], sums[1], sums[2], sums[3] = at, bt, ct, dt


@compiled_in_lanes
def _dot(stored, row, vector):  # type: ignore[no-untyped-def]
    total = 0.0
    for j in range(vector.shape[0]):
        total += np.float64(stored[row, j]) * vector[j]
    return total


@compiled_in_lanes
def _change(line, column, coefficients, weights):  # type: ignore[no-untyped-def]
    # One line of the table in float32, and the weighted sum of its squares in float64.
    total, factor = 0.0, np.float32(column)
    for q in range(line.shape[0]):
        value = line[q] - factor * coefficients[q]
        line[q] = value
        total += weights[q] * np.float64(value * value)
    return total


@compiled_in_lanes
def _advance(stored, rows, direction, coefficients, weights, table, columns, squares):  # type: ignore[no-untyped-def]
    sums = np.empty(_TOGETHER)
    for low in range(0, rows.shape[0], _LINES):
        high = min(rows.shape[0], low + _LINES)
        whole = low + (high - low) // _TOGETHER * _TOGETHER
        for first in range(low, whole, _TOGETHER):
            _dots(stored, rows, first, direction, sums)
            for k in range(_TOGETHER):
                columns[first + k] = sums[k]
        for i in range(whole, high):
            columns[i] = _dot(stored, rows[i], direction)
        for i in range(low, high):
            squares[i] = _change(table[i], columns[i], coefficients, weights)


@compiled_in_lanes
def _sum_squares(weights, table, squares):  # type: ignore[no-untyped-def]
    for i in range(table.shape[0]):
        total = 0.0
        for q in range(table.shape[1]):
            total += weights[q] * (np.float64(table[i, q]) * np.float64(table[i, q]))
        squares[i] = total


@compiled_in_lanes
def _row_products(rows, order, vectors, out, start, stop):  # type: ignore[no-untyped-def]
    sums = np.empty(_TOGETHER)
    whole = rows.shape[0] // _TOGETHER * _TOGETHER
    for first in range(start, min(stop, whole), _TOGETHER):
        for s in range(vectors.shape[0]):
            _dots(rows, order, first, vectors[s], sums)
            for k in range(_TOGETHER):
                out[s, first + k] = sums[k]
    for i in range(max(start, whole), stop):
        for s in range(vectors.shape[0]):
            out[s, i] = _dot(rows, i, vectors[s])


def row_products(rows: Array, vectors: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Multiply the beginning of each row with each vector, on several threads; as ``attribution.row_products``.

    Rows are taken four at a time from the first on, whatever piece they are in: the bits depend on a row's place only.

    Args:
        rows: Rows, float64 or float32 [m, w].
        vectors: Vectors, float64 [s, k] with k ≤ w.

    Returns:
        Inner products of the first k values, float64 [s, m].
    """
    vectors = np.ascontiguousarray(vectors)
    out = np.empty((vectors.shape[0], rows.shape[0]))
    order = np.arange(rows.shape[0])

    def piece(start: int, stop: int) -> None:
        # Pieces begin where four rows do.
        left = -(-start // _TOGETHER) * _TOGETHER
        right = rows.shape[0] if stop == rows.shape[0] else -(-stop // _TOGETHER) * _TOGETHER
        _row_products(rows, order, vectors, out, min(left, rows.shape[0]), min(right, rows.shape[0]))

    in_pieces(piece, rows.shape[0])
    return out


class FusedTable:
    """A ``CovarianceTable`` over stored rows.

    Args:
        view: The view.
        rows: Rows of the candidates, int64 [c], ascending.
        num_queries: q.

    Attributes:
        values: b_nq, float32 [c, q].
    """

    def __init__(self, view: View, rows: Tensor, num_queries: int) -> None:
        self.values = torch.empty(rows.numel(), num_queries, dtype=torch.float32)
        self._rows = rows
        self._stored = StoredRows(view)
        self._scale = view.scale
        self._table: Array = self.values.numpy()
        wanted = self._places = view.places(rows)
        # Candidates in each shard: a plain array, its first place, its first candidate and the one after its last.
        self._shards: list[tuple[Array | None, int, int, int]] = []
        first = 0
        for number in range(view.num_shards):
            shard = np.asarray(view.shard(number))
            left, right = np.searchsorted(wanted, [first, first + shard.shape[0]])
            direct = shard if shard.dtype == np.float32 else None
            self._shards.append((direct, first, int(left), int(right)))
            first += shard.shape[0]

    @property
    def relative_error(self) -> float:
        """Products are summed in float64."""
        return inner_product_error(self._stored.dim, torch.float64)

    def fill(self, vectors: Tensor) -> None:
        """Set b_nq to the product of row n with vector q.

        Args:
            vectors: float64 [q, d].
        """
        for places in torch.split(torch.arange(self._rows.numel()), _FILL_ROWS):
            self.values[places] = (self._stored.read(self._rows[places], torch.float64) @ vectors.T).float()

    def squares(self, weights: Tensor) -> Tensor:
        """Sum the weighted squares of every line.

        Args:
            weights: float64 [q].

        Returns:
            float64 [c].
        """
        squares, given = np.empty(self._rows.numel()), np.ascontiguousarray(weights.numpy())
        in_pieces(lambda a, b: _sum_squares(given, self._table[a:b], squares[a:b]), squares.size)
        return torch.from_numpy(squares)

    def advance(self, direction: Tensor, coefficients: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Take one pick into account, in one pass over the rows and the table.

        Args:
            direction: float64 [d].
            coefficients: float64 [q].
            weights: float64 [q].

        Returns:
            Column values x_n · direction and the new squares, float64 [c].
        """
        columns, squares = np.empty(self._rows.numel()), np.empty(self._rows.numel())
        along = np.ascontiguousarray(direction.numpy())
        factors, given = coefficients.numpy().astype(np.float32), np.ascontiguousarray(weights.numpy())

        def part(stored: Array, rows: Array, vector: Array, a: int, b: int) -> None:
            _advance(stored, rows, vector, factors, given, self._table[a:b], columns[a:b], squares[a:b])

        def piece(start: int, stop: int) -> None:
            for shard, first, left, right in self._shards:
                a, b = max(start, left), min(stop, right)
                if shard is not None and a < b:
                    part(shard, self._places[a:b] - first, along * self._scale, a, b)
                    continue
                for low in range(a, b, _WIDENED_ROWS):
                    high = min(b, low + _WIDENED_ROWS)
                    widened = self._stored.read(self._rows[low:high], torch.float32).numpy()
                    part(widened, np.arange(high - low), along, low, high)

        in_pieces(piece, self._rows.numel())
        return torch.from_numpy(columns), torch.from_numpy(squares)
