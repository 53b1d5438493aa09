"""Rankings by the three information methods, as the project's own attributor answers them."""

import torch

from indexer.attributor import Attributor, CandidateFilter, Question

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

    Returns:
        Rows in the order of selection.
    """
    query = attributor.resolve_query_row(query_row, label)
    question = Question(
        query=query,
        method=method,
        budget=budget,
        relative_noise=relative_noise,
        filter=CandidateFilter(labels=[label]),
        condition=condition,
        rescore=(),
        available=False,
    )
    return [hit.row for hit in attributor.answer(question).hits]


def random_rows(pool: torch.Tensor, budget: int, seed: int) -> list[int]:
    """Return rows of a pool drawn without replacement."""
    order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed))
    return [int(row) for row in pool[order[:budget]]]
