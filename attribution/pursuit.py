r"""The greedy step that exact rules share: grow S to maximise b_Sᵀ M_SS⁻¹ b_S, by one column of M per step.

Eqs. 8 and 62 are one algorithm on two systems: InfoGain has M = K + σ²I and b = K_* (given nothing), InfoLoss has
M = P = (K_TT + σ²I)⁻¹ and b = α = P k (given everything). The next pick maximises b_n²/M_nn, and after it

    M ← M − M_a M_aᵀ/M_aa,   b ← b − M_a b_a/M_aa

so only the diagonal of M, b, and the picked column are ever needed. Columns come from fast products with a known error;
the error is carried along, and rows that it could confuse with the best are evaluated in float64. A system may give
their M_nn with an error still; those that it cannot tell apart are settled, one by one.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from attribution.exact_sums import Array, inner_products, unit_roundoff

#: Contenders evaluated at a time, the most promising first; a pool of duplicates contends whole.
_DECIDING_ROWS = 16
#: How far apart, relatively, a system's rounding may put the scores of equal rows.
_TWINS_WITHIN = 1e-3


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
class Evaluated:
    """Values of a few candidates in float64.

    Attributes:
        targets: b_n, shape [s, q]: the values that decide.
        pivots: M_nn, shape [s].
        pivot_errors: Bound of their difference from the values that decide, shape [s]; 0 where they are those.
    """

    targets: Float[Tensor, "s q"]
    pivots: Float[Tensor, " s"]
    pivot_errors: Float[Tensor, " s"]


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

    def evaluate(self, positions: Int[Tensor, " s"]) -> Evaluated:
        """b_n and M_nn given the picks so far, in float64, each row by sums of its own."""

    def settle(self, positions: Int[Tensor, " s"]) -> Float[Tensor, " s"]:
        """M_nn given the picks so far, the values that decide."""

    def twins(self, position: int, others: Int[Tensor, " s"]) -> Int[Tensor, " t"]:
        """Those of some other candidates that equal this one, up to sign, though their values here may not."""

    def accept(self, position: int) -> None:
        """Condition on a pick."""

    def column(self) -> Column:
        """The column of the latest pick: the step's one product."""

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
        # What every candidate has is kept in arrays: a step makes dozens of short operations on them, and torch would
        # start its threads for each.
        self._targets: Array = start.targets.numpy().copy()
        self._diagonal: Array = start.diagonal.numpy().copy()
        self._diagonal_error: Array = start.diagonal_error.numpy().copy()
        self._decided_error: Array = start.decided_error.numpy()
        self._decided_diagonal_error: Array = start.decided_diagonal_error.numpy()
        self._floor: Array = start.floor.numpy()
        count, queries = self._targets.shape
        # Error of b_nq: one term per column used, each a row's share times a query's share. The weights of the queries
        # may change with every step, so that of several queries the terms are kept; of one their sum is enough.
        scale: Array = start.target_scale.numpy()
        self._target_error: Array | None = start.target_error.numpy() * scale[0] if queries == 1 else None
        terms = 0 if queries == 1 else budget + 1
        self._row_errors = np.zeros((count, terms))
        self._query_errors = np.zeros((terms, queries))
        if queries > 1:
            self._row_errors[:, 0] = start.target_error.numpy()
            self._query_errors[0] = scale
        self._target_scale = float(scale[0])
        self._picked = 0
        self._pending = False
        self._free = np.ones(count, dtype=bool)

    def choose(self, eligible: Bool[Tensor, " c"] | None = None) -> Choice | None:
        """Find the free candidate of largest score, ties to the lowest position.

        Args:
            eligible: Which candidates may be picked now, shape [c]; all, if None.

        Returns:
            The choice; None when the largest score is exactly 0 or nothing may be picked.
        """
        allowed = self._free if eligible is None else self._free & eligible.numpy()
        if not allowed.any():
            return None
        self._update()
        weighting = self._system.weighting()
        lower, upper = self._intervals(weighting)
        contending = np.flatnonzero(allowed & (upper >= lower[allowed].max()))
        contending = contending[np.argsort(-upper[contending], kind="stable")]
        best = self._settled(self._evaluated(contending, upper, weighting), weighting)
        return None if best is None else self._lowest_twin(best, allowed, upper, weighting)

    def accept(self, position: int) -> None:
        """Condition the system on a pick. The others are brought up to date when there is another to choose.

        Args:
            position: The pick.
        """
        self._update()
        self._system.accept(position)
        self._free[position] = False
        self._pending = True

    def _update(self) -> None:
        """Update every candidate by the column of the latest pick."""
        if not self._pending:
            return
        self._pending = False
        column = self._system.column()
        self._picked += 1
        values, error = column.values.numpy(), column.error.numpy()
        squares = values**2
        self._targets -= values[:, None] * column.coefficients.numpy()
        self._diagonal -= squares
        self._diagonal_error += (2 * np.abs(values) + error) * error
        self._diagonal_error += 4 * unit_roundoff(torch.float64) * (squares + np.abs(self._diagonal))
        if self._target_error is not None:
            self._target_error += error * float(column.coefficients[0].abs())
        else:
            self._row_errors[:, self._picked] = error
            self._query_errors[self._picked] = column.coefficients.abs().numpy()

    def _evaluated(self, contending: npt.NDArray[np.int64], upper: Array, weighting: Tensor) -> list["_Contender"]:
        # Contenders in float64, the most promising first, while they may still be the best.
        found: list[_Contender] = []
        reached = 0.0
        for start in range(0, contending.size, _DECIDING_ROWS):
            places = contending[start : start + _DECIDING_ROWS]
            if found:
                places = places[upper[places] >= reached]
                if not places.size:
                    break
            chunk = torch.from_numpy(places)
            values = self._system.evaluate(chunk)
            self._refresh(places, values)
            squared = self._squared(values.targets, weighting)
            smallest = torch.maximum(values.pivots - values.pivot_errors, torch.from_numpy(self._floor[places]))
            # A pivot that decides is taken as it is, whatever the floor.
            smallest = torch.where(values.pivot_errors > 0, smallest, values.pivots)
            least = self._score(squared, values.pivots + values.pivot_errors)
            most = self._score(squared, smallest)
            for place, position in enumerate(places.tolist()):
                bounds = float(least[place]), float(most[place])
                settled = not self._divide or float(values.pivot_errors[place]) == 0
                found.append(_Contender(position, *bounds, settled, values.targets[place], float(values.pivots[place])))
                reached = max(reached, bounds[0])
        return [contender for contender in found if contender.most >= reached]

    def _settled(self, contenders: list["_Contender"], weighting: Tensor) -> Choice | None:
        # The best of them, by values that decide, ties to the lowest position.
        best: Choice | None = None
        for contender in sorted(contenders, key=lambda each: (-each.most, each.position)):
            if contender.most <= 0 or (best is not None and contender.most < best.score):
                break
            score, pivot = contender.most, contender.pivot
            if not contender.settled:
                pivots = self._system.settle(torch.tensor([contender.position]))
                pivot = float(pivots[0])
                score = float(self._score(self._squared(contender.target.unsqueeze(0), weighting), pivots)[0])
            if score > 0 and (
                best is None or score > best.score or (score == best.score and contender.position < best.position)
            ):
                best = Choice(contender.position, score, contender.target, pivot)
        return best

    def _intervals(self, weighting: Tensor) -> tuple[Array, Array]:
        # Bounds on every candidate's score that hold whatever the fast products rounded.
        gain: Array = weighting.numpy()
        if self._target_error is not None:
            weight = float(np.abs(gain).sum())
            norms = np.abs(self._targets[:, 0]) * weight
            errors = self._target_error * (weight * (1 + 1e-12))  # their sum is rounded as well
        else:
            used = self._query_errors[: self._picked + 1]
            weighted = self._targets * gain if gain.ndim == 1 else self._targets @ gain
            spread = used * gain if gain.ndim == 1 else used @ np.abs(gain)
            norms = np.linalg.norm(weighted, axis=1)
            errors = self._row_errors[:, : self._picked + 1] @ np.linalg.norm(spread, axis=1) * (1 + 1e-12)
        errors += 4 * self._targets.shape[1] * unit_roundoff(torch.float64) * norms  # so is the norm
        upper = norms + errors
        upper *= upper
        norms -= errors
        lower = np.maximum(norms, 0.0, out=norms)
        lower *= lower
        if self._divide:
            lower /= np.maximum(self._diagonal + self._diagonal_error, self._floor)
            upper /= np.maximum(self._diagonal - self._diagonal_error, self._floor)
        return lower, upper

    def _lowest_twin(self, best: Choice, allowed: npt.NDArray[np.bool_], upper: Array, weighting: Tensor) -> Choice:
        # Of equal rows the lowest is picked, also where the system's rounding tells them apart.
        near = np.flatnonzero(allowed[: best.position] & (upper[: best.position] >= best.score * (1 - _TWINS_WITHIN)))
        twins = self._system.twins(best.position, torch.from_numpy(near)) if near.size else torch.from_numpy(near)
        if not twins.numel():
            return best
        place = twins[:1]
        targets, pivots = self._system.evaluate(place).targets, self._system.settle(place)
        score = float(self._score(self._squared(targets, weighting), pivots)[0])
        return Choice(int(place), score, targets[0], float(pivots[0]))

    def _squared(self, targets: Float[Tensor, "s q"], weighting: Tensor) -> Float[Tensor, " s"]:
        # ‖b_n G‖², each row by sums of its own.
        if weighting.ndim == 1:
            weighted = targets * weighting
        else:
            weighted = torch.stack([inner_products(targets, column) for column in weighting.T], dim=1)
        return inner_products(weighted**2, torch.ones(weighted.shape[1], dtype=torch.float64))

    def _score(self, squared: Float[Tensor, " s"], pivots: Float[Tensor, " s"]) -> Float[Tensor, " s"]:
        return squared / pivots if self._divide else squared

    def _refresh(self, places: npt.NDArray[np.int64], values: Evaluated) -> None:
        """Put float64 values in the place of nominated ones, so that errors do not pile up where they matter."""
        self._targets[places] = values.targets.numpy()
        self._diagonal[places] = values.pivots.numpy()
        rounding = self._decided_diagonal_error[places] * (self._picked + 1)
        self._diagonal_error[places] = values.pivot_errors.numpy() + rounding
        decided = self._decided_error[places] * (self._picked + 1)
        if self._target_error is not None:
            self._target_error[places] = decided * self._target_scale
        else:
            self._row_errors[places] = 0.0
            self._row_errors[places, 0] = decided


@dataclass(frozen=True)
class _Contender:
    # A candidate evaluated in float64: bounds of its score, equal if it is settled.
    position: int
    least: float
    most: float
    settled: bool
    target: Float[Tensor, " q"]
    pivot: float
