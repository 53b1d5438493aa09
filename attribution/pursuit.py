r"""The greedy step that exact rules share: grow S to maximise b_Sᵀ M_SS⁻¹ b_S, by one column of M per step.

Eqs. 8 and 62 are one algorithm on two systems: InfoGain has M = K + σ²I and b = K_* (given nothing), InfoLoss has
M = P = (K_TT + σ²I)⁻¹ and b = α = P k (given everything). The next pick maximises b_n²/M_nn, and after it

    M ← M − M_a M_aᵀ/M_aa,   b ← b − M_a b_a/M_aa

so only the diagonal of M, b, and the picked column are ever needed. Columns come from fast products with a known error;
the error is carried along, and rows that it could confuse with the best are evaluated in float64.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from attribution.exact_sums import inner_products, unit_roundoff

#: Contenders evaluated at a time, the most promising first; a pool of duplicates contends whole.
_DECIDING_ROWS = 16


@dataclass(frozen=True)
class Nominated:
    """The system given nothing picked yet, by fast products.

    Attributes:
        targets: b, shape [c, q].
        target_error: With ``target_scale``: |error of b_nq| ≤ target_error[n] · target_scale[q].
        target_scale: See above, shape [q].
        diagonal: M_nn, shape [c].
        diagonal_error: Bound of its error, shape [c].
        floor: What M_nn can never fall below, shape [c], positive.
        decided_error: As ``target_error``, for values of :meth:`System.evaluate`.
        decided_diagonal_error: As ``diagonal_error``, for values of :meth:`System.evaluate`.
    """

    targets: Float[Tensor, "c q"]
    target_error: Float[Tensor, " c"]
    target_scale: Float[Tensor, " q"]
    diagonal: Float[Tensor, " c"]
    diagonal_error: Float[Tensor, " c"]
    floor: Float[Tensor, " c"]
    decided_error: Float[Tensor, " c"]
    decided_diagonal_error: Float[Tensor, " c"]


@dataclass(frozen=True)
class Column:
    """The column of M that a pick brings, over the square root of its pivot.

    Attributes:
        values: M_na/√M_aa, shape [c], by fast products.
        error: Bound of their error, shape [c].
        coefficients: b_a/√M_aa, float64, shape [q].
    """

    values: Float[Tensor, " c"]
    error: Float[Tensor, " c"]
    coefficients: Float[Tensor, " q"]


@dataclass(frozen=True)
class Choice:
    """A pick, before it is accepted.

    Attributes:
        position: Which candidate.
        score: The rule's value, in float64.
        target: b_a, shape [q], float64.
        pivot: M_aa, float64.
    """

    position: int
    score: float
    target: Float[Tensor, " q"]
    pivot: float


class System(Protocol):
    """A matrix M and targets b, one column of b per query."""

    def nominate(self) -> Nominated:
        """Everything given no pick, fast."""

    def evaluate(self, positions: Int[Tensor, " s"]) -> tuple[Float[Tensor, "s q"], Float[Tensor, " s"]]:
        """b_n and M_nn given the picks so far, in float64, each row by sums of its own."""

    def accept(self, position: int) -> Column:
        """Condition on a pick."""

    def weighting(self) -> Float[Tensor, "q q"] | Float[Tensor, " q"]:
        """G with score ‖b_n G‖²: square roots of weights, or a matrix."""


class Pursuit:
    """The state of a greedy selection over one system.

    Args:
        system: Where columns and exact values come from.
        budget: The most picks that will be made.
        divide: Whether the score is divided by M_nn (Eqs. 8, 62, 94) or not (Eq. 95).
    """

    def __init__(self, system: System, budget: int, *, divide: bool = True) -> None:
        self._system = system
        self._divide = divide
        start = system.nominate()
        self._targets = start.targets.clone()
        self._diagonal = start.diagonal.clone()
        self._diagonal_error = start.diagonal_error.clone()
        self._decided_error = start.decided_error
        self._decided_diagonal_error = start.decided_diagonal_error
        self._floor = start.floor
        count = start.targets.shape[0]
        # Error of b_n: one term per column used, each a row's share times a query's share.
        self._row_errors = torch.zeros(count, budget + 1, dtype=torch.float64)
        self._row_errors[:, 0] = start.target_error
        self._query_errors = torch.zeros(budget + 1, start.targets.shape[1], dtype=torch.float64)
        self._query_errors[0] = start.target_scale
        self._picked = 0
        self.free: Bool[Tensor, " c"] = torch.ones(count, dtype=torch.bool)

    def choose(self, eligible: Bool[Tensor, " c"] | None = None) -> Choice | None:
        """Find the free candidate of largest score, ties to the lowest position.

        Args:
            eligible: Which candidates may be picked now, shape [c]; all, if None.

        Returns:
            The choice; None when the largest score is exactly 0 or nothing may be picked.
        """
        allowed = self.free if eligible is None else self.free & eligible
        if not bool(allowed.any()):
            return None
        weighting = self._system.weighting()
        lower, upper = self._intervals(weighting)
        floor = float(torch.where(allowed, lower, -1.0).max())
        contending = (allowed & (upper >= floor)).nonzero().squeeze(1)
        contending = contending[upper[contending].argsort(descending=True, stable=True)]
        best: Choice | None = None
        for chunk in torch.split(contending, _DECIDING_ROWS):
            if best is not None:
                chunk = chunk[upper[chunk] >= best.score]
                if not chunk.numel():
                    break
            targets, pivots = self._system.evaluate(chunk)
            self._refresh(chunk, targets, pivots)
            scores = self._score(targets, pivots, weighting)
            for place, position in enumerate(chunk.tolist()):
                score = float(scores[place])
                if best is None or score > best.score or (score == best.score and position < best.position):
                    best = Choice(position, score, targets[place], float(pivots[place]))
        return best if best is not None and best.score > 0 else None

    def accept(self, position: int) -> Column:
        """Condition the system on a pick and update every candidate by its column.

        Args:
            position: The pick.

        Returns:
            The column.
        """
        column = self._system.accept(position)
        self._picked += 1
        self._targets -= column.values[:, None] * column.coefficients
        self._diagonal -= column.values**2
        self._diagonal_error += (
            2 * column.values.abs() * column.error
            + column.error**2
            + 4 * unit_roundoff(torch.float64) * (column.values**2 + self._diagonal.abs())
        )
        self._row_errors[:, self._picked] = column.error
        self._query_errors[self._picked] = column.coefficients.abs()
        self.free[position] = False
        return column

    def _intervals(self, weighting: Tensor) -> tuple[Float[Tensor, " c"], Float[Tensor, " c"]]:
        # Bounds on every candidate's score that hold whatever the fast products rounded.
        used = self._query_errors[: self._picked + 1]
        if weighting.ndim == 1:
            weighted = self._targets * weighting
            spread = used * weighting
        else:
            weighted = self._targets @ weighting
            spread = used @ weighting.abs()
        norms = torch.linalg.vector_norm(weighted, dim=1)
        errors = self._row_errors[:, : self._picked + 1] @ torch.linalg.vector_norm(spread, dim=1)
        # The norm itself is rounded too.
        errors = errors + 4 * weighted.shape[1] * unit_roundoff(torch.float64) * norms
        lower = torch.clamp(norms - errors, min=0.0) ** 2
        upper = (norms + errors) ** 2
        if not self._divide:
            return lower, upper
        largest = torch.maximum(self._diagonal + self._diagonal_error, self._floor)
        smallest = torch.maximum(self._diagonal - self._diagonal_error, self._floor)
        return lower / largest, upper / smallest

    def _score(
        self, targets: Float[Tensor, "s q"], pivots: Float[Tensor, " s"], weighting: Tensor
    ) -> Float[Tensor, " s"]:
        if weighting.ndim == 1:
            weighted = targets * weighting
        else:
            weighted = torch.stack([inner_products(targets, column) for column in weighting.T], dim=1)
        squared = weighted**2
        scores = inner_products(squared, torch.ones(squared.shape[1], dtype=torch.float64))
        return scores / pivots if self._divide else scores

    def _refresh(
        self, positions: Int[Tensor, " s"], targets: Float[Tensor, "s q"], pivots: Float[Tensor, " s"]
    ) -> None:
        """Put float64 values in the place of nominated ones, so that errors do not pile up where they matter."""
        self._targets[positions] = targets
        self._diagonal[positions] = pivots
        self._diagonal_error[positions] = self._decided_diagonal_error[positions] * (self._picked + 1)
        self._row_errors[positions] = 0.0
        self._row_errors[positions, 0] = self._decided_error[positions] * (self._picked + 1)
