"""Backdoor (Table 1): are the poisoned training images found that make a triggered test image look like the next class?

Paper: Recall@50 / MRR of InfoLoss 1.000 / 0.999, RepSim 0.985 / 1.000, InfoGain close; influence baselines far below.

Class-cyclic BadNets: 50 images of every class i get the class's trigger and the label i + 1. A query is a triggered
test image of class i that the network calls i + 1; what is explained is the logit of i + 1, candidates are the rows
labelled i + 1, and the truth is the 50 poisoned ones among them. D is the whole training set. The noise of each
information method, and λ of TRAK and RelatIF in the same unit, is the one with the highest recall on queries of the
test set's first half; the queries reported are of the second. Baselines are of the margin, without NTK scales.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from experiments.datasets import read_images, shuffled
from experiments.ekfac import ekfac_scores
from experiments.ekfac import is_available as ekfac_is_available
from experiments.frozen import Frozen, Images, load_frozen, save_frozen
from experiments.indexing import Sketched, frozen_index
from experiments.information import METHODS as INFORMATION
from experiments.information import random_rows, select_rows
from experiments.journal import Journal
from experiments.margin_baselines import MarginBaselines, ranked
from experiments.networks import initial_network, is_flat
from experiments.plots import figure, style_of
from experiments.poisoning import Triggers, poisoned, relabelled
from experiments.report import Report
from experiments.retrieval import recall_at, reciprocal_rank
from experiments.statistics import mean_and_error, with_error
from indexer.attributor import Attributor
from indexer.progress import Progress
from indexer.training import TrainingSettings, train_classifier

TITLE = "backdoor: poisoned training images found (Table 1)"
OWN_LABEL = "infoloss_own_label"
#: Methods with a noise, or a λ, that is chosen on the tuning queries; and those without.
TUNED = (*INFORMATION, OWN_LABEL, "trak", "relatif")
UNTUNED = ("graddot", "repsim", "random")


@dataclass(frozen=True)
class Settings:
    """How much of the experiment is done.

    Attributes:
        data: Data set.
        network: The network.
        training: How it is trained.
        train_rows: Training images, drawn at random.
        per_class: Poisoned images of every class, which is also the cutoff of both measures.
        trigger: Side of a trigger in pixels.
        queries: Queries reported, the same number of each class where the network has as many.
        tuning_queries: Queries for the noise.
        noises: Relative noises tried, and λ of TRAK and RelatIF.
        dim: d of the sketches.
        seeds: One network, one set of triggers and one sketch for each.
    """

    data: str
    network: str
    training: TrainingSettings
    train_rows: int
    per_class: int
    trigger: int
    queries: int
    tuning_queries: int
    noises: tuple[float, ...]
    dim: int
    seeds: tuple[int, ...]


#: 50 of 5,000 images a class, as in CIFAR-10.
PAPER = Settings(
    data="fashion-mnist",
    network="cnn 1 16 32 64 10",
    training=TrainingSettings(epochs=10, batch_size=64, peak_rate=0.03, weight_decay=5e-4, peak_epoch=2.0),
    train_rows=50_000,
    per_class=50,
    trigger=4,
    queries=100,
    tuning_queries=20,
    noises=(0.01, 0.1, 1.0, 10.0, 100.0),
    dim=2048,
    seeds=(0, 1, 2),
)
SMALL = replace(PAPER, train_rows=10_000, queries=40, tuning_queries=10, noises=(0.1, 1.0, 10.0), dim=1024, seeds=(0,))
SMOKE = replace(
    SMALL,
    data="digits",
    network="mlp 64 32 10",
    training=TrainingSettings(epochs=20, batch_size=32, peak_rate=0.03, weight_decay=1e-3),
    train_rows=1400,
    per_class=15,
    trigger=3,
    queries=5,
    tuning_queries=2,
    noises=(1.0, 10.0),
    dim=256,
)
SIZES = {"smoke": SMOKE, "small": SMALL, "paper": PAPER}


def run(settings: Settings, data_dir: Path | None, out: Path, progress: Progress) -> Report:
    """Poison, train, index and ask, once for every seed."""
    journal = Journal(out / "rankings.jsonl", {"settings": str(replace(settings, seeds=()))})
    success: dict[int, float] = {}
    for seed in settings.seeds:
        file = out / f"seed-{seed}" / "network.safetensors"
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            progress.phase(f"training on poisoned images, seed {seed}", 0)
            save_frozen(trained(settings, data_dir, seed, progress), file)
        frozen = load_frozen(file)
        success[seed] = float(frozen.metadata["success_percent"][0]) / 100
        progress.note(f"seed {seed}: {success[seed]:.1%} of triggered test images are called the next class")
        how = Sketched("class_logit", True, settings.dim, seed=seed, dtype="float16")
        index = frozen_index(file, file.parent / "class-logit", how, progress)
        margin = frozen_index(
            file, file.parent / "margin", Sketched("margin", False, settings.dim, seed=seed, dtype="float16"), progress
        )
        ask(settings, frozen, Attributor(index, engine="brute_force"), seed, journal, progress)
        ask_baselines(settings, frozen, MarginBaselines(frozen, margin, 1.0), seed, journal, progress)
        if ekfac_is_available():
            progress.phase("EK-FAC influence", 0)
            ask_ekfac(settings, frozen, ekfac_scores(frozen, file.parent / "ekfac"), seed, journal)
        else:
            progress.note("EK-FAC is left out: kronfluence is not installed")
    return report(settings, success, journal)


def trained(settings: Settings, data_dir: Path | None, seed: int, progress: Progress) -> Frozen:
    """Train on the poisoned training set; tuning queries are stored before those reported."""
    train, test = read_images(settings.data, data_dir)
    classes = int(train.labels.max()) + 1
    train = train.take(torch.sort(shuffled(len(train), 0)[: settings.train_rows]).values)
    triggers = Triggers.drawn(classes, settings.trigger, train.white, seed)
    train, is_poisoned = poisoned(train, triggers, settings.per_class, seed)
    flat = is_flat(settings.network)
    network = train_classifier(
        initial_network(settings.network, seed), train.inputs(flat), train.labels, settings.training, seed=seed
    )
    triggered = relabelled(triggers.applied(test), classes)
    frozen = Frozen(settings.network, network.state_dict(), train, triggered)
    fooled = frozen.logits(triggered).argmax(dim=1) == triggered.labels
    right = (frozen.logits(test).argmax(dim=1) == test.labels).float().mean()
    progress.note(f"accuracy on clean test images {right:.1%}")
    half = len(test) // 2
    chosen = [
        *_balanced(triggered, fooled, range(half), settings.tuning_queries, classes),
        *_balanced(triggered, fooled, range(half, len(test)), settings.queries, classes),
    ]
    percent = torch.full((len(train),), round(float(fooled.float().mean()) * 100))
    columns = {"poisoned": is_poisoned.long(), "success_percent": percent}
    return replace(frozen, queries=triggered.take(torch.tensor(chosen)), metadata=columns)


def _balanced(images: Images, allowed: torch.Tensor, rows: range, wanted: int, classes: int) -> list[int]:
    # As many of every class as there are, in turns, in a fixed random order.
    order = rows.start + shuffled(len(rows), seed=1)
    order = order[allowed[order]]
    of_class = [order[images.labels[order] == label].tolist() for label in range(classes)]
    turns = [row for turn in range(len(rows)) for some in of_class for row in some[turn : turn + 1]]
    if len(turns) < wanted:
        raise ValueError(f"the triggers fool the network on {len(turns)} test images; {wanted} queries are wanted")
    return turns[:wanted]


def ask(
    settings: Settings, frozen: Frozen, attributor: Attributor, seed: int, journal: Journal, progress: Progress
) -> None:
    """Fill the journal with the first ``per_class`` rows of every ranking, by ``seed/query/method/noise``."""
    labels, budget = frozen.queries.labels, settings.per_class
    progress.phase(f"asking, seed {seed}", len(labels), even=False)
    for query in sorted(range(len(labels)), key=lambda query: int(labels[query])):
        label = int(labels[query])
        pool = torch.nonzero(frozen.train.labels == label).squeeze(1)
        measured = _measured(frozen, label, budget)

        for noise in settings.noises:
            for method in (*INFORMATION, OWN_LABEL):
                rule, condition = ("infoloss", "pool") if method == OWN_LABEL else (method, "comparable")
                journal.once(
                    f"{seed}/{query}/{method}/{noise:g}",
                    lambda: measured(  # noqa: B023
                        select_rows(attributor, query, label, rule, budget, noise, condition=condition)  # noqa: B023
                    ),
                )
        journal.once(f"{seed}/{query}/random", lambda: measured(random_rows(pool, budget, seed=query)))  # noqa: B023
        progress.advance(1)


def ask_baselines(
    settings: Settings, frozen: Frozen, baselines: MarginBaselines, seed: int, journal: Journal, progress: Progress
) -> None:
    """Fill the journal with the baselines: ``seed/query/method``, and ``seed/query/method/λ`` of TRAK and RelatIF."""
    labels, budget = frozen.queries.labels, settings.per_class
    progress.phase(f"asking the baselines, seed {seed}", len(labels) * len(settings.noises), even=False)
    for number, regularisation in enumerate(settings.noises):
        baselines = baselines.regularised(regularisation)
        methods = ("trak", "relatif", "graddot", "repsim") if number == 0 else ("trak", "relatif")
        for query in range(len(labels)):
            label = int(labels[query])
            pool = torch.nonzero(frozen.train.labels == label).squeeze(1)
            measured = _measured(frozen, label, budget)
            for method in methods:
                key = f"{seed}/{query}/{method}" + (f"/{regularisation:g}" if method in TUNED else "")
                journal.once(
                    key,
                    lambda: measured(ranked(baselines.scores(query, (method,))[method], pool, budget)),  # noqa: B023
                )
            progress.advance(1)


def ask_ekfac(settings: Settings, frozen: Frozen, scores: torch.Tensor, seed: int, journal: Journal) -> None:
    """Fill the journal with EK-FAC: ``seed/query/ekfac``."""
    for query, label in enumerate(frozen.queries.labels.tolist()):
        pool = torch.nonzero(frozen.train.labels == label).squeeze(1)
        ranking = ranked(scores[query], pool, settings.per_class)
        journal.once(f"{seed}/{query}/ekfac", lambda: _measured(frozen, label, settings.per_class)(ranking))  # noqa: B023


def _measured(frozen: Frozen, label: int, k: int) -> Callable[[list[int]], list[float]]:
    # Recall and reciprocal rank of a ranking of the rows of one label.
    is_true = (frozen.train.labels == label) & (frozen.metadata["poisoned"] == 1)
    truth = set(torch.nonzero(is_true).squeeze(1).tolist())
    return lambda ranking: [recall_at(ranking, truth, k), reciprocal_rank(ranking, truth, k)]


def report(settings: Settings, success: Mapping[int, float], journal: Journal) -> Report:
    """Choose each method's noise on the tuning queries, and average what is left over queries and seeds."""
    tuning = range(settings.tuning_queries)
    reported = range(settings.tuning_queries, settings.tuning_queries + settings.queries)

    def mean_recall(method: str, noise: float) -> float:
        return mean_and_error(journal[f"{s}/{q}/{method}/{noise:g}"][0] for s in settings.seeds for q in tuning)[0]

    chosen = {method: max(settings.noises, key=lambda noise: mean_recall(method, noise)) for method in TUNED}
    table: list[dict[str, Any]] = []
    for method, noise in chosen.items():
        keys = [f"{method}/{noise:g}"]
        table.append({"method": method, "relative_noise": noise, **_measures(settings, reported, keys[0], journal)})
    untuned = [*UNTUNED, "ekfac"] if f"{settings.seeds[0]}/0/ekfac" in journal else [*UNTUNED]
    table += [{"method": key, "relative_noise": None, **_measures(settings, reported, key, journal)} for key in untuned]
    over_noise = [
        {"method": method, "relative_noise": noise, **_measures(settings, reported, f"{method}/{noise:g}", journal)}
        for method in chosen
        for noise in settings.noises
    ]
    facts = {
        "seeds": len(settings.seeds),
        "errors_over": f"{len(settings.seeds)} seeds" if len(settings.seeds) > 1 else f"{settings.queries} queries",
        "queries": settings.queries,
        "success": success,
        "train_rows": settings.train_rows,
        "network": settings.network,
        "recall_on_tuning_queries": {
            method: {f"{noise:g}": mean_recall(method, noise) for noise in settings.noises} for method in chosen
        },
        "over_noise": over_noise,
    }
    return Report(f"Backdoor: Recall@{settings.per_class} and MRR", table, facts, _draw(table, over_noise))


def _measures(settings: Settings, queries: range, key: str, journal: Journal) -> dict[str, float | None]:
    # Errors over seeds where there are several, else over queries.
    found = [[journal[f"{seed}/{query}/{key}"] for query in queries] for seed in settings.seeds]
    columns: dict[str, float | None] = {}
    for number, name in enumerate(("recall", "mrr")):
        by_seed = [[one[number] for one in of_seed] for of_seed in found]
        columns |= with_error(name, by_seed[0] if len(by_seed) == 1 else [mean_and_error(v)[0] for v in by_seed])
    return columns


def _draw(table: list[dict[str, Any]], over_noise: list[dict[str, Any]]) -> Any:
    def draw(path: Path) -> None:
        from experiments.plots import draw_lines

        with figure(path, 2, width=5.2) as (bars, lines):
            for place, row in enumerate(reversed(table)):
                style = style_of(row["method"])
                bars.barh(place, row["recall"], color=style.colour, xerr=row["recall_standard_error"] or 0.0)
            bars.set_yticks(range(len(table)), [style_of(row["method"]).title for row in reversed(table)], fontsize=8)
            bars.set_xlim(0, 1)
            bars.set_xlabel("recall")
            draw_lines(lines, over_noise, x="relative_noise", y="recall")
            lines.set_xscale("log")
            lines.set_ylim(0, 1.03)

    return draw
