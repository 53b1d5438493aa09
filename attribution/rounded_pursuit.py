r"""The greedy step of the exact rules from products with rounded rows: a quarter of the bytes, the same picks.

The systems of :mod:`attribution.pursuit` have b_n = φ_n · r and M_nn = m_n − ‖X φ_n‖², with r the residual and a row of
X for each pick. Both are linear in φ_n before the square, so what rounding a row to φ̂_n does to them **does not
grow with the picks**, however many products they are sums of:

.. math:: |φ_n · r - φ̂_n · r̂| \le ‖φ_n - φ̂_n‖ ‖r̂‖ + ‖φ_n‖ ‖r - r̂‖, \qquad
    \big| ‖X φ_n‖ - ‖X̂ φ̂_n‖ \big| \le ‖φ_n - φ̂_n‖ ‖X̂‖ + ‖φ_n‖ ‖X - X̂‖

where r̂ = r̂_0 − Σ_j b_j X̂_j is summed from the very vectors that were multiplied, so that its distance from r is known.
For InfoGain M_nn = σ² + ‖φ_n‖²_Λ with a norm of Λ⁻¹ = I − XᵀX ≤ I, hence √v is off by no more than ‖φ_n − φ̂_n‖ either;
that is the better of the two where little of v is left. Rows that these bounds leave in contention are decided in
float64 from what is stored, as ever.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from attribution.exact_sums import Array, row_dots, unit_roundoff
from attribution.pursuit import Evaluated, Pursuit, System
from attribution.rounded_rows import RoundedProducts, RoundedRows

#: Roundings of a product, of its sum with those before and of the norms, in units of 2⁻⁵³: with room to spare.
_ROUNDINGS = 64


@dataclass(frozen=True)
class Given:
    """A system before its first pick.

    Attributes:
        residual: r with b_n = φ_n · r, float64 [d].
        residual_error: φ_n · r is off the value of b_n that decides by at most ``residual_error · ‖φ_n‖``.
        diagonal: m_n, [c].
        diagonal_error: Bound of its error against the value that decides, [c].
        floor: What M_nn can never fall below, [c], positive.
        noise_variance: σ² where m_n = σ² + ‖φ_n‖² and XᵀX ≤ I; None elsewhere.
    """

    residual: Array
    residual_error: float
    diagonal: Array
    diagonal_error: Array
    floor: Array
    noise_variance: float | None


@dataclass(frozen=True)
class Move:
    """What a pick adds.

    Attributes:
        row: The row of X, float64 [d]: its product with φ_n is M_na/√M_aa.
        error: That product is off the value that decides by at most ``error · ‖φ_n‖``.
        coefficient: b_a/√M_aa; r loses this multiple of the row.
        residual: r after it, float64 [d].
        residual_error: As of :class:`Given`, after it.
    """

    row: Array
    error: float
    coefficient: float
    residual: Array
    residual_error: float


class LinearSystem(System, Protocol):
    """A system of one query whose values are products of the rows with vectors."""

    def given(self) -> Given:
        """The system before the first of its moves."""

    def moves(self) -> Iterator[Move]:
        """What was added since this was last asked, in order."""


class RoundedPursuit(Pursuit):
    """A :class:`attribution.pursuit.Pursuit` that nominates by rounded rows; what decides, and how, is the same.

    Args:
        system: Where vectors and exact values come from.
        rows: The candidates' rounded rows, by position.

    Attributes:
        products: How often all rounded rows were multiplied.
    """

    def __init__(self, system: LinearSystem, rows: RoundedRows) -> None:
        # Not the state of the other kind of bounds: making it is a product with what is stored.
        self._system = self._linear = system
        self._divide = True
        self._pending = False
        self._picked = 0
        self._rows = rows
        self.products = 0
        start = system.given()
        self._floor = start.floor
        self._free = np.ones(start.diagonal.shape[0], dtype=bool)
        self._start = start
        found = self._multiplied(start.residual)
        self._targets = found.values
        # M_nn when a row was last decided, how far that may be off, and what was subtracted since then and in all.
        self._diagonal, self._diagonal_error = start.diagonal.copy(), start.diagonal_error.copy()
        self._squares, self._all_squares = np.zeros_like(self._targets), np.zeros_like(self._targets)
        # r̂ and r − r̂ now, and as they were after each step (row t + 1 after t picks; row 0 is nothing): what a row was
        # decided with needs no bound any more.
        self._rounded_residual, self._gap = found.vector.copy(), start.residual - found.vector
        self._residual_error = start.residual_error
        self._residual_length = _length(start.residual)
        size = start.residual.shape[0]
        self._before, self._gaps_before = np.zeros((1, size)), np.zeros((1, size))
        self._decided_at = np.zeros(self._targets.shape[0], dtype=np.int64)
        # Of X̂, after each step: its squared Frobenius norm, and that of X − X̂.
        self._squared_lengths, self._squared_distances = [0.0, 0.0], [0.0, 0.0]
        # What was subtracted so far, to know how it rounded.
        self._moved = _length(found.vector)
        self._remember()
        self._move()

    def _multiplied(self, vector: Array) -> RoundedProducts:
        self.products += 1
        return self._rows.rounded_products(vector)

    def _update(self) -> None:
        """Multiply with what the latest pick added."""
        if self._pending:
            self._pending = False
            self._move()

    def _move(self) -> None:
        for move in self._linear.moves():
            found = self._multiplied(move.row)
            length = _length(found.vector)
            self._picked += 1
            self._targets -= move.coefficient * found.values
            squares = found.values**2
            self._squares += squares
            self._all_squares += squares
            self._rounded_residual -= move.coefficient * found.vector
            self._gap = move.residual - self._rounded_residual
            self._residual_error = max(self._residual_error, move.residual_error)
            self._residual_length = _length(move.residual)
            self._squared_lengths.append(self._squared_lengths[-1] + length**2)
            distance = _length(move.row - found.vector) + move.error
            self._squared_distances.append(self._squared_distances[-1] + distance**2)
            self._moved += abs(move.coefficient) * length
            self._remember()

    def _remember(self) -> None:
        step = self._picked + 1
        if step == self._before.shape[0]:
            room = np.zeros((step, self._before.shape[1]))
            self._before = np.concatenate([self._before, room])
            self._gaps_before = np.concatenate([self._gaps_before, room])
        self._before[step], self._gaps_before[step] = self._rounded_residual, self._gap

    def _intervals(self, weighting: Tensor) -> tuple[Array, Array]:
        norms, distances, decided_at = self._rows.norms, self._rows.distances, self._decided_at
        rounding = _ROUNDINGS * (self._picked + 2) * unit_roundoff(torch.float64)
        # By the step that a row was last decided at.
        known = slice(0, self._picked + 2)
        turned = _lengths(self._before[known] - self._rounded_residual) * (1 + rounding)
        # Values decide when a row is decided, and when they are bounded.
        apart = _lengths(self._gaps_before[known] - self._gap) + 2 * self._residual_error
        apart += rounding * (self._moved + self._residual_length)
        targets = np.abs(self._targets)
        error = distances * turned[decided_at] + norms * apart[decided_at]
        smallest, largest = self._diagonals(rounding)
        upper = targets + error
        upper *= upper
        upper /= np.maximum(smallest, self._floor, out=smallest)
        lower = np.maximum(targets - error, 0.0)
        lower *= lower
        lower /= np.maximum(largest, self._floor, out=largest)
        weight = float(weighting[0]) ** 2
        return lower * weight, upper * (weight * (1 + rounding))

    def _diagonals(self, rounding: float) -> tuple[Array, Array]:
        # Bounds of M_nn.
        norms, distances, decided_at = self._rows.norms, self._rows.distances, self._decided_at
        contracting = self._start.noise_variance
        squared_lengths, squared_distances = np.array(self._squared_lengths), np.array(self._squared_distances)
        length = np.sqrt(squared_lengths[-1] - squared_lengths)
        distance = np.sqrt(squared_distances[-1] - squared_distances)
        distance += rounding * length[0]
        if contracting is not None:
            length = np.minimum(length, 1 + distance)
        # ‖X φ‖ of the picks since, what it may be at most and at least.
        across = np.sqrt(self._squares)
        blur = distances * (length * (1 + rounding))[decided_at] + norms * distance[decided_at]
        slack = self._start.diagonal_error * (self._picked + 1) + rounding * np.abs(self._start.diagonal)
        slack += self._diagonal_error
        smallest = self._diagonal - slack - (across + blur) ** 2
        largest = self._diagonal + slack - np.maximum(across - blur, 0.0) ** 2
        if contracting is not None:
            rounded = self._rows.rounded_norms
            left = rounded**2 * (1 - rounding)
            left -= (np.sqrt(self._all_squares) + rounded * (distance[0] + 2 * rounding)) ** 2
            left = np.sqrt(np.maximum(left, 0.0, out=left))
            left -= distances + rounding * norms
            np.maximum(left, 0.0, out=left)
            np.maximum(smallest, contracting + left**2 - slack, out=smallest)
        return smallest, largest

    def _refresh(self, places: npt.NDArray[np.int64], values: Evaluated) -> None:
        """Start bounds anew from what was decided."""
        targets = values.targets[:, 0].numpy()
        # A value within rounding of 0 is decided as 0, but is not: what is known of it roughly is more.
        told = targets != 0
        places = places[told]
        self._targets[places] = targets[told]
        self._diagonal[places] = values.pivots.numpy()[told]
        self._diagonal_error[places] = values.pivot_errors.numpy()[told]
        self._squares[places] = 0.0
        self._decided_at[places] = self._picked + 1


def _lengths(vectors: Array) -> Array:
    lengths: Array = np.sqrt(row_dots(vectors, vectors))
    return lengths


def _length(vector: Array) -> float:
    return float(_lengths(vector))
