"""Greedy selection for many queries at once (method.md section 5): coresets, by sums over queries or jointly."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attribution.acquired import AcquiredSet
from attribution.candidates import Candidates
from attribution.checks import check_acquired, check_budget, check_option, check_sketches
from attribution.covariance_table import MAX_TABLE_BYTES, CovarianceTable, DenseTable, check_table_size
from attribution.errors import DependentQueriesError, ShapeError
from attribution.gain_system import GainSystem
from attribution.information import info_gain_nats, info_loss_nats
from attribution.many_gain import ManyGainSystem
from attribution.many_loss import ManyLossSystem, ManyPosterior
from attribution.many_pursuit import ManyPursuit
from attribution.posterior import QueryPosterior, SetPosterior, cross_products, spectrum_of
from attribution.pursuit import Pursuit
from attribution.quotas import Quota
from attribution.row_products import RowProducts, row_products
from attribution.steps import ManyStep

RULES = ("infogain", "infogain_approx", "infoloss", "joint")
WEIGHTINGS = ("inverse_variance", "uniform")

#: Makes the table of b_nq for some rows and a number of queries.
TableMaker = Callable[[Candidates, int], CovarianceTable]


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
    max_table_bytes: int = MAX_TABLE_BYTES,
    table: TableMaker = DenseTable,
    products: RowProducts = row_products,
    acquired: Sequence[int] = (),
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

    The rules that are sums keep C in float32: 4 c q bytes, which is the memory that grows with the candidates. A pick
    costs one pass over the candidates and one over C. ``joint`` keeps C in float64 and is for few queries.

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
        max_table_bytes: Largest C that may be made.
        table: Makes C; another implementation may be faster, the picks are the same.
        products: Makes the products that decide; as ``table``.
        acquired: Picks made before, in order: they count towards ``budget``, are taken as made, and the steps after
            them are those of a selection that was never interrupted.

    Yields:
        One step per pick that is not in ``acquired``. It ends early when the best score is exactly 0.

    Raises:
        DependentQueriesError: If the joint rule is given linearly dependent queries.
    """
    check_option(rule, RULES, "rule")
    check_option(weighting, WEIGHTINGS, "weighting")
    check_sketches(queries, candidates.dim, "queries")
    check_budget(budget, candidates.count)
    quota = Quota(quotas, labels, candidates.count, budget)
    made = check_acquired(acquired, candidates.count, budget)
    if rule == "joint":
        if queries.shape[0] > queries.shape[1]:
            raise DependentQueriesError(
                f"The joint rule needs at most d = {queries.shape[1]} queries, got {queries.shape[0]}: more are "
                "linearly dependent. Use rule 'infogain', which drops the interactions between queries."
            )
        yield from _joint(queries, candidates, noise_variance, budget, quota, made)
        return
    check_table_size(candidates.count, queries.shape[0], max_table_bytes)
    if rule == "infoloss":
        everything = torch.arange(candidates.count)
        sketches = candidates.sketches(everything)
        posterior = SetPosterior(spectrum_of(sketches), noise_variance)
        posteriors = [
            posterior.of_query(query, cross_products([sketches], query), candidates.sketches) for query in queries
        ]
        given = ManyPosterior.of_posteriors(posteriors)
        lost = ManyLossSystem(given, everything, budget, _weighting(weighting), candidates, products)
        yield from _removals(lost, given, everything, budget, quota, table, made)
        return
    system = ManyGainSystem(queries, candidates, noise_variance, budget, _weighting(weighting), products)
    pursuit = ManyPursuit(system, table(candidates, queries.shape[0]), divide=rule == "infogain")
    for position in made:
        pursuit.accept(position)
        quota.spend(position)
    for rank in range(len(made) + 1, budget + 1):
        choice = pursuit.choose(quota.eligible())
        if choice is None:
            return
        pursuit.accept(choice.position)
        quota.spend(choice.position)
        known = system.queries
        yield ManyStep(
            rank=rank,
            position=choice.position,
            score=choice.score,
            covariances=choice.targets,
            query_variances=known.variances,
            cumulative_nats=_gain_nats(known.prior, known.reductions, known.variances),
        )


def select_many_infoloss(
    posteriors: Sequence[QueryPosterior] | ManyPosterior,
    pool: Int[Tensor, " c"],
    *,
    budget: int,
    weighting: str = "inverse_variance",
    quotas: Mapping[int, int] | None = None,
    labels: Int[Tensor, " c"] | None = None,
    candidates: Candidates | None = None,
    max_table_bytes: int = MAX_TABLE_BYTES,
    table: TableMaker = DenseTable,
    products: RowProducts = row_products,
    acquired: Sequence[int] = (),
) -> Iterator[ManyStep]:
    r"""Select examples whose removal from D costs many queries the most information.

    .. math:: a = \arg\max_n \sum_q w_q\, c(x_q, n \mid T)^2 / (\sigma^2 - v(n \mid T)), \quad T = D \setminus A

    Args:
        posteriors: The posterior of each query given T, all from one ``SetPosterior``, with the same exclusions; or
            all of them as one ``ManyPosterior``.
        pool: Positions in T that may be picked, shape [c], ascending.
        budget: How many examples to select, from 1 to c.
        weighting: ``inverse_variance`` (w_q = 1/v(x_q | T∖A)) or ``uniform``.
        quotas: The most picks per label; labels it does not name are not picked. Needs ``labels``.
        labels: Label of each pool row, shape [c].
        candidates: The pool's rows for fast products, in the order of ``pool``; used by the gram form.
        max_table_bytes: Largest table of α (4 c q bytes) that may be made.
        table: Makes that table; another implementation may be faster, the picks are the same.
        products: Makes the products that decide; as ``table``.
        acquired: Picks made before, in order, as positions in T; as of :func:`select_many`.

    Yields:
        One step per pick that is not in ``acquired``: ``position`` is its position in T, nats are InfoLoss.

    Raises:
        ShapeError: If the posteriors do not share their set and exclusions, or there are none.
    """
    check_option(weighting, WEIGHTINGS, "weighting")
    check_budget(budget, pool.shape[0])
    if not isinstance(posteriors, ManyPosterior):
        if not posteriors:
            raise ShapeError("posteriors is empty: give at least one query.")
        if any(p.posterior is not posteriors[0].posterior or p.excluded != posteriors[0].excluded for p in posteriors):
            raise ShapeError("posteriors must come from one SetPosterior and exclude the same positions.")
        posteriors = ManyPosterior.of_posteriors(posteriors)
    check_table_size(pool.shape[0], posteriors.duals.shape[0], max_table_bytes)
    quota = Quota(quotas, labels, pool.shape[0], budget)
    system = ManyLossSystem(posteriors, pool, budget, _weighting(weighting), candidates, products)
    places = {position: place for place, position in enumerate(pool.tolist())}
    made = check_acquired([places.get(position, -1) for position in acquired], pool.shape[0], budget)
    yield from _removals(system, posteriors, pool, budget, quota, table, made)


def _removals(
    system: ManyLossSystem,
    given: ManyPosterior,
    pool: Int[Tensor, " c"],
    budget: int,
    quota: Quota,
    table: TableMaker,
    made: list[int],
) -> Iterator[ManyStep]:
    # The greedy loop of the InfoLoss sum, after the picks that are made.
    pursuit = ManyPursuit(system, table(system.rows, given.duals.shape[0]))
    for conditioned in system.exclude():
        pursuit.follow(conditioned)
    named = pool.tolist()
    for position in made:
        pursuit.accept(position)
        quota.spend(position)
    for rank in range(len(made) + 1, budget + 1):
        choice = pursuit.choose(quota.eligible())
        if choice is None:
            return
        pursuit.accept(choice.position)
        quota.spend(choice.position)
        yield ManyStep(
            rank=rank,
            position=named[choice.position],
            # α = c/σ², so α²/P_nn = c²/(σ² − v): the score is in measurement², as InfoGain's.
            score=choice.score,
            covariances=given.posterior.noise_variance * choice.targets,
            query_variances=given.variances + system.increases,
            cumulative_nats=_loss_nats(given.variances, system.increases),
        )


def _joint(
    queries: Float[Tensor, "q d"],
    candidates: Candidates,
    noise_variance: float,
    budget: int,
    quota: Quota,
    made: list[int],
) -> Iterator[ManyStep]:
    # The greedy loop of the joint rule, after the picks that are made.
    system = GainSystem(queries, candidates, noise_variance, budget, _jointly)
    pursuit = Pursuit(system, budget)
    for position in made:
        pursuit.accept(position)
        quota.spend(position)
    for rank in range(len(made) + 1, budget + 1):
        choice = pursuit.choose(quota.eligible())
        if choice is None:
            return
        pursuit.accept(choice.position)
        quota.spend(choice.position)
        acquired = system.acquired
        yield ManyStep(
            rank=rank,
            position=choice.position,
            score=choice.score,
            covariances=choice.target,
            query_variances=acquired.variances.clone(),
            cumulative_nats=_gain_nats(acquired.prior_variances, acquired.reductions, acquired.variances),
        )


def _gain_nats(
    prior: Float[Tensor, " q"], reductions: Float[Tensor, " q"], variances: Float[Tensor, " q"]
) -> Float[Tensor, " q"]:
    # info_gain_nats of every query.
    parts = zip(prior.tolist(), reductions.tolist(), variances.tolist(), strict=True)
    return torch.tensor([info_gain_nats(*part) for part in parts], dtype=torch.float64)


def _loss_nats(variances: Float[Tensor, " q"], increases: Float[Tensor, " q"]) -> Float[Tensor, " q"]:
    # info_loss_nats of every query.
    parts = zip(variances.tolist(), increases.tolist(), strict=True)
    return torch.tensor([info_loss_nats(*part) for part in parts], dtype=torch.float64)


def _weighting(name: str) -> Callable[[Float[Tensor, " q"]], Float[Tensor, " q"]]:
    # w_q from v(x_q | ·): 1/v is diag(M)⁻¹ for M⁻¹ (Eq. 93).
    return torch.ones_like if name == "uniform" else torch.reciprocal


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


def joint_nats(score: float) -> float:
    """Turn a joint score into the information of that pick about all queries together (Eq. 92).

    Args:
        score: u_nᵀ M⁻¹ u_n / (σ² + v(n | A)), from 0 to 1.

    Returns:
        −½ log(1 − score), in nats: half the drop of log det M.
    """
    return -0.5 * math.log1p(-score)
