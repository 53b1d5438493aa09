"""A coreset by the rules themselves: all rows and queries in dense float64 at every pick, no bounds, nothing skipped.

Both rules are one loop on a table [n, q] and a divisor [n]: covariances and σ² + v(n | A) for InfoGain (94), α_nq and
P_nn for InfoLoss. A pick a adds a direction e, Φe are its products with all rows, and

    table ← table − (Φe) table_a/√divisor_a,   divisor ← divisor − (Φe)²
"""

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from indexer.attributor.coreset import Coreset

_BLOCK_ROWS = 4096


class _Posterior(Protocol):
    """What was picked, as directions.

    Attributes:
        table: float64 [n, q].
        divisor: float64 [n].
        variances: v of each query given what is left, float64 [q].
        sign: Whether a pick makes these larger (1) or smaller (−1).
    """

    table: Tensor
    divisor: Tensor
    variances: Tensor
    sign: int

    def direction(self, sketch: Tensor, length: float) -> Tensor:
        """Condition on a row whose √divisor is ``length``, and give its e, float64 [d]."""


class _Gained:
    sign = -1

    def __init__(self, selection: Coreset, blocks: list[Tensor]) -> None:
        queries = selection.queries
        self.table = torch.cat([selection.view.sketches(block) @ queries.T for block in blocks])
        self.divisor = selection.noise.variance + selection.view.squared_norms[torch.cat(blocks)]
        self.variances = (queries**2).sum(dim=1)
        self._basis = torch.zeros(0, queries.shape[1], dtype=torch.float64)

    def direction(self, sketch: Tensor, length: float) -> Tensor:
        found = (sketch - self._basis.T @ (self._basis @ sketch)) / length
        self._basis = torch.cat([self._basis, found[None]])
        return found


class _Lost:
    """With Λ = (Φ_TᵀΦ_T + σ²I)⁻¹ by dense inversion: α_nq = φ_n · Λφ_q and P_nn = (1 − φ_n · Λφ_n)/σ²."""

    sign = 1

    def __init__(self, selection: Coreset, blocks: list[Tensor]) -> None:
        queries, self._noise = selection.queries, selection.noise.variance
        inverse = self._noise * torch.eye(queries.shape[1], dtype=torch.float64)
        for block in blocks:
            sketches = selection.view.sketches(block)
            inverse += sketches.T @ sketches
        self._inverse = inverse = torch.linalg.inv(inverse)
        mapped = queries @ inverse
        self.variances = self._noise * (mapped * queries).sum(dim=1)
        tables, divisors = [], []
        for block in blocks:
            sketches = selection.view.sketches(block)
            tables.append(sketches @ mapped.T)
            divisors.append((1 - (sketches @ inverse * sketches).sum(dim=1)) / self._noise)
        self.table, self.divisor = torch.cat(tables), torch.cat(divisors)

    def direction(self, sketch: Tensor, length: float) -> Tensor:
        # P_na/√P_aa = −φ_n · Λφ_a/(σ² √P_aa) for n ≠ a; without a, Λ is by Sherman and Morrison
        mapped = self._inverse @ sketch
        self._inverse += torch.outer(mapped, mapped) / (1 - float(sketch @ mapped))
        return mapped / (-self._noise * length)


def dense_picks(selection: Coreset, count: int) -> Iterator[int]:
    """Select by the rule of a selection.

    Args:
        selection: What was asked; of InfoLoss, about more rows than d, all of them T.
        count: How many picks.

    Yields:
        Rows.
    """
    question, rows = selection.question, selection.view.partition_rows(selection.label)
    blocks = list(torch.split(rows, _BLOCK_ROWS))
    given: _Posterior = (_Lost if question.rule == "infoloss" else _Gained)(selection, blocks)
    left = torch.ones(rows.numel(), dtype=torch.bool)
    for _ in range(count):
        weights = torch.ones_like(given.variances)
        if question.weighting == "inverse_variance":
            weights = 1 / given.variances
        values = torch.cat([part.square() @ weights for part in torch.split(given.table, _BLOCK_ROWS)])
        if question.rule != "infogain_approx":
            values = values / given.divisor
        pick = int(torch.where(left, values, -1.0).argmax())
        yield int(rows[pick])
        left[pick] = False
        length = float(given.divisor[pick]) ** 0.5
        coefficients = given.table[pick] / length
        direction = given.direction(selection.view.sketches(rows[pick : pick + 1])[0], length)
        columns = torch.cat([selection.view.sketches(block) @ direction for block in blocks])
        for part, column in zip(torch.split(given.table, _BLOCK_ROWS), torch.split(columns, _BLOCK_ROWS), strict=True):
            part -= column[:, None] * coefficients
        given.divisor -= columns**2
        given.variances += given.sign * coefficients**2
