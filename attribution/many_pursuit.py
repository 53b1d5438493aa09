r"""The greedy step for many queries: pick argmax Σ_q w_q b_nq² / M_nn, then b ← b − M_a b_a/M_aa, on a float32 table.

Beside the table's pass, a pick costs a few operations per candidate, because the errors factorise. With value p_i the
change of b_nq at the i-th of t updates, the t + 1 values that were stored there were rounded by at most u|b(j)|, and
where it changed by another 3u|p_j|; and |b(j)| is |b(t)| + Σ_{i>j} |p_i| at most, but for these roundings. So the error
of b_nq is at most

    u ( (t + 1) |b_nq| + Σ_i (i + 4) |x_n·e_i| |z_qi| ) / (1 − (t + 1) u)

and by Cauchy–Schwarz the sum is at most √(Σ_i (x_n·e_i)²) √(Σ_i (i + 4)² z_qi²): a number per row times a number per
query. In the weighted norm of the score it becomes one number per row times one number.
"""

import math
from dataclasses import dataclass
from hashlib import blake2b
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from attribution.covariance_table import CovarianceTable
from attribution.exact_sums import Array, row_dots, unit_roundoff

#: Contenders evaluated at a time, the most promising first: the matrices they meet are read once for all of them.
_DECIDING_ROWS = 4
#: Contenders compared with one another at a time: 8 MiB at d = 4096.
_COMPARED_ROWS = 256
_U32, _U64 = unit_roundoff(torch.float32), unit_roundoff(torch.float64)
#: Below it float32 rounds absolutely, not relatively.
_SMALLEST_FLOAT32 = 2.0**-126
Positions = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Evaluated:
    """One candidate in float64, given the picks so far, by sums of its own.

    Attributes:
        targets: b_n, shape [q].
        pivot: M_nn.
    """

    targets: Float[Tensor, " q"]
    pivot: float


@dataclass(frozen=True)
class Conditioned:
    """What a pick did.

    Attributes:
        direction: e, shape [m]: x_n · e is M_na/√M_aa.
        direction_error: Bound of the norm of its error.
        coefficients: z = b_a/√M_aa, shape [q].
    """

    direction: Float[Tensor, " m"]
    direction_error: float
    coefficients: Float[Tensor, " q"]


class ManySystem(Protocol):
    """A matrix M and targets b whose rows come from row vectors x_n.

    Attributes:
        vectors: ρ_q with b_nq = x_n · ρ_q before any pick, shape [q, m], float64.
        squared_norms: ‖x_n‖², shape [c].
        diagonal: M_nn before any pick, shape [c].
        diagonal_error: Bound of its error, shape [c].
        floor: What M_nn can never fall below, shape [c], positive.
        decided_error: γ: values of :meth:`evaluate` are within γ ‖x_n‖ (‖ρ_q‖ + Σ|z|‖e‖) of the truth.
    """

    vectors: Float[Tensor, "q m"]
    squared_norms: Float[Tensor, " c"]
    diagonal: Float[Tensor, " c"]
    diagonal_error: Float[Tensor, " c"]
    floor: Float[Tensor, " c"]
    decided_error: float

    def evaluate(self, positions: Int[Tensor, " s"]) -> list[Evaluated]:
        """b_n and M_nn given the picks so far, in float64, each row by sums of its own."""

    def accept(self, position: int) -> Conditioned:
        """Condition on a pick."""

    def sketches(self, positions: Int[Tensor, " s"]) -> Float[Tensor, "s d"]:
        """The examples as stored, float64, to know equal ones."""

    def weights(self) -> Float[Tensor, " q"]:
        """w_q of the score, given the picks so far."""


@dataclass(frozen=True)
class ManyChoice:
    """A pick, before it is accepted.

    Attributes:
        position: Which candidate.
        score: The rule's value, in float64.
        targets: b_a, shape [q], float64.
    """

    position: int
    score: float
    targets: Float[Tensor, " q"]


class ManyPursuit:
    """The state of a greedy selection for many queries.

    Args:
        system: Where directions and exact values come from.
        table: b of every candidate; filled here.
        divide: Whether the score is divided by M_nn (Eqs. 94 and 62) or not (Eq. 95).

    Attributes:
        evaluated: Candidates evaluated in float64 so far.
    """

    def __init__(self, system: ManySystem, table: CovarianceTable, *, divide: bool = True) -> None:
        self._system = system
        self._table = table
        self._divide = divide
        # Arrays: operations on so few values cost torch more in waking threads than in work.
        self._norms = np.sqrt(system.squared_norms.numpy()) * (1 + 1e-12)
        self._diagonal, self._diagonal_error = system.diagonal.numpy(), system.diagonal_error.numpy()
        self._floor = system.floor.numpy()
        lengths = np.linalg.norm(system.vectors.numpy(), axis=1)
        # Powers of two that keep every |b_nq| within 1, so that nothing leaves the range of float32.
        self._scales = np.exp2(-np.ceil(np.log2(np.maximum(lengths * self._norms.max(initial=0.0), 1e-300))))
        table.fill(system.vectors * torch.from_numpy(self._scales)[:, None])
        self._updates = 0
        self._column_squares = np.zeros_like(self._norms)
        self._steps_squared = np.zeros_like(lengths)  # Σ_i (i + 4)² z_qi²
        self._reach = lengths * self._scales  # ‖ρ_q‖ + Σ_i |z_qi| ‖e_i‖
        self._drift = np.zeros_like(lengths)  # Σ_i |z_qi| · (error of e_i)
        self._column_error = 0.0  # Σ_i (error of x_n·e_i / ‖x_n‖)²
        self._pending: Conditioned | None = None
        self._squares: Array | None = None
        self._free = np.ones(self._norms.shape[0], dtype=bool)
        self.evaluated = 0

    def choose(self, eligible: Bool[Tensor, " c"] | None = None) -> ManyChoice | None:
        """Find the free candidate of largest score, ties to the lowest position.

        Args:
            eligible: Which candidates may be picked now, shape [c]; all, if None.

        Returns:
            The choice; None when the largest score is exactly 0 or nothing may be picked.
        """
        allowed = self._free if eligible is None else self._free & eligible.numpy()
        if not allowed.any():
            return None
        weights = self._system.weights().numpy()
        lower, upper = self.bounds()
        contending = np.flatnonzero(allowed & (upper >= lower.max(where=allowed, initial=0.0)))
        contending = self._distinct(contending)
        contending = contending[np.argsort(-upper[contending], kind="stable")]
        best: ManyChoice | None = None
        for left in range(0, contending.size, _DECIDING_ROWS):
            chunk = contending[left : left + _DECIDING_ROWS]
            if best is not None:
                chunk = chunk[upper[chunk] >= best.score]
                if not chunk.size:
                    break
            self.evaluated += chunk.size
            for position, found in zip(chunk.tolist(), self._system.evaluate(torch.from_numpy(chunk)), strict=True):
                score = float(row_dots(np.square(found.targets.numpy()), weights))
                score = score / found.pivot if self._divide else score
                if best is None or score > best.score or (score == best.score and position < best.position):
                    best = ManyChoice(position, score, found.targets)
        return best if best is not None and best.score > 0 else None

    def _distinct(self, contending: Positions) -> Positions:
        # Equal examples tie, whatever an eigendecomposition made of them: the first of each kind stands for all.
        if contending.size < 2:
            return contending
        first: dict[bytes, int] = {}
        for left in range(0, contending.size, _COMPARED_ROWS):
            chunk = contending[left : left + _COMPARED_ROWS]
            for position, sketch in zip(chunk.tolist(), self._system.sketches(torch.from_numpy(chunk)), strict=True):
                # + 0.0 turns −0 into 0.
                first.setdefault(blake2b((sketch.numpy() + 0.0).tobytes(), digest_size=16).digest(), position)
        return np.array(list(first.values()), dtype=np.int64)

    def accept(self, position: int) -> None:
        """Condition the system on a pick; the table follows when the next pick is chosen.

        Args:
            position: The pick.
        """
        self._free[position] = False
        self.follow(self._system.accept(position))

    def follow(self, conditioned: Conditioned) -> None:
        """Let the table follow a conditioning, of a pick or of an example outside the candidates.

        Args:
            conditioned: What it did.
        """
        if self._pending is not None:
            self._settle(self._system.weights().numpy())
        self._pending = conditioned

    def _settle(self, weights: Array) -> Array:
        # The one pass over rows and table, and Σ_q w_q b_nq²; the last pick of a selection needs none.
        scaled = torch.from_numpy(weights / self._scales**2)
        if self._pending is None:
            if self._squares is None:
                self._squares = self._table.squares(scaled).numpy()
            return self._squares
        pending, self._pending = self._pending, None
        coefficients = pending.coefficients.numpy() * self._scales
        columns, squares = self._table.advance(pending.direction, torch.from_numpy(coefficients), scaled)
        self._squares = squares.numpy()
        self._updates += 1
        length = float(np.linalg.norm(pending.direction.numpy()))
        self._column_squares += np.square(columns.numpy())
        self._steps_squared += ((self._updates + 4) * coefficients) ** 2
        self._reach += np.abs(coefficients) * length
        self._drift += np.abs(coefficients) * pending.direction_error
        self._column_error += (self._table.relative_error * length + pending.direction_error) ** 2
        return self._squares

    def bounds(self) -> tuple[Array, Array]:
        """Bound every candidate's score, whatever was rounded.

        Returns:
            What the score is at least and at most, shape [c] each.
        """
        weights = self._system.weights().numpy()
        squares = self._settle(weights)
        weights = weights / self._scales**2
        roundings = self._updates + 1
        lengths, columns = np.sqrt(squares), np.sqrt(self._column_squares)

        def norm(squared: Array) -> float:
            return math.sqrt(float(weights @ squared)) * (1 + 1e-9)

        # Of the stored values; of products, in proportion to ‖x_n‖; of values too small for float32.
        rounded = _U32 / (1 - roundings * _U32)
        relative = self._table.relative_error + self._system.decided_error
        products = relative * norm(self._reach**2) + norm(self._drift**2)
        tiny = roundings * _U32 * _SMALLEST_FLOAT32 * norm(np.ones_like(weights))
        # The norm itself is a float64 sum of float32 squares.
        tiny += math.sqrt(_SMALLEST_FLOAT32) * norm(np.ones_like(weights))
        errors = (rounded * roundings + 2 * _U32 + 4 * weights.size * _U64) * lengths
        errors += rounded * norm(self._steps_squared) * columns
        errors += products * self._norms
        errors += tiny
        lower = np.square(np.maximum(lengths - errors, 0.0))
        upper = np.square(lengths + errors)
        if not self._divide:
            return lower, upper
        reach = math.sqrt(self._column_error) * self._norms
        diagonal = self._diagonal - self._column_squares
        error = self._diagonal_error + reach * (2 * columns + reach)
        error += 4 * roundings * _U64 * (self._column_squares + np.abs(self._diagonal))
        lower /= np.maximum(diagonal + error, self._floor)
        with np.errstate(over="ignore"):  # an infinite bound rules nothing out
            upper /= np.maximum(diagonal - error, self._floor)
        return lower, upper
