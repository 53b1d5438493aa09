"""Which part of the kernel loses poisoned rows: recall of exact inner products, by measurement, NTK scales and layer.

At large noise InfoGain picks the largest |inner product| with the query, so what it misses is read off the unsketched
kernel. Rows of the query's class are ranked by it for the logit of the class and for the margin, with
and without NTK scales, with one layer left out, and by cosine; by the covariance that is left when a few random clean
rows of the class are known; and, as GradDot does, by the margin's inner product times 1 − p of the row. Only tuning
queries of the experiment ``backdoor`` are asked.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from experiments import backdoor
from experiments.datasets import shuffled
from experiments.frozen import Frozen, Images
from experiments.networks import is_flat
from experiments.plots import figure
from experiments.recipes import frozen as frozen_recipe
from experiments.recipes import frozen_resnet
from experiments.report import Report
from experiments.retrieval import recall_at, reciprocal_rank
from experiments.statistics import with_error
from experiments.units import units_of
from indexer.ntk import ntk_scales
from indexer.progress import Progress
from indexer.terminal import counted

TITLE = "backdoor-kernel: which part of the kernel loses poisoned images"
_ROWS_AT_ONCE = 250


@dataclass(frozen=True)
class Settings:
    """How much of the experiment is done.

    Attributes:
        backdoor: The experiment whose networks and tuning queries these are.
        classes: Classes whose tuning queries are asked.
        seeds: Of its networks.
        known: How many random clean rows of the class are known, for the covariance.
        relative_noise: σ² of what is known, in units of the rows' mean squared norm.
    """

    backdoor: backdoor.Settings
    classes: tuple[int, ...]
    seeds: tuple[int, ...]
    known: int = 300
    relative_noise: float = 100.0


SIZES = {
    "smoke": Settings(backdoor.SMOKE, (1,), (0,), known=20),
    "small": Settings(backdoor.SMALL, (1, 6), (0,)),
    "paper": Settings(backdoor.PAPER, tuple(range(10)), backdoor.PAPER.seeds),
}


def run(settings: Settings, data_dir: Path | None, out: Path, progress: Progress) -> Report:
    """Train as the experiment ``backdoor`` does; rank by every part of the kernel."""
    k = settings.backdoor.per_class
    networks = {
        seed: backdoor.network(settings.backdoor, data_dir, out / f"seed-{seed}", seed, progress)
        for seed in settings.seeds
    }
    found: dict[tuple[str, str], dict[tuple[int, int], list[Measures]]] = {}
    for seed, label in units_of(progress, "ranking by exact kernels", list(product(settings.seeds, settings.classes))):
        for kernel, part, values in _measured(networks[seed], label, settings):
            found.setdefault((kernel, part), {})[seed, label] = values
    table: list[dict[str, Any]] = []
    for (kernel, part), by_class in found.items():
        every = [one for values in by_class.values() for one in values]
        columns = with_error("recall", (one.recall for one in every)) | with_error("mrr", (one.mrr for one in every))
        table.append({"kernel": kernel, "ranked_by": part, **columns})
    queries = sum(len(values) for values in next(iter(found.values())).values())
    facts = {
        "seeds": len(settings.seeds),
        "errors_over": counted(queries, "tuning query", "tuning queries"),
        "queries": queries,
        "train_rows": len(networks[settings.seeds[0]].train),
        "network": networks[settings.seeds[0]].network,
        "known": settings.known,
        "relative_noise": settings.relative_noise,
        "recall_by_seed_and_class": [
            {
                "kernel": kernel,
                "ranked_by": part,
                **{
                    f"{seed}/{label}": fmean(one.recall for one in values) for (seed, label), values in by_class.items()
                },
            }
            for (kernel, part), by_class in found.items()
        ],
    }
    return Report(f"Backdoor: Recall@{k} of exact kernels", table, facts, lambda path: _draw(path, table, k))


def ranking(scores: Tensor) -> list[int]:
    """Return places in the pool by absolute score, the largest first: information has no sign."""
    return [int(place) for place in torch.argsort(-scores.abs(), stable=True)]


class Measures(NamedTuple):
    """What is measured of one query's ranking."""

    recall: float
    mrr: float


def _measured(frozen: Frozen, label: int, settings: Settings) -> Iterator[tuple[str, str, list[Measures]]]:
    # Kernel, what ranks by it, and the measures of the class' tuning queries.
    k = settings.backdoor.per_class
    pool = torch.nonzero(frozen.train.labels == label).squeeze(1)
    is_poisoned = frozen.metadata["poisoned"][pool] == 1
    truth = set(torch.nonzero(is_poisoned).squeeze(1).tolist())
    clean = torch.nonzero(~is_poisoned).squeeze(1)
    known = clean[shuffled(len(clean), seed=0)[: settings.known]]
    asked = torch.nonzero(frozen.queries.labels[: settings.backdoor.stored_tuning] == label).squeeze(1)
    found: dict[tuple[str, str], list[Measures]] = {}
    for kernel, part, scores in _rankings(frozen, label, pool, asked, known, settings.relative_noise):
        ranked = ranking(scores)
        found.setdefault((kernel, part), []).append(
            Measures(recall_at(ranked, truth, k), reciprocal_rank(ranked, truth, k))
        )
    for (kernel, part), values in found.items():
        yield kernel, part, values


def _rankings(
    frozen: Frozen, label: int, pool: Tensor, queries: Tensor, known: Tensor, relative_noise: float
) -> Iterator[tuple[str, str, Tensor]]:
    # Kernel, what ranks by it, scores of the pool [c]. Layers are kept apart, so that a scale is a factor.
    model = frozen.model()
    gain = frozen_resnet.ntk_gain if frozen.network == "resnet9" else frozen_recipe.ntk_gain
    scales = ntk_scales(model, gain)
    names = list(scales)
    unsure = 1 - torch.softmax(frozen.logits(frozen.train.take(pool)), dim=1)[:, label]
    for measurement in ("class logit", "margin"):
        rows = _gradients(model, frozen, frozen.train.take(pool), label, measurement)
        asked = _gradients(model, frozen, frozen.queries.take(queries), label, measurement)
        scaled = [scales[name] ** 2 for name in names]
        for title, factors in (
            ("NTK scales", scaled),
            # No ReLU follows the last layer, which may be initialised without the gain, as `networks` does.
            ("NTK scales, gain 1 in the last layer", [*scaled[:-1], scaled[-1] / gain**2]),
            ("no NTK scales", [1.0] * len(names)),
        ):
            kernel = f"{measurement}, {title}"
            lengths = sum(f * g.square().sum(dim=1) for f, g in zip(factors, rows, strict=True)).sqrt()
            with_known = sum(f * (g @ g[known].T) for f, g in zip(factors, rows, strict=True)).double()
            noise = relative_noise * float(lengths.square().mean())
            inverse = torch.linalg.inv(with_known[known] + noise * torch.eye(len(known), dtype=torch.float64))
            for query in range(len(queries)):
                products = [f * (g @ q[query]) for f, g, q in zip(factors, rows, asked, strict=True)]
                whole = torch.stack(products).sum(dim=0)
                yield kernel, "inner product", whole
                yield kernel, "cosine", whole / lengths
                for name, of_layer in zip(names, products, strict=True):
                    yield kernel, f"inner product without {name}", whole - of_layer
                explained = with_known @ (inverse @ whole[known].double())
                yield kernel, f"covariance given {len(known)} clean rows", whole.double() - explained
                if measurement == "margin":
                    # With a sign, unlike information: opponents come last.
                    yield kernel, "inner product times 1 - p", unsure * whole.clamp(min=0)


def _gradients(model: nn.Module, frozen: Frozen, images: Images, label: int, measurement: str) -> list[Tensor]:
    # Of every parameter, [n, P_l].
    weights = {name: part.detach() for name, part in model.named_parameters()}

    def value(parameters: dict[str, Tensor], inputs: Tensor) -> Tensor:
        logits: Tensor = functional_call(model, parameters, (inputs[None],))[0]
        if measurement == "class logit":
            return logits[label]
        others = torch.cat([logits[:label], logits[label + 1 :]])
        return logits[label] - torch.logsumexp(others, dim=0)

    each = vmap(grad(value), in_dims=(None, 0))
    parts = [each(weights, part) for part in images.inputs(is_flat(frozen.network)).split(_ROWS_AT_ONCE)]
    return [torch.cat([part[name].flatten(1) for part in parts]) for name in weights]


def _draw(path: Path, table: list[dict[str, Any]], k: int) -> None:
    with figure(path, 1, width=7.5, height=5.5) as (axis,):
        for place, row in enumerate(reversed(table)):
            colour = "tab:blue" if row["kernel"].startswith("class logit") else "tab:purple"
            axis.barh(place, row["recall"], xerr=row["recall_standard_error"] or 0.0, color=colour)
        titles = [f"{row['kernel']}: {row['ranked_by']}" for row in reversed(table)]
        axis.set_yticks(range(len(table)), titles, fontsize=7)
        axis.set_xlim(0, 1)
        axis.set_xlabel(f"Recall@{k}")
