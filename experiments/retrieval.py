"""Measures of a ranking whose true examples are known: Recall@k (87) and the reciprocal rank of the first (88)."""

from collections.abc import Sequence


def recall_at(ranking: Sequence[int], truth: set[int], k: int) -> float:
    r"""Return \|top-k ∩ truth\| / \|truth\| of one query.

    Args:
        ranking: Rows, most influential first.
        truth: The true rows, at least one.
        k: The cutoff.
    """
    return len(set(ranking[:k]) & truth) / len(truth)


def reciprocal_rank(ranking: Sequence[int], truth: set[int], k: int) -> float:
    """Return 1/rank of the first true row, 0 when it is beyond the cutoff.

    Args:
        ranking: Rows, most influential first.
        truth: The true rows.
        k: The cutoff.
    """
    return next((1.0 / rank for rank, row in enumerate(ranking[:k], start=1) if row in truth), 0.0)
