"""The exact rules as they are written down, in dense float64: were the picks of a selection theirs?

Scores of all rows are computed anew at every step from the matrices of the rule, given the selection's own picks before
it, so that a step is judged whatever came before. Nothing here is shared with what it judges.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

#: Rows widened to float64 at a time.
_BLOCK_ROWS = 4096
#: What the algebra below may be off by, relative to a score: far above the float64 rounding of d = 4,096 terms and of
#: 50 conditioned rows at relative noise 0.01 and above, far below the distance of scores that differ for a reason.
_ROUNDING = 1e-7


@dataclass(frozen=True)
class Judged:
    """A selection held against the literal rule.

    Attributes:
        picks: How many there were.
        best: How many of them had the largest score, up to rounding.
        worst_relative: The largest share of the best score that a pick missed.
    """

    picks: int
    best: int
    worst_relative: float


class LiteralRules:
    """One set of rows with its exact rules at one noise.

    Args:
        sketches: Sketches of all candidates, which are the training set too, float32 [n, d].
        noise_variance: σ².
    """

    def __init__(self, sketches: Tensor, noise_variance: float) -> None:
        self._sketches = sketches
        self._noise = noise_variance

    @cached_property
    def _factor(self) -> Tensor:
        # Of ΦᵀΦ + σ²I: InfoLoss alone needs it.
        covariance = self._noise * torch.eye(self._sketches.shape[1], dtype=torch.float64)
        for block in torch.split(self._sketches, _BLOCK_ROWS):
            wide = block.double()
            covariance.addmm_(wide.T, wide)
        return torch.linalg.cholesky(covariance)

    @cached_property
    def _squares(self) -> Tensor:
        return torch.cat([block.double().square().sum(dim=1) for block in torch.split(self._sketches, _BLOCK_ROWS)])

    @cached_property
    def _leverages(self) -> Tensor:
        found = []
        for block in torch.split(self._sketches, _BLOCK_ROWS):
            solved = torch.linalg.solve_triangular(self._factor, block.double().T.contiguous(), upper=False)
            found.append(solved.square_().sum(dim=0))
        return torch.cat(found)

    def judge(self, rule: str, query: Tensor, picks: list[int]) -> Judged:
        """Hold a selection against a rule (Eqs. 8 and 62).

        Args:
            rule: "infogain" or "infoloss".
            query: φ_*, float64 [d].
            picks: Positions of the picks, in order.

        Returns:
            The verdict.
        """
        chosen = torch.cat([query[None], self._sketches[picks].double()])
        if rule == "infogain":  # M = K + σ²I, b = K_*
            products, diagonal = self._times(chosen), self._squares + self._noise
            columns, targets = products[:, 1:], products[:, 0]
            columns[picks, range(len(picks))] += self._noise
        else:  # M = (K + σ²I)⁻¹ = (I − Φ A⁻¹ Φᵀ)/σ², b = M K_* = Φ A⁻¹ φ_*, with A = ΦᵀΦ + σ²I
            products = self._times(torch.cholesky_solve(chosen.T, self._factor).T)
            diagonal, targets = (1 - self._leverages) / self._noise, products[:, 0]
            columns = products[:, 1:] / -self._noise
            columns[picks, range(len(picks))] += 1 / self._noise
        missed = []
        for step in range(len(picks)):
            given, part = picks[:step], columns[:, :step]
            weights = np.linalg.solve(part[given], np.column_stack([targets[given], part.T])) if step else None
            left = targets if weights is None else targets - part @ weights[:, 0]
            variances = (
                diagonal.numpy() if weights is None else diagonal.numpy() - (part * weights[:, 1:].T).sum(axis=1)
            )
            variances[given] = np.inf  # picked already
            scores = left**2 / variances
            missed.append(1 - float(scores[picks[step]] / scores.max()))
        return Judged(len(picks), sum(each <= _ROUNDING for each in missed), max(missed, default=0.0))

    def _times(self, vectors: Tensor) -> np.ndarray:
        # Φ vectorsᵀ, float64 [n, m].
        return torch.cat([block.double() @ vectors.T for block in torch.split(self._sketches, _BLOCK_ROWS)]).numpy()
