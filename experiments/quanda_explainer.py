"""An index as an Explainer of the quanda package, so that quanda's metrics evaluate this project.

Needs quanda 0.5 beside nattribute. What quanda hands over as test data is sketched with the index's own spec at its own
weights; scores are of one training row at a time, and every row has one.
"""

from pathlib import Path
from typing import Any

import torch
from quanda.explainers.base import Explainer
from torch import Tensor, nn
from torch.utils.data import Dataset

from attribution import weight_space
from attribution.baselines import graddot, relatif, trak
from indexer.featurise import Featuriser
from indexer.index_recipe import load_model, recipe_of
from sketchstore.reader import open_index

METHODS = ("infogain", "trak", "graddot", "relatif")


class NattributeExplainer(Explainer):  # type: ignore[misc]  # quanda has no types of its own
    r"""Scores of every training row for test examples, from an index of margins.

    ``infogain`` is what a row alone tells, in nats, without a sign:

    .. math:: -\tfrac12 \log\Big(1 - \frac{(\phi_* \cdot \phi_i)^2}{\|\phi_*\|^2 (\|\phi_i\|^2 + \sigma^2)}\Big)

    The others are those of ``attribution.baselines``, positive for proponents; λ of TRAK is σ².

    Args:
        model: The model that quanda evaluates; the index must hold its weights.
        train_dataset: quanda's training set, its rows in the index's order.
        task: quanda's name of the task.
        checkpoints: quanda's; not read, because the weights are in the index.
        checkpoints_load_func: The same.
        index: The index directory; it has the one view ``margin``.
        recipe: The recipe's file where the index was built from one; None for a built-in recipe.
        data_dir: Folder of the recipe's data files.
        method: One of ``METHODS``.
        relative_noise: σ² in units of the rows' mean squared norm.

    Raises:
        ValueError: If the method is not known, the index has other rows than the training set, or another measurement.
    """

    accepted_tasks = ("image_classification", "text_classification")

    def __init__(
        self,
        model: nn.Module,
        train_dataset: "Dataset[Any]",
        task: str = "image_classification",
        checkpoints: Any = None,
        checkpoints_load_func: Any = None,
        *,
        index: Path | str,
        recipe: str | None = None,
        data_dir: Path | None = None,
        method: str = "infogain",
        relative_noise: float = 1.0,
    ) -> None:
        if method not in METHODS:
            raise ValueError(f"method {method!r}; allowed are {', '.join(METHODS)}")
        super().__init__(model, train_dataset, task, checkpoints, checkpoints_load_func)
        found = open_index(Path(index))
        rows = len(self.train_dataset)
        if found.num_rows != rows:
            raise ValueError(
                f"index {found.name!r} has {found.num_rows} rows, the training set {rows}: build it from it"
            )
        if list(found.manifest.views) != ["margin"]:
            raise ValueError(
                f"index {found.name!r} has the views {', '.join(found.manifest.views)}; quanda asks one of margins: "
                "indexer build … --measurement margin"
            )
        loaded = recipe_of(found, recipe, data_dir=data_dir)
        own = load_model(found, loaded)
        _check_weights(model, own, found.name)
        self.method = method
        self._featuriser = Featuriser.from_manifest(found.manifest, loaded, own)
        view = found.view("margin")
        self._rows = view.sketches(torch.arange(rows), dtype=torch.float64)
        self._errors = found.column("one_minus_p").double()
        self._noise = relative_noise * view.mean_squared_norm()

    def explain(self, test_data: Tensor, targets: Tensor) -> Tensor:
        """Score every training row for test examples.

        Args:
            test_data: Inputs of the model, shape [b, …].
            targets: Classes whose margins are explained, int64 [b].

        Returns:
            Scores, float32 [b, n].
        """
        queries = self._featuriser.sketch_batch(test_data, targets.long(), "margin").double()
        match self.method:
            case "infogain":
                scores = self._nats(queries @ self._rows.T, queries.square().sum(dim=1, keepdim=True))
            case "trak":
                scores = trak(queries, self._rows, self._errors, self._noise)
            case "graddot":
                scores = graddot(queries, self._rows, self._errors)
            case _:
                scores = relatif(queries, self._rows, self._noise)
        return scores.float()

    def self_influence(self, batch_size: int = 32) -> Tensor:
        """Score every training row about itself, from the stored sketches; what ``explain`` says of it as a query.

        Args:
            batch_size: quanda's; nothing is computed in batches of examples here.

        Returns:
            Scores, float32 [n].

        Raises:
            ValueError: With ``relatif``, which is 1 of every row about itself.
        """
        norms = self._rows.square().sum(dim=1)
        match self.method:
            case "infogain":
                scores = self._nats(norms, norms)
            case "trak":
                scores = self._errors * weight_space.variance(self._rows, self._rows, self._noise) / self._noise
            case "graddot":
                scores = self._errors * norms
            case _:
                raise ValueError("relatif scores every row about itself 1; ask trak, graddot or infogain")
        return scores.float()

    def _nats(self, covariances: Tensor, query_variances: Tensor) -> Tensor:
        variances = self._rows.square().sum(dim=1) + self._noise
        return -0.5 * torch.log1p(-covariances.square() / (query_variances * variances))


def _check_weights(model: nn.Module, own: nn.Module, name: str) -> None:
    theirs, ours = model.state_dict(), own.state_dict()
    if theirs.keys() != ours.keys() or any(not torch.equal(theirs[key].cpu(), ours[key]) for key in ours):
        raise ValueError(
            f"the weights in index {name!r} are not those of the model that quanda evaluates: build the index again"
        )
