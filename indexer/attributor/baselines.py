"""Methods that score every candidate once and take the best: TRAK, GradDot, RepSim, RelatIF, from what an index stores.

They rank alike whatever was taken before, so near-duplicates come together; nats are computed of what they took. The
formulas stand in ``attribution.baselines``; here they are read off stored rows and columns.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from attribution.acquired import acquire
from attribution.exact_sums import inner_products, squared_norms
from attribution.posterior import QueryPosterior
from attribution.steps import Step
from indexer.attributor.errors import NoRepresentationError
from indexer.attributor.queries import REPRESENTATIONS
from indexer.attributor.questions import QuerySketch
from indexer.attributor.rules import Asked
from sketchstore.reader import Index

BASELINES = ("trak", "graddot", "repsim", "relatif")
#: Those that are of the margin, and read 1 − p.
OF_MARGINS = ("trak", "graddot")
#: Those that need the posterior given D.
GIVEN_D = ("trak", "relatif")
ONE_MINUS_P = "one_minus_p"
#: Relative difference up to which values may be those of equal rows: far above rounding, and only bytes decide.
_TWIN_TOLERANCE = 1e-8
#: Rows whose penultimate features are in memory at a time.
_GROUP_ROWS = 8192


def lacking(index: Index, *, has_posterior: bool) -> dict[str, str]:
    """Say which baselines an index cannot serve, and what it would need.

    Args:
        index: The index.
        has_posterior: Whether some partition's Gram matrix is stored or small enough to compute.

    Returns:
        By method: what the index lacks, and how to build one that has it.
    """
    found: dict[str, str] = {}
    measurement = index.manifest.measurement.name
    for method in OF_MARGINS:
        if measurement != "margin":
            found[method] = (
                f"it is defined on margins, and this index measures {measurement}. Build one with "
                "`indexer build … --measurement margin`"
            )
        elif ONE_MINUS_P not in index.manifest.columns:
            found[method] = (
                f"the index has no column {ONE_MINUS_P}, which a build stores where every training label is one of the "
                "model's classes. Build it anew from such a recipe"
            )
    if REPRESENTATIONS not in index.manifest.columns:
        found["repsim"] = (
            f"the index has no column {REPRESENTATIONS}. Give the recipe a representation(model, inputs) and build it "
            "anew"
        )
    for method in GIVEN_D:
        if not has_posterior and method not in found:
            found[method] = "no Gram matrix of its rows is stored. Write them with `indexer derive`"
    return found


def check_servable(index: Index, asked: Asked, method: str, query: QuerySketch) -> None:
    """Refuse a method that this query cannot be asked by, before the first step.

    Args:
        index: The index, which can serve the method.
        asked: The question.
        method: Any method.
        query: The query.
    """
    if method == "repsim":
        query_representation(index, query, "/query")
    elif method in GIVEN_D:
        asked.conditioning.posterior("/method")


def baseline_steps(index: Index, asked: Asked, method: str, query: QuerySketch) -> Iterator[Step]:
    """Take the candidates with the largest scores, ties to the lowest row.

    Args:
        index: The index.
        asked: The question.
        method: One of ``BASELINES``.
        query: The query, with its penultimate features for RepSim.

    Yields:
        Steps with the exact InfoGain of what was taken; ``position`` is a row, ``score`` the method's.
    """
    candidates, budget = asked.pool.candidates, asked.budget
    per_row = asked.stored.bytes_per_row
    match method:
        case "trak":
            scores = trak_scores(index, asked, "/method")
        case "graddot":
            scores = graddot_scores(index, asked)
        case "repsim":
            features = query_representation(index, query, "/query")
            scores = repsim_scores(index, candidates, features)
            per_row = 4 * features.numel()
        case _:
            scores = best_relatif(asked, budget)
    order = torch.argsort(-scores, stable=True)[:budget]
    chosen = candidates[order]
    read = int(candidates.numel()) * per_row + int(chosen.numel()) * asked.stored.bytes_per_row
    for step in acquire(asked.query, asked.rows.sketches_of_rows(chosen), asked.noise_variance):
        place = step.position
        yield replace(
            step,
            position=int(chosen[place]),
            score=float(scores[order[place]]),
            rows_scored=int(candidates.numel() + chosen.numel()),
            bytes_read=read,
        )


def member_scores(index: Index, asked: Asked, method: str, query: QuerySketch, pointer: str) -> list[float]:
    """Score the candidates by one method, in their order.

    Args:
        index: The index.
        asked: The question, whose candidates are the rows to score.
        method: One of ``BASELINES``.
        query: The query.
        pointer: The field of the request that names the method.

    Returns:
        Scores.
    """
    match method:
        case "trak":
            scores = trak_scores(index, asked, pointer)
        case "graddot":
            scores = graddot_scores(index, asked)
        case "repsim":
            scores = repsim_scores(index, asked.pool.candidates, query_representation(index, query, "/query"))
        case _:
            scores = relatif_scores(asked, pointer)
    return [float(score) for score in scores]


def graddot_scores(index: Index, asked: Asked) -> Tensor:
    r"""Score the candidates by GradDot, (1 − p_i) φ_* · φ_i.

    Args:
        index: The index.
        asked: The question.

    Returns:
        Scores, float64 [c], measurement².
    """
    products = asked.stored.products(asked.pool.candidates, asked.query)
    return _column(index, ONE_MINUS_P, asked.pool.candidates) * products


def trak_scores(index: Index, asked: Asked, pointer: str) -> Tensor:
    r"""Score the candidates by TRAK with λ = σ², (1 − p_i) φ_*ᵀ(Φ_DᵀΦ_D + σ²I)⁻¹φ_i = (1 − p_i) c(x_*, i | D)/σ².

    Args:
        index: The index.
        asked: The question.
        pointer: The field of the request that needs D.

    Returns:
        Scores, float64 [c], no unit.
    """
    given = asked.conditioning.posterior(pointer)
    covariances = _covariances(asked, given)
    covariances = _settle_twins(asked, given, asked.pool.candidates, covariances)
    return _column(index, ONE_MINUS_P, asked.pool.candidates) * covariances / asked.noise_variance


def relatif_scores(asked: Asked, pointer: str) -> Tensor:
    """Score the candidates by RelatIF (86), each by sums of fixed order: d² a candidate where D has more than d rows.

    Args:
        asked: The question.
        pointer: The field of the request that needs D.

    Returns:
        Scores, float64 [c], from −1 to 1.
    """
    given = asked.conditioning.posterior(pointer)
    positions = asked.conditioning.positions(asked.pool.candidates)
    scores = _correlations(given, _covariances(asked, given), given.variances(positions))
    return _settle_twins(asked, given, asked.pool.candidates, scores)


def best_relatif(asked: Asked, budget: int) -> Tensor:
    """Score the candidates by RelatIF (86), exactly those that may be among the best.

    Fast variances of a known error nominate, first those at hand, then more certain ones of whoever these leave in
    contention; whoever is left then is computed by sums of fixed order.

    Args:
        asked: The question.
        budget: How many of the best are wanted.

    Returns:
        Scores, float64 [c], minus infinity where another candidate is certainly better than ``budget`` others.
    """
    given = asked.conditioning.posterior("/method")
    positions = asked.conditioning.positions(asked.pool.candidates)
    covariances = _covariances(asked, given)
    contenders = torch.arange(positions.shape[0])
    for refined in (False, True):
        if refined and contenders.shape[0] <= budget:
            break  # they are the best, whatever their order
        if refined:
            given.refine_variances(positions[contenders])
        variances, error = given.nominated_variances(positions[contenders])
        scores = _correlations(given, covariances[contenders], variances)
        slack = error * scores.abs()
        least = torch.topk(scores - slack, budget).values[-1]
        contenders = contenders[scores + slack >= least]
    exact = torch.full_like(covariances, -torch.inf)
    found = _correlations(given, covariances[contenders], given.variances(positions[contenders]))
    exact[contenders] = _settle_twins(asked, given, asked.pool.candidates[contenders], found)
    return exact


def _covariances(asked: Asked, given: QueryPosterior) -> Tensor:
    # c(x_*, n | D) of the candidates: one pass on all cores, or sums over eigenvectors in the kernel form.
    residual = given.direction()
    if residual is None:
        return given.covariances(asked.conditioning.positions(asked.pool.candidates))
    return asked.stored.products(asked.pool.candidates, residual)


def _settle_twins(asked: Asked, given: QueryPosterior, rows: Tensor, values: Tensor) -> Tensor:
    # In the kernel form rows with equal sketches have values that differ by rounding: they get that of the lowest.
    if given.cross is None:
        return values
    order = torch.argsort(values, stable=True)
    ascending = values[order]
    near = ascending.diff() <= _TWIN_TOLERANCE * ascending[1:].abs()
    settled = values.clone()
    for run in torch.tensor_split(order, (~near).nonzero().flatten() + 1):
        if run.numel() > 1 and len(set(values[run].tolist())) > 1:
            first: dict[bytes, float] = {}
            places = run.sort().values  # rows ascend with their places or are settled in the order asked
            for place, sketch in zip(places.tolist(), asked.stored.sketches(rows[places]), strict=True):
                settled[place] = first.setdefault(sketch.numpy().tobytes(), float(values[place]))
    return settled


def _correlations(given: QueryPosterior, covariances: Tensor, variances: Tensor) -> Tensor:
    # A zero sketch has no variance and no covariance.
    return torch.where(variances > 0, covariances / torch.sqrt(variances.clamp(min=0) * given.variance), 0.0)


def repsim_scores(index: Index, rows: Tensor, features: Tensor) -> Tensor:
    """Score rows by the cosine of their penultimate features with the query's, by sums that depend on the row alone.

    Args:
        index: The index, with representations.
        rows: Rows, int64 [c].
        features: The query's, float64 [k].

    Returns:
        Cosines, float64 [c]; 0 where either is zero.
    """
    found = []
    column = index.column(REPRESENTATIONS)
    length = float(torch.sqrt(squared_norms(features[None]))[0])
    for group in torch.split(rows, _GROUP_ROWS):
        values = column[group].double()
        lengths = torch.sqrt(squared_norms(values)) * length
        found.append(torch.where(lengths > 0, inner_products(values, features) / lengths, 0.0))
    return torch.cat(found)


def query_representation(index: Index, query: QuerySketch, pointer: str) -> Tensor:
    """Give a query's penultimate features.

    Args:
        index: The index, with representations.
        query: The query.
        pointer: Where it stands in the request.

    Returns:
        float64 [k].

    Raises:
        NoRepresentationError: If they are not known, or not of the length of the rows'.
    """
    length = index.manifest.columns[REPRESENTATIONS].shape[1]
    features = None if query.representation is None else query.representation()
    if features is None:
        raise NoRepresentationError(
            "repsim compares penultimate features, and this query has none: a sketch does not carry them, and an index "
            "built before queries' features were stored has none for its query rows. Ask with a training example or an "
            "example's content, or build the index anew.",
            pointer=pointer,
            allowed=["train_id", "example"],
        )
    if tuple(features.shape) != (length,):
        raise NoRepresentationError(
            f"the query's penultimate features have shape {list(features.shape)}, those of the rows "
            f"[{length}]. Serve the index with the recipe it was built with.",
            pointer=pointer,
            allowed={"length": length},
        )
    return features.double()


def _column(index: Index, name: str, rows: Tensor) -> Tensor:
    return index.column(name)[rows].double()
