"""Scores of every training row for test examples, as matrices, from this project's own index and answers.

What an evaluation of attribution methods asks for: ``quanda_explainer`` hands it to the quanda package.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from experiments.frozen import Frozen, save_frozen
from experiments.indexing import RECIPES, Sketched, frozen_index
from indexer.attributor import Attributor, QuerySketch, Question
from indexer.featurise import Featuriser
from indexer.index_recipe import load_model, recipe_of
from indexer.progress import Progress, Silent

#: Methods that take a set, greedily.
OF_SETS = ("infogain", "infogain_approx", "infoloss")
#: Methods that score every row by itself.
OF_ROWS = ("trak", "graddot", "relatif")


class IndexExplanations:
    """Asks an index of margins, built at the weights that are given if it is not there.

    Args:
        frozen: The network's description and its training rows.
        weights: The weights to explain, by name.
        folder: Where indexes are kept, by a digest of their weights.
        method: One of ``OF_SETS`` or ``OF_ROWS``.
        dim: Sketch dimension.
        relative_noise: σ², and λ of TRAK and RelatIF, in units of the rows' mean squared norm.
        picks: Size of the sets of ``OF_SETS``.
        progress: Told how far a build is.

    Raises:
        ValueError: If the method is not known.
    """

    def __init__(
        self,
        frozen: Frozen,
        weights: Mapping[str, Tensor],
        folder: Path,
        *,
        method: str,
        dim: int,
        relative_noise: float = 1.0,
        picks: int = 20,
        progress: Progress | None = None,
    ) -> None:
        if method not in OF_SETS + OF_ROWS:
            raise ValueError(f"method {method!r}; allowed are {', '.join(OF_SETS + OF_ROWS)}")
        self.method, self.relative_noise = method, relative_noise
        home = folder / _digest(weights)
        file = home / "network.safetensors"
        if not file.exists():
            home.mkdir(parents=True, exist_ok=True)
            save_frozen(replace(frozen, weights=weights), file)
        index = frozen_index(file, home / f"margin-{dim}", Sketched("margin", False, dim), progress or Silent())
        recipe = recipe_of(index, str(RECIPES / "frozen.py"))
        self._featuriser = Featuriser.from_manifest(index.manifest, recipe, load_model(index, recipe))
        self._attributor = Attributor(index, engine="brute_force")
        self._ids = [index.examples.id(row) for row in range(index.num_rows)]
        self.picks = min(picks, index.num_rows)

    @property
    def num_rows(self) -> int:
        """How many training rows are scored."""
        return len(self._ids)

    def explain(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Score every training row for examples.

        A set has no score of a single row: its first pick gets as many points as it has picks, the next one less, and a
        row that is not in it none.

        Args:
            inputs: What the network reads, shape [b, …].
            labels: Classes whose margins are explained, int64 [b].

        Returns:
            float64 [b, n].
        """
        sketches = self._featuriser.sketch_batch(inputs, labels, "margin").double()
        queries = [
            QuerySketch(sketch, "margin", int(label)) for sketch, label in zip(sketches, labels.tolist(), strict=True)
        ]
        of_one = self._set_points if self.method in OF_SETS else self._row_scores
        return torch.stack([of_one(query) for query in queries])

    def self_influence(self) -> Tensor:
        """Score every training row about itself, as ``explain`` would with the row as the query.

        Returns:
            float64 [n].

        Raises:
            ValueError: For a set, and for RelatIF, which is 1 of every row about itself.
        """
        if self.method not in ("trak", "graddot"):
            raise ValueError(f"{self.method} does not rank rows by what they say about themselves; ask trak or graddot")
        return torch.tensor(
            [
                self._asked(self._attributor.resolve_train_row(row, include_self=True), [id])[0]
                for row, id in enumerate(self._ids)
            ],
            dtype=torch.float64,
        )

    def _row_scores(self, query: QuerySketch) -> Tensor:
        return torch.tensor(self._asked(query, self._ids), dtype=torch.float64)

    def _asked(self, query: QuerySketch, ids: list[str]) -> list[float]:
        found = self._attributor.scores(
            query, ids, relative_noise=self.relative_noise, criteria=(), methods=(self.method,)
        )
        return [member.scores[self.method] for member in found.members]

    def _set_points(self, query: QuerySketch) -> Tensor:
        answer = self._attributor.answer(
            Question(
                query=query,
                method=self.method,
                budget=self.picks,
                relative_noise=self.relative_noise,
                rescore=(),
                available=False,
            )
        )
        points = torch.zeros(self.num_rows, dtype=torch.float64)
        for hit in answer.hits:
            points[hit.row] = self.picks + 1 - hit.rank
        return points


def _digest(weights: Mapping[str, Tensor]) -> str:
    found = hashlib.blake2b(digest_size=8)
    for name in sorted(weights):
        found.update(name.encode())
        found.update(weights[name].detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()
