"""Greedy selection and both criteria on a dense float64 kernel matrix, straight from the definitions.

What an experiment's figures are compared with; it shares no code with `attribution` and takes no numerical short cut.
"""

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def variance_given(kernel: Array, cross: Array, prior: float, noise_variance: float, rows: list[int]) -> float:
    """Posterior variance of the query given the rows (10): v₀ − k_*ᵀ (K + σ²I)⁻¹ k_*.

    Args:
        kernel: K of all candidates, shape [n, n].
        cross: K of the candidates with the query, shape [n].
        prior: v₀, the query's squared norm.
        noise_variance: σ².
        rows: The observed rows; may be empty.
    """
    gram = kernel[np.ix_(rows, rows)] + noise_variance * np.eye(len(rows))
    return prior - float(cross[rows] @ np.linalg.solve(gram, cross[rows]))


def information_gain(kernel: Array, cross: Array, prior: float, noise_variance: float, rows: list[int]) -> float:
    """InfoGain of a set in nats (6): ½ log(v(x_* | ∅) / v(x_* | S))."""
    return 0.5 * math.log(prior / variance_given(kernel, cross, prior, noise_variance, rows))


def information_loss(kernel: Array, cross: Array, prior: float, noise_variance: float, rows: list[int]) -> float:
    """InfoLoss of a set in nats (4): ½ log(v(x_* | D∖S) / v(x_* | D)), D being all rows of ``kernel``."""
    everything = list(range(len(kernel)))
    left = sorted(set(everything) - set(rows))
    without = variance_given(kernel, cross, prior, noise_variance, left)
    return 0.5 * math.log(without / variance_given(kernel, cross, prior, noise_variance, everything))


def greedy_gain(kernel: Array, cross: Array, noise_variance: float, budget: int, *, exact: bool) -> list[int]:
    """Greedy InfoGain (8), or its approximation (15) when not ``exact``; the whole posterior covariance is carried."""
    covariance, candidates = cross.copy(), kernel.copy()
    picks: list[int] = []
    for _ in range(budget):
        scores = covariance**2 / (noise_variance + np.diag(candidates)) if exact else covariance**2
        scores[picks] = -np.inf
        pick = int(scores.argmax())
        picks.append(pick)
        column = candidates[:, pick].copy()
        shrink = column / (noise_variance + column[pick])
        covariance -= shrink * covariance[pick]
        candidates -= np.outer(shrink, column)
    return picks


def greedy_loss(kernel: Array, cross: Array, noise_variance: float, budget: int) -> list[int]:
    """Greedy InfoLoss (62): the precision P = (K + σ²I)⁻¹ of what is left is carried, one row removed a step."""
    precision = np.linalg.inv(kernel + noise_variance * np.eye(len(kernel)))
    weights = precision @ cross
    left = np.ones(len(kernel), dtype=bool)
    picks: list[int] = []
    for _ in range(budget):
        scores = np.full(len(kernel), -np.inf)
        scores[left] = weights[left] ** 2 / np.diag(precision)[left]
        pick = int(scores.argmax())
        picks.append(pick)
        column = precision[:, pick].copy()
        weights -= column * (weights[pick] / column[pick])
        precision -= np.outer(column, column / column[pick])
        left[pick] = False
    return picks
