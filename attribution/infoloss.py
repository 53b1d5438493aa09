"""Greedy InfoLoss for one query (Eq. 62): which examples, removed from D, would widen the belief the most."""

from collections.abc import Iterator

import torch
from jaxtyping import Int
from torch import Tensor

from attribution.candidates import Candidates
from attribution.checks import check_budget
from attribution.errors import ShapeError
from attribution.information import info_loss_nats
from attribution.loss_system import LossSystem
from attribution.posterior import QueryPosterior
from attribution.pursuit import Pursuit
from attribution.rounded_pursuit import RoundedPursuit
from attribution.rounded_rows import RoundedRows
from attribution.steps import Step


def select_infoloss(
    posterior: QueryPosterior,
    pool: Int[Tensor, " c"] | None = None,
    *,
    budget: int,
    candidates: Candidates | None = None,
    rounded: RoundedRows | None = None,
) -> Iterator[Step]:
    r"""Select the examples whose removal greedily costs the most information about a query (Eq. 62).

    .. math:: a = \arg\max_n \frac{c(x_*, n \mid T)^2}{\sigma^2 - v(n \mid T)}
        = \arg\max_n \frac{\alpha_n^2}{P_{nn}}, \quad P = (K_{TT} + \sigma^2 I)^{-1},\ \alpha = P k_{T*}

    with T = D∖A, and after the pick P ← P − P_a P_aᵀ/P_aa, α ← α − P_a α_a/P_aa.

    Args:
        posterior: The query's posterior given T, which fixes σ²; examples excluded from it stay excluded.
        pool: Positions in T that may be picked, shape [c], ascending, none of them excluded. All of T if None, which
            the gram form (|T| > d) cannot know: give it there.
        budget: How many examples to select, from 1 to c.
        candidates: The pool's rows for fast products, in the order of ``pool``. Used by the gram form; read into
            memory, if None.
        rounded: Rounded copies of the pool's rows, in the order of ``pool``, which nominate at a fraction of the bytes.
            Used by the gram form only.

    Yields:
        One step per pick: ``position`` is its position in T, ``score`` the increase of the query's variance, and nats
        are InfoLoss. It ends early when no candidate's removal changes the variance beyond rounding.

    Raises:
        ShapeError: If the pool is missing in the gram form, names a position twice or one that is excluded, or
            ``candidates`` has another length.
    """
    if pool is None:
        if posterior.cross is None:
            raise ShapeError(
                "The gram form does not know how many rows T has: give pool, the positions to choose from."
            )
        pool = torch.arange(posterior.cross.shape[0])
        pool = pool[~torch.isin(pool, torch.tensor(posterior.excluded, dtype=torch.int64))]
    named = pool.tolist()
    if len(set(named)) != len(named) or set(named) & set(posterior.excluded):
        raise ShapeError("pool must name each position once, and none that is excluded from T.")
    if candidates is not None and candidates.count != len(named):
        raise ShapeError(f"candidates has {candidates.count} rows, pool names {len(named)}.")
    check_budget(budget, len(named))
    noise = posterior.posterior.noise_variance
    system = LossSystem(posterior.posterior, posterior.removal(), pool, posterior.sketches, candidates)
    if rounded is None or posterior.posterior.is_kernel:
        pursuit = Pursuit(system, budget)
    else:
        pursuit = RoundedPursuit(system, rounded)
    for rank in range(1, budget + 1):
        choice = pursuit.choose()
        if choice is None:
            return
        variance_before = posterior.variance + float(system.removal.increases[0])
        pursuit.accept(choice.position)
        increase = float(system.removal.increases[0])
        yield Step(
            rank=rank,
            position=named[choice.position],
            score=choice.score,
            covariance=noise * float(choice.target[0]),
            query_variance=posterior.variance + increase,
            step_nats=info_loss_nats(variance_before, choice.score),
            cumulative_nats=info_loss_nats(posterior.variance, increase),
        )
