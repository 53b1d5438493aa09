"""The methods of the backdoor experiment: rankings of the rows of a query's class, built only when they are asked."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from experiments.ekfac import ekfac_scores
from experiments.ekfac import is_available as ekfac_is_available
from experiments.frozen import Frozen
from experiments.indexing import Sketched, frozen_index
from experiments.information import METHODS as INFORMATION
from experiments.information import random_rows, select_rows
from experiments.margin_baselines import METHODS as BASELINES
from experiments.margin_baselines import MarginBaselines, ranked
from indexer.attributor import Attributor
from indexer.progress import Progress

Ranker = Callable[[int, int, float | None], list[int]]
"""Ranks training rows: (stored query, its label, relative noise or λ) → the first rows, most influential first."""

OWN_LABEL = "infoloss_own_label"
_UNSCALED = {method: f"{method}_unscaled" for method in INFORMATION}
METHODS = (*INFORMATION, OWN_LABEL, *_UNSCALED.values(), *BASELINES, "random", "ekfac")
#: Methods with a noise, or a λ, that is chosen on the tuning queries.
TUNED = (*INFORMATION, OWN_LABEL, *_UNSCALED.values(), "trak", "relatif")


@dataclass(frozen=True)
class Sizes:
    """Numbers that rankings depend on.

    Attributes:
        dim: d of the sketches.
        seed: Their seed.
        budget: How many rows are ranked.
    """

    dim: int
    seed: int
    budget: int


def rankers_of(
    methods: Sequence[str], frozen: Frozen, folder: Path, sizes: Sizes, progress: Progress, device: str = "cpu"
) -> dict[str, Ranker]:
    """Return rankings by method; builds the indexes that they need and that are not there.

    Args:
        methods: Of ``METHODS``.
        frozen: The network.
        folder: Where it is kept, as ``network.safetensors``, and where indexes go.
        sizes: Sketch and budget.
        progress: Told how far a build is.
        device: Where indexes are built and EK-FAC is computed.

    Returns:
        The methods in their order, without EK-FAC where kronfluence is not installed.
    """
    file, labels, k = folder / "network.safetensors", frozen.train.labels, sizes.budget
    sketched = Sketched("class_logit", True, sizes.dim, seed=sizes.seed, dtype="float16")
    found: dict[str, Ranker] = {}

    def pool_of(label: int) -> torch.Tensor:
        return torch.nonzero(labels == label).squeeze(1)

    def wanted(*names: str) -> bool:
        return any(name in methods for name in names)

    def information(attributor: Attributor, rule: str, condition: str = "comparable") -> Ranker:
        return lambda query, label, noise: select_rows(attributor, query, label, rule, k, noise, condition=condition)

    def scored(baselines: MarginBaselines, method: str) -> Ranker:
        def rank(query: int, label: int, regularisation: float | None) -> list[int]:
            of_noise = baselines if regularisation is None else baselines.regularised(regularisation)
            return ranked(of_noise.scores(query, (method,))[method], pool_of(label), k)

        return rank

    if wanted(*INFORMATION, OWN_LABEL):
        scaled = Attributor(
            frozen_index(file, folder / "class-logit", sketched, progress, device), engine="brute_force"
        )
        found |= {method: information(scaled, method) for method in INFORMATION}
        found[OWN_LABEL] = information(scaled, "infoloss", "pool")
    if wanted(*_UNSCALED.values()):
        # In the pool the logit of the query's class is the row's own; D of InfoLoss is the pool then.
        how = replace(sketched, measurement="label_logit", ntk=False)
        unscaled = Attributor(frozen_index(file, folder / "label-logit", how, progress, device), engine="brute_force")
        found |= {name: information(unscaled, rule) for rule, name in _UNSCALED.items()}
    if wanted(*BASELINES):
        how = replace(sketched, measurement="margin", ntk=False)
        baselines = MarginBaselines(frozen, frozen_index(file, folder / "margin", how, progress, device), 1.0)
        found |= {method: scored(baselines, method) for method in BASELINES}
    found["random"] = lambda query, label, _: random_rows(pool_of(label), k, seed=query)
    if wanted("ekfac"):
        if ekfac_is_available():
            progress.phase("EK-FAC influence", 0)
            scores = ekfac_scores(frozen, folder / "ekfac", device=device)
            found["ekfac"] = lambda query, label, _: ranked(scores[query], pool_of(label), k)
        else:
            progress.note("EK-FAC is left out: kronfluence is not installed")
    return {method: found[method] for method in methods if method in found}
