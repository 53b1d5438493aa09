"""Rankings by the three information methods, as the project's own attributor answers them."""

from dataclasses import replace

import torch

from indexer.attributor import Attributor, CandidateFilter, QuerySketch, Question

METHODS = ("infogain", "infogain_approx", "infoloss")
TITLES = {"infogain": "InfoGain", "infogain_approx": "InfoGain (approx)", "infoloss": "InfoLoss"}


def select_rows(
    attributor: Attributor,
    query_row: int,
    label: int,
    method: str,
    budget: int,
    relative_noise: float | None,
    *,
    condition: str = "comparable",
    proponents: bool = False,
) -> list[int]:
    """Select training rows of one label that inform a stored query's logit of that label.

    Args:
        attributor: Over an index of ``class_logit``, ``label_logit`` or ``margin``.
        query_row: The stored query.
        label: The class that is explained, and the label of the candidates.
        method: ``infogain``, ``infogain_approx`` or ``infoloss``.
        budget: How many rows.
        relative_noise: σ² in units of the comparable rows' mean squared norm; None takes the index's own default.
        condition: D of InfoLoss: ``comparable``, every row of the view, or ``pool``, the candidates only.
        proponents: Whether candidates are only those whose covariance with the query given D is positive; information
            has no sign. D is not cut down with them.

    Returns:
        Rows in the order of selection; with ``proponents`` fewer than asked where there are fewer.
    """
    query = attributor.resolve_query_row(query_row, label)
    candidates = CandidateFilter(labels=[label])
    if proponents:
        candidates = replace(candidates, ids=_proponents(attributor, query, candidates, relative_noise))
    question = Question(
        query=query,
        method=method,
        budget=budget,
        clip_budget=proponents,
        relative_noise=relative_noise,
        filter=candidates,
        condition=condition,
        rescore=(),
        available=False,
    )
    return [hit.row for hit in attributor.answer(question).hits]


def _proponents(
    attributor: Attributor, query: QuerySketch, candidates: CandidateFilter, relative_noise: float | None
) -> list[str]:
    # RelatIF is the correlation given D, and has the sign of the covariance.
    question = Question(
        query=query,
        method="relatif",
        budget=attributor.index.num_rows,
        clip_budget=True,
        relative_noise=relative_noise,
        filter=candidates,
        rescore=(),
        available=False,
    )
    return [hit.id for hit in attributor.answer(question).hits if hit.score > 0]


def random_rows(pool: torch.Tensor, budget: int, seed: int) -> list[int]:
    """Return rows of a pool drawn without replacement."""
    order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed))
    return [int(row) for row in pool[order[:budget]]]
