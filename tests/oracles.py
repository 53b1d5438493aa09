"""What every answer is compared with: the formulas of method.md in float64, dense, solved anew at every step.

As plain as possible and independent of ``attribution``: no updates, no factor kept, no clever form. Slow on purpose.
"""

import math
from fractions import Fraction

import torch
from torch import Tensor


def covariance(left: Tensor, right: Tensor, acquired: Tensor, noise_variance: float) -> Tensor:
    """Eq. 9 by an explicit solve."""
    left, right, acquired = left.double(), right.double(), acquired.double()
    noisy = acquired @ acquired.T + noise_variance * torch.eye(acquired.shape[0], dtype=torch.float64)
    return left @ right.T - left @ acquired.T @ torch.linalg.solve(noisy, acquired @ right.T)


def variance(points: Tensor, acquired: Tensor, noise_variance: float) -> Tensor:
    """Eq. 10."""
    return covariance(points, points, acquired, noise_variance).diagonal()


def query_variance(query: Tensor, acquired: Tensor, noise_variance: float) -> float:
    """v(x_* | A) for one query."""
    return float(variance(query.unsqueeze(0), acquired, noise_variance)[0])


def residual(query: Tensor, acquired: Tensor, noise_variance: float) -> Tensor:
    """Eq. 15, first form: the precision (Eq. 13) solved against the query."""
    acquired = acquired.double()
    precision = torch.eye(query.shape[0], dtype=torch.float64) + acquired.T @ acquired / noise_variance
    return torch.linalg.solve(precision, query.double())


def info_gain(query: Tensor, acquired: Tensor, noise_variance: float) -> float:
    """Eq. 6, through log1p of the explained share so that it stays an oracle at large noise."""
    query, acquired = query.double(), acquired.double()
    noisy = acquired @ acquired.T + noise_variance * torch.eye(acquired.shape[0], dtype=torch.float64)
    cross = acquired @ query
    explained = float(cross @ torch.linalg.solve(noisy, cross))
    return -0.5 * math.log1p(-explained / float(query @ query))


def info_loss(query: Tensor, everything: Tensor, removed: list[int], noise_variance: float) -> float:
    """Eq. 4: the ratio of two variances, each solved for."""
    kept = [i for i in range(everything.shape[0]) if i not in set(removed)]
    before = query_variance(query, everything, noise_variance)
    return 0.5 * math.log(query_variance(query, everything[kept], noise_variance) / before)


def greedy_infogain(query: Tensor, candidates: Tensor, noise_variance: float, budget: int) -> list[int]:
    """Eq. 8, every candidate's covariance and variance solved for at every step; ties to the lowest row."""
    picks: list[int] = []
    for _ in range(budget):
        acquired = candidates[picks]
        cov = covariance(query.unsqueeze(0), candidates, acquired, noise_variance)[0]
        values = cov**2 / (noise_variance + variance(candidates, acquired, noise_variance))
        picks.append(_best(values, picks))
    return picks


def greedy_infoloss(query: Tensor, everything: Tensor, noise_variance: float, budget: int) -> list[int]:
    """Eq. 62 with the state T = D∖A, every covariance solved for at every step."""
    picks: list[int] = []
    for _ in range(budget):
        kept = everything[[i for i in range(everything.shape[0]) if i not in picks]]
        cov = covariance(query.unsqueeze(0), everything, kept, noise_variance)[0]
        values = cov**2 / (noise_variance - variance(everything, kept, noise_variance))
        picks.append(_best(values, picks))
    return picks


def leverages(sketches: Tensor, noise_variance: float) -> Tensor:
    """φ_nᵀ(ΦᵀΦ + σ²I)⁻¹φ_n in rational arithmetic, so that it stays an oracle at any noise; by Gauss–Jordan."""
    rows = [[Fraction(value) for value in row] for row in sketches.double().tolist()]
    dim = sketches.shape[1]
    matrix = [
        [sum(row[i] * row[j] for row in rows) + (Fraction(noise_variance) if i == j else 0) for j in range(dim)]
        + [row[i] for row in rows]
        for i in range(dim)
    ]
    for i in range(dim):
        matrix[i] = [value / matrix[i][i] for value in matrix[i]]
        for k in range(dim):
            if k != i:
                factor = matrix[k][i]
                matrix[k] = [left - factor * right for left, right in zip(matrix[k], matrix[i], strict=True)]
    found = [sum(row[i] * matrix[i][dim + n] for i in range(dim)) for n, row in enumerate(rows)]
    return torch.tensor([float(value) for value in found], dtype=torch.float64)


def greedy_approx(query: Tensor, candidates: Tensor, noise_variance: float, budget: int) -> list[int]:
    """Eq. 15: largest squared product with the residual."""
    picks: list[int] = []
    for _ in range(budget):
        r = residual(query, candidates[picks], noise_variance)
        picks.append(_best((candidates.double() @ r) ** 2, picks))
    return picks


def greedy_many(
    queries: Tensor,
    candidates: Tensor,
    noise_variance: float,
    budget: int,
    *,
    rule: str,
    inverse_variance: bool = True,
) -> list[int]:
    """Eqs. 94 and 95, the InfoLoss sum, and the joint criterion (Eq. 89) as a determinant per candidate."""
    picks: list[int] = []
    for _ in range(budget):
        values = many_values(queries, candidates, noise_variance, picks, rule=rule, inverse_variance=inverse_variance)
        picks.append(_best(values, picks))
    return picks


def many_values(
    queries: Tensor,
    candidates: Tensor,
    noise_variance: float,
    picks: list[int],
    *,
    rule: str,
    inverse_variance: bool = True,
) -> Tensor:
    """What the rules for many queries maximise, of every candidate, after some picks: every covariance solved for."""
    left = [i for i in range(candidates.shape[0]) if i not in picks]
    state = candidates[left] if rule == "infoloss" else candidates[picks]
    cov = covariance(queries, candidates, state, noise_variance)
    weights = 1 / variance(queries, state, noise_variance) if inverse_variance else torch.ones(queries.shape[0])
    values = (cov**2 * weights.double().unsqueeze(1)).sum(dim=0)
    if rule == "infogain":
        return values / (noise_variance + variance(candidates, state, noise_variance))
    if rule == "infoloss":
        return values / (noise_variance - variance(candidates, state, noise_variance))
    if rule == "joint":
        return torch.tensor(
            [
                -float(torch.logdet(covariance(queries, queries, candidates[[*picks, n]], noise_variance)))
                for n in range(candidates.shape[0])
            ],
            dtype=torch.float64,
        )
    return values


def traker_scores(queries: Tensor, sketches: Tensor, one_minus_p: Tensor, regularisation: float) -> Tensor:
    """TRAK as the traker package computes it (score_computers.py, traker.py 0.3.2), with its constant, in float64."""
    features = sketches.double()
    inverse = torch.linalg.inv(features.T @ features + regularisation * torch.eye(features.shape[1]).double())
    inverse /= inverse.abs().mean()
    return ((features @ inverse) @ queries.double().T * one_minus_p.double()[:, None]).T


def _best(values: Tensor, taken: list[int]) -> int:
    """Lowest row among the largest values."""
    values = values.clone()
    values[taken] = -math.inf
    return int((values == values.max()).nonzero()[0])
