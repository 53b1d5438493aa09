"""A recipe of points that fails by quoting what it was given: what a log must not pass on."""

from typing import Any

import torch

from tests.service import points_recipe

architecture = points_recipe.architecture
model = points_recipe.model
train_set = points_recipe.train_set
query_set = points_recipe.query_set


def parse(content: dict[str, Any]) -> tuple[torch.Tensor, int]:
    if "fail" in content:
        # The one kind that is not held against the content, so that the service itself fails and logs it.
        raise MemoryError(f"cannot read {content['fail']}") from OSError(f"because of {content['fail']}")
    return points_recipe.parse(content)
