"""How many picks each label has left, where a coreset is to be balanced."""

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from attribution.errors import BudgetError, ShapeError


class Quota:
    """The most picks per label, and what is left of them.

    Args:
        quotas: The most picks per label; labels it does not name are not picked. None: no limits.
        labels: Label of each candidate, shape [c]; needed with quotas.
        count: c.
        budget: How many will be picked.

    Raises:
        ShapeError: If quotas come without one label per candidate.
        BudgetError: If a quota is negative, or the quotas allow fewer picks than the budget.
    """

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
        """Say which candidates may be picked now.

        Returns:
            Shape [c]; None where nothing limits them.
        """
        if self._left is None or self._labels is None:
            return None
        open_labels = [label for label, left in self._left.items() if left > 0]
        return torch.isin(self._labels, torch.tensor(open_labels, dtype=self._labels.dtype))

    def spend(self, position: int) -> None:
        """Count a pick against its label.

        Args:
            position: Which candidate.
        """
        if self._left is not None and self._labels is not None:
            self._left[int(self._labels[position])] -= 1
