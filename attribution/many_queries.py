"""Greedy selection for many queries at once (method.md section 5): coresets, by sums over queries or jointly."""

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from attribution.acquired import AcquiredSet
from attribution.candidates import Candidates
from attribution.checks import check_budget, check_option, check_sketches
from attribution.errors import BudgetError, DependentQueriesError, ShapeError
from attribution.gain_system import GainSystem, unweighted
from attribution.information import info_gain_nats, info_loss_nats
from attribution.loss_system import LossSystem
from attribution.loss_system import unweighted as unweighted_loss
from attribution.posterior import QueryPosterior, SetPosterior, cross_products, spectrum_of
from attribution.pursuit import Pursuit
from attribution.removal import Removal
from attribution.steps import ManyStep

RULES = ("infogain", "infogain_approx", "infoloss", "joint")
WEIGHTINGS = ("inverse_variance", "uniform")


def select_many(
    queries: Float[Tensor, "q d"],
    candidates: Candidates,
    noise_variance: float,
    *,
    budget: int,
    rule: str = "infogain",
    weighting: str = "inverse_variance",
    quotas: Mapping[int, int] | None = None,
    labels: Int[Tensor, " c"] | None = None,
) -> Iterator[ManyStep]:
    r"""Select one set of examples that informs many queries.

    .. math::
        \text{infogain (94)}\quad \sum_q w_q\, c(x_q, n \mid A)^2 / (\sigma^2 + v(n \mid A)) \\
        \text{infogain\_approx (95)}\quad \sum_q w_q\, (\phi_n \cdot \rho_q)^2 \\
        \text{infoloss}\quad \sum_q w_q\, c(x_q, n \mid T)^2 / (\sigma^2 - v(n \mid T)) \\
        \text{joint (92)}\quad u_n^\top M^{-1} u_n / (\sigma^2 + v(n \mid A)),\ M = \Phi_* \Lambda_A^{-1} \Phi_*^\top

    with w_q = 1/v(x_q | ·) (``inverse_variance``, Eq. 93's diagonal of M) or w_q = 1 (``uniform``); ``joint`` has no
    weighting. C = Φρᵀ is kept and updated by one rank-one term per step. Scores are not nats; the exact nats of each
    query are in every step.

    Args:
        queries: Sketches of the queries, shape [q, d].
        candidates: The rows that may be picked. For ``infoloss`` they are D as well; :func:`select_many_infoloss`
            takes a larger D.
        noise_variance: σ² > 0, in squared units of the measurement.
        budget: How many examples to select, from 1 to ``candidates.count``.
        rule: ``infogain``, ``infogain_approx``, ``infoloss`` or ``joint``. The joint rule is a good choice when queries
            are few and overlap: it does not count the same information twice.
        weighting: ``inverse_variance`` or ``uniform``.
        quotas: The most picks per label; labels it does not name are not picked. Needs ``labels``.
        labels: Label of each candidate, shape [c].

    Yields:
        One step per pick. It ends early when the best score is exactly 0.

    Raises:
        DependentQueriesError: If the joint rule is given linearly dependent queries.
    """
    check_option(rule, RULES, "rule")
    check_option(weighting, WEIGHTINGS, "weighting")
    check_sketches(queries, candidates.dim, "queries")
    check_budget(budget, candidates.count)
    quota = _Quota(quotas, labels, candidates.count, budget)
    if rule == "infoloss":
        everything = torch.arange(candidates.count)
        sketches = candidates.sketches(everything)
        posterior = SetPosterior(spectrum_of(sketches), noise_variance)
        posteriors = [
            posterior.of_query(query, cross_products([sketches], query), candidates.sketches) for query in queries
        ]
        yield from _removals(posteriors, everything, candidates, budget, weighting, quota)
        return
    if rule == "joint":
        weigh = _jointly
        if queries.shape[0] > queries.shape[1]:
            raise DependentQueriesError(
                f"The joint rule needs at most d = {queries.shape[1]} queries, got {queries.shape[0]}: more are "
                "linearly dependent. Use rule 'infogain', which drops the interactions between queries."
            )
    else:
        weigh = unweighted if weighting == "uniform" else _by_inverse_variance
    system = GainSystem(queries, candidates, noise_variance, budget, weigh)
    pursuit = Pursuit(system, budget, divide=rule != "infogain_approx")
    for rank in range(1, budget + 1):
        choice = pursuit.choose(quota.eligible())
        if choice is None:
            return
        pursuit.accept(choice.position)
        quota.spend(choice.position)
        acquired = system.acquired
        parts = zip(
            acquired.prior_variances.tolist(), acquired.reductions.tolist(), acquired.variances.tolist(), strict=True
        )
        yield ManyStep(
            rank=rank,
            position=choice.position,
            score=choice.score,
            covariances=choice.target,
            query_variances=acquired.variances.clone(),
            cumulative_nats=torch.tensor([info_gain_nats(*part) for part in parts], dtype=torch.float64),
        )


def select_many_infoloss(
    posteriors: Sequence[QueryPosterior],
    pool: Int[Tensor, " c"],
    *,
    budget: int,
    weighting: str = "inverse_variance",
    quotas: Mapping[int, int] | None = None,
    labels: Int[Tensor, " c"] | None = None,
    candidates: Candidates | None = None,
) -> Iterator[ManyStep]:
    r"""Select examples whose removal from D costs many queries the most information.

    .. math:: a = \arg\max_n \sum_q w_q\, c(x_q, n \mid T)^2 / (\sigma^2 - v(n \mid T)), \quad T = D \setminus A

    Args:
        posteriors: The posterior of each query given T, all from one ``SetPosterior``, with the same exclusions.
        pool: Positions in T that may be picked, shape [c], ascending.
        budget: How many examples to select, from 1 to c.
        weighting: ``inverse_variance`` (w_q = 1/v(x_q | T∖A)) or ``uniform``.
        quotas: The most picks per label; labels it does not name are not picked. Needs ``labels``.
        labels: Label of each pool row, shape [c].
        candidates: The pool's rows for fast products, in the order of ``pool``; used by the gram form.

    Yields:
        One step per pick: ``position`` is its position in T, nats are InfoLoss.

    Raises:
        ShapeError: If the posteriors do not share their set and exclusions, or there are none.
    """
    check_option(weighting, WEIGHTINGS, "weighting")
    check_budget(budget, pool.shape[0])
    if not posteriors:
        raise ShapeError("posteriors is empty: give at least one query.")
    if any(p.posterior is not posteriors[0].posterior or p.excluded != posteriors[0].excluded for p in posteriors):
        raise ShapeError("posteriors must come from one SetPosterior and exclude the same positions.")
    quota = _Quota(quotas, labels, pool.shape[0], budget)
    yield from _removals(posteriors, pool, candidates, budget, weighting, quota)


def _removals(
    posteriors: Sequence[QueryPosterior],
    pool: Int[Tensor, " c"],
    candidates: Candidates | None,
    budget: int,
    weighting: str,
    quota: "_Quota",
) -> Iterator[ManyStep]:
    # The greedy loop of the InfoLoss sum.
    first = posteriors[0]
    variances = torch.tensor([posterior.variance for posterior in posteriors], dtype=torch.float64)

    def by_inverse_variance(removal: Removal) -> Float[Tensor, " q"]:
        return torch.rsqrt(variances + removal.increases)

    removal = Removal.of_many([posterior.removal() for posterior in posteriors])
    system = LossSystem(
        first.posterior,
        removal,
        pool,
        first.sketches,
        candidates,
        unweighted_loss if weighting == "uniform" else by_inverse_variance,
    )
    pursuit = Pursuit(system, budget)
    named = pool.tolist()
    noise = first.posterior.noise_variance
    for rank in range(1, budget + 1):
        choice = pursuit.choose(quota.eligible())
        if choice is None:
            return
        pursuit.accept(choice.position)
        quota.spend(choice.position)
        parts = zip(variances.tolist(), removal.increases.tolist(), strict=True)
        yield ManyStep(
            rank=rank,
            position=named[choice.position],
            # α = c/σ², so α²/P_nn = c²/(σ² − v): the score is in measurement², as InfoGain's.
            score=choice.score,
            covariances=noise * choice.target,
            query_variances=variances + removal.increases,
            cumulative_nats=torch.tensor([info_loss_nats(*part) for part in parts], dtype=torch.float64),
        )


def _by_inverse_variance(acquired: AcquiredSet) -> Float[Tensor, " q"]:
    # √w_q with w_q = 1/v(x_q | A): diag(M)⁻¹ for M⁻¹ (Eq. 93).
    return torch.rsqrt(acquired.variances)


def _jointly(acquired: AcquiredSet) -> Float[Tensor, "q q"]:
    # G = L⁻ᵀ with M = L Lᵀ, so that ‖u G‖² = uᵀ M⁻¹ u (Eq. 92).
    joint = acquired.query_covariances()
    factor, info = torch.linalg.cholesky_ex(joint)
    size = joint.shape[0]
    # Rounding gives dependent queries a pivot of this order instead of 0.
    negligible = 4 * size * float(torch.finfo(torch.float64).eps)
    relative_pivots = factor.diagonal() ** 2 / acquired.prior_variances
    if int(info) != 0 or (acquired.size == 0 and bool((relative_pivots <= negligible).any())):
        raise DependentQueriesError(
            f"The {size} queries are linearly dependent in float64, so their joint entropy is −∞ (Eq. 89). Drop the "
            "repeated ones, or use rule 'infogain'."
        )
    identity = torch.eye(size, dtype=torch.float64)
    inverse: Tensor = torch.linalg.solve_triangular(factor, identity, upper=False)
    return inverse.T


class _Quota:
    """How many picks each label has left."""

    def __init__(
        self, quotas: Mapping[int, int] | None, labels: Int[Tensor, " c"] | None, count: int, budget: int
    ) -> None:
        self._labels = labels
        self._left = None if quotas is None else dict(quotas)
        if self._left is None:
            return
        if labels is None or labels.shape != (count,):
            given = "none" if labels is None else str(list(labels.shape))
            raise ShapeError(f"quotas need labels, one per candidate, shape [{count}]; got {given}.")
        if any(quota < 0 for quota in self._left.values()):
            raise BudgetError(f"quotas must not be negative, got {dict(self._left)}.")
        available = sum(min(quota, int((labels == label).sum())) for label, quota in self._left.items())
        if available < budget:
            raise BudgetError(f"budget {budget} exceeds the {available} picks that the quotas and candidates allow.")

    def eligible(self) -> Bool[Tensor, " c"] | None:
        # Which candidates may be picked now.
        if self._left is None or self._labels is None:
            return None
        open_labels = [label for label, left in self._left.items() if left > 0]
        return torch.isin(self._labels, torch.tensor(open_labels, dtype=self._labels.dtype))

    def spend(self, position: int) -> None:
        # Count a pick against its label.
        if self._left is not None and self._labels is not None:
            self._left[int(self._labels[position])] -= 1


def joint_nats(score: float) -> float:
    """Turn a joint score into the information of that pick about all queries together (Eq. 92).

    Args:
        score: u_nᵀ M⁻¹ u_n / (σ² + v(n | A)), from 0 to 1.

    Returns:
        −½ log(1 − score), in nats: half the drop of log det M.
    """
    return -0.5 * math.log1p(-score)
