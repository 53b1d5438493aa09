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

import torch

from experiments.backdoor_report import TUNED, chosen_noises, key_of, report
from experiments.datasets import read_images, shuffled
from experiments.ekfac import ekfac_scores
from experiments.ekfac import is_available as ekfac_is_available
from experiments.frozen import Frozen, Images, load_frozen, save_frozen
from experiments.indexing import Sketched, frozen_index
from experiments.information import METHODS as INFORMATION
from experiments.information import random_rows, select_rows
from experiments.journal import Journal
from experiments.margin_baselines import METHODS as BASELINES
from experiments.margin_baselines import MarginBaselines, ranked
from experiments.networks import initial_network, is_flat
from experiments.poisoning import Triggers, poisoned, relabelled
from experiments.report import Report
from experiments.retrieval import recall_at, reciprocal_rank
from indexer.attributor import Attributor
from indexer.progress import Progress
from indexer.training import TrainingSettings, train_classifier

Ranker = Callable[[int, int, float | None], list[int]]
"""Ranks training rows: (stored query, its label, relative noise or λ) → the first rows, most influential first."""

TITLE = "backdoor: poisoned training images found (Table 1)"


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
        queries: Queries reported, of those stored.
        tuning_queries: Queries for the noise, of those stored.
        stored_queries: Queries stored, the same number of each class where the network has as many.
        stored_tuning: The same of the test set's first half.
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
    stored_queries: int
    stored_tuning: int
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
    tuning_queries=5,
    stored_queries=100,
    stored_tuning=20,
    noises=(0.01, 1.0, 100.0, 1000.0, 10000.0),
    dim=2048,
    seeds=(0, 1, 2),
)
SMALL = replace(PAPER, train_rows=10_000, queries=20, noises=(1.0, 100.0, 10000.0), dim=1024, seeds=(0,))
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
    stored_queries=5,
    stored_tuning=2,
    noises=(1.0, 10.0),
    dim=256,
)
SIZES = {"smoke": SMOKE, "small": SMALL, "paper": PAPER}


def run(settings: Settings, data_dir: Path | None, out: Path, progress: Progress) -> Report:
    """Poison, train and index once for every seed; ask the tuning queries, choose the noises, ask the others."""
    kept = replace(settings, seeds=(), queries=0, tuning_queries=0, noises=())
    journal = Journal(out / "rankings.jsonl", {"settings": str(kept)})
    networks = {seed: network(settings, data_dir, out / f"seed-{seed}", seed, progress) for seed in settings.seeds}
    rankers = {
        seed: rankers_of(settings, frozen, out / f"seed-{seed}", seed, progress) for seed, frozen in networks.items()
    }
    tuning = range(settings.tuning_queries)
    reported = range(settings.stored_tuning, settings.stored_tuning + settings.queries)
    for seed, frozen in networks.items():
        progress.phase(f"tuning queries, seed {seed}", len(tuning) * len(settings.noises), even=False)
        for query in tuning:
            for noise in settings.noises:
                for method in TUNED:
                    ask(settings, frozen, rankers[seed], journal, seed, query, method, noise)
                progress.advance(1)
    chosen = chosen_noises(settings, tuning, journal)
    progress.note(f"noise, and λ, by recall on the tuning queries: {chosen}")
    for seed, frozen in networks.items():
        progress.phase(f"queries, seed {seed}", len(reported), even=False)
        for query in reported:
            for method in rankers[seed]:
                ask(settings, frozen, rankers[seed], journal, seed, query, method, chosen.get(method))
            progress.advance(1)
    methods = list(rankers[settings.seeds[0]])
    success = {seed: float(frozen.metadata["success_percent"][0]) / 100 for seed, frozen in networks.items()}
    return report(settings, methods, tuning, reported, chosen, success, journal)


def network(settings: Settings, data_dir: Path | None, folder: Path, seed: int, progress: Progress) -> Frozen:
    """Return the network of a seed, trained if it is not there."""
    file = folder / "network.safetensors"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        progress.phase(f"training on poisoned images, seed {seed}", 0)
        save_frozen(trained(settings, data_dir, seed, progress), file)
    return load_frozen(file)


def rankers_of(settings: Settings, frozen: Frozen, folder: Path, seed: int, progress: Progress) -> dict[str, Ranker]:
    """Return every method's ranking of the rows of a query's class; builds the indexes that are not there."""
    file, labels, k = folder / "network.safetensors", frozen.train.labels, settings.per_class
    how = Sketched("class_logit", True, settings.dim, seed=seed, dtype="float16")
    attributor = Attributor(frozen_index(file, folder / "class-logit", how, progress), engine="brute_force")
    plain = replace(how, measurement="margin", ntk=False)
    baselines = MarginBaselines(frozen, frozen_index(file, folder / "margin", plain, progress), 1.0)

    def information(rule: str) -> Ranker:
        return lambda query, label, noise: select_rows(attributor, query, label, rule, k, noise)

    def scored(method: str) -> Ranker:
        def rank(query: int, label: int, regularisation: float | None) -> list[int]:
            of_noise = baselines if regularisation is None else baselines.regularised(regularisation)
            return ranked(of_noise.scores(query, (method,))[method], pool_of(label), k)

        return rank

    def pool_of(label: int) -> torch.Tensor:
        return torch.nonzero(labels == label).squeeze(1)

    found = {
        **{method: information(method) for method in INFORMATION},
        **{method: scored(method) for method in BASELINES},
        "random": lambda query, label, _: random_rows(pool_of(label), k, seed=query),
    }
    if ekfac_is_available():
        progress.phase("EK-FAC influence", 0)
        scores = ekfac_scores(frozen, folder / "ekfac")
        found["ekfac"] = lambda query, label, _: ranked(scores[query], pool_of(label), k)
    else:
        progress.note("EK-FAC is left out: kronfluence is not installed")
    return found


def ask(
    settings: Settings,
    frozen: Frozen,
    rankers: Mapping[str, Ranker],
    journal: Journal,
    seed: int,
    query: int,
    method: str,
    noise: float | None,
) -> None:
    """Keep recall and reciprocal rank of one ranking as ``seed/query/method/noise``."""
    label, k = int(frozen.queries.labels[query]), settings.per_class

    def measured() -> list[float]:
        is_true = (frozen.train.labels == label) & (frozen.metadata["poisoned"] == 1)
        truth = set(torch.nonzero(is_true).squeeze(1).tolist())
        ranking = rankers[method](query, label, noise)
        return [recall_at(ranking, truth, k), reciprocal_rank(ranking, truth, k)]

    journal.once(key_of(seed, query, method, noise), measured)


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
        *_balanced(triggered, fooled, range(half), settings.stored_tuning, classes),
        *_balanced(triggered, fooled, range(half, len(test)), settings.stored_queries, classes),
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
