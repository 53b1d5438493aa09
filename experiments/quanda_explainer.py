"""This project as an Explainer of the quanda package, so that quanda's metrics evaluate it.

Needs quanda 0.5.0, in an environment of its own: experiments/README.md has the commands.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from experiments.frozen import Frozen
from experiments.index_explanations import IndexExplanations
from experiments.quanda_package import prepare_quanda

prepare_quanda()

from quanda.explainers.base import Explainer  # noqa: E402 — after what lets it be imported alone


class IndexExplainer(Explainer):  # type: ignore[misc]  # quanda is not read by the type checker
    """Builds an index at the model's weights, if it is not there, and asks it.

    quanda's model randomization makes an explainer of the randomized model: its index is another one, beside the first.

    Args:
        model: The model that quanda evaluates, with the weights to explain.
        train_dataset: quanda's training set: the rows of ``frozen``, in their order.
        task: quanda's name of the task.
        checkpoints: quanda's; not read, the weights are those of the model.
        checkpoints_load_func: The same.
        frozen: The network's description and its training rows.
        folder: Where indexes are kept.
        options: Further arguments of ``IndexExplanations``: ``method``, ``dim``, ``relative_noise``, ``picks``.

    Raises:
        ValueError: If the training set has other rows than ``frozen``.
    """

    accepted_tasks = ["image_classification"]  # noqa: RUF012 — quanda's name and type

    def __init__(
        self,
        model: nn.Module,
        train_dataset: Any,
        task: str = "image_classification",
        checkpoints: Any = None,
        checkpoints_load_func: Any = None,
        *,
        frozen: Frozen,
        folder: Path,
        **options: Any,
    ) -> None:
        super().__init__(model, train_dataset, task, checkpoints, checkpoints_load_func)
        if len(self.train_dataset) != len(frozen.train):
            raise ValueError(
                f"the training set has {len(self.train_dataset)} rows, the frozen network {len(frozen.train)}; "
                "give the rows it was trained on"
            )
        self._explanations = IndexExplanations(frozen, model.state_dict(), folder, **options)

    def explain(self, test_data: Tensor, targets: list[int] | Tensor) -> Tensor:
        """Score every training row for test examples.

        Args:
            test_data: Inputs of the model, shape [b, …].
            targets: Classes whose margins are explained, [b].

        Returns:
            Scores, float64 [b, n].
        """
        return self._explanations.explain(test_data, torch.as_tensor(targets, dtype=torch.int64))

    def self_influence(self, batch_size: int = 32) -> Tensor:
        """Score every training row about itself.

        Args:
            batch_size: quanda's; rows are asked about one by one.

        Returns:
            Scores, float64 [n].
        """
        return self._explanations.self_influence()
