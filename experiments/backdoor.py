"""Backdoor (Table 1): are the poisoned training images found that make a triggered test image look like the next class?

Paper: Recall@50 / MRR of InfoLoss 1.000 / 0.999, RepSim 0.985 / 1.000, InfoGain close; influence baselines far below.

Class-cyclic BadNets: 50 images of every class i get the class's trigger and the label i + 1. A query is a triggered
test image of class i that the network calls i + 1; what is explained is the logit of i + 1, candidates are the rows
labelled i + 1, and the truth is the 50 poisoned ones among them. D is the whole training set. The noise of each
information method, and λ of TRAK and RelatIF in the same unit, is the one with the highest recall on queries of the
test set's first half; the queries reported are of the second. Baselines are of the margin, without NTK scales.

Two things are varied beside the paper's setting: D (InfoLoss given the rows of the class only), and the NTK scales
(every information method without them, from an index of own-label logits, which in the pool are the class's).

``--config cifar10-resnet9`` is the paper's own: CIFAR-10 and ResNet-9. Its paper size wants a GPU; its small size is
what a CPU core does in an hour: three classes, 1,200 images of which a tenth are poisoned, a quarter of the
epochs, no augmentation, no EK-FAC.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from experiments.backdoor_methods import METHODS, TUNED, Ranker, Sizes, rankers_of
from experiments.backdoor_report import chosen_noises, key_of, report
from experiments.chosen_methods import check_methods
from experiments.datasets import of_classes, read_images, shuffled
from experiments.frozen import Frozen, Images, load_frozen, save_frozen
from experiments.journal import Journal
from experiments.networks import RESNET9_TRAINING, initial_network, is_flat
from experiments.poisoning import Triggers, poisoned, relabelled
from experiments.report import Report
from experiments.retrieval import recall_at, reciprocal_rank
from experiments.units import stop_if_asked, units_of
from indexer.progress import Progress
from indexer.training import TrainingSettings, train_classifier

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
        classes: Only images of these classes, numbered anew from 0; None for all.
        methods: Those asked; EK-FAC is left out where kronfluence is not installed.
        test_rows: Only the first test images, from which queries are chosen; None for all.
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
    classes: tuple[int, ...] | None = None
    test_rows: int | None = None
    methods: tuple[str, ...] = METHODS


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

CIFAR10_PAPER = replace(
    PAPER,
    data="cifar10",
    network="resnet9",
    training=RESNET9_TRAINING,
    dim=4096,
)
CIFAR10_SMALL = replace(
    CIFAR10_PAPER,
    training=TrainingSettings(epochs=6, batch_size=32, peak_rate=0.05, weight_decay=5e-4, peak_epoch=2.0),
    train_rows=1200,
    per_class=40,
    queries=20,
    stored_queries=20,
    stored_tuning=5,
    noises=(1.0, 100.0, 10000.0),
    dim=2048,
    seeds=(0,),
    classes=(0, 1, 2),
    test_rows=1000,
    methods=tuple(method for method in METHODS if method != "ekfac"),
)
CIFAR10_SMOKE = replace(
    CIFAR10_SMALL,
    training=replace(CIFAR10_SMALL.training, epochs=2, batch_size=16, peak_epoch=1.0),
    train_rows=60,
    per_class=10,
    queries=2,
    tuning_queries=1,
    stored_queries=2,
    stored_tuning=1,
    noises=(1.0,),
    dim=64,
    classes=(0, 1),
    test_rows=40,
)
CONFIGURATIONS = {
    "fashion-mnist": SIZES,
    "cifar10-resnet9": {"smoke": CIFAR10_SMOKE, "small": CIFAR10_SMALL, "paper": CIFAR10_PAPER},
}


def check(settings: Settings) -> None:
    """Refuse methods that there are not (``chosen_methods.check_methods``)."""
    check_methods(settings.methods, METHODS)


def run(settings: Settings, data_dir: Path | None, out: Path, progress: Progress) -> Report:
    """Poison, train and index once for every seed; ask the tuning queries, choose the noises, ask the others."""
    check(settings)
    kept = replace(settings, seeds=(), queries=0, tuning_queries=0, noises=(), methods=())
    journal = Journal(out / "rankings.jsonl", {"settings": str(kept)})
    networks = {seed: network(settings, data_dir, out / f"seed-{seed}", seed, progress) for seed in settings.seeds}
    rankers = {
        seed: rankers_of(
            settings.methods,
            frozen,
            out / f"seed-{seed}",
            Sizes(settings.dim, seed, settings.per_class),
            progress,
            settings.training.device,
        )
        for seed, frozen in networks.items()
    }
    asked = list(rankers[settings.seeds[0]])
    tuned = [method for method in TUNED if method in asked]
    tuning = range(settings.tuning_queries)
    reported = range(settings.stored_tuning, settings.stored_tuning + settings.queries)
    for seed, frozen in networks.items():
        units = [(seed, query, method, noise) for query in tuning for noise in settings.noises for method in tuned]
        for unit in units_of(progress, f"tuning queries, seed {seed}", units, lambda unit: key_of(*unit) in journal):
            ask(settings, frozen, rankers[seed], journal, *unit)
    chosen = chosen_noises(settings, tuned, tuning, journal)
    progress.note(f"noise, and λ, by recall on the tuning queries: {chosen}")
    for seed, frozen in networks.items():
        wanted = [(seed, query, method, chosen.get(method)) for query in reported for method in asked]
        for of_query in units_of(progress, f"queries, seed {seed}", wanted, lambda unit: key_of(*unit) in journal):
            ask(settings, frozen, rankers[seed], journal, *of_query)
    success = {seed: float(frozen.metadata["success_percent"][0]) / 100 for seed, frozen in networks.items()}
    return report(settings, asked, tuning, reported, chosen, success, journal)


def network(settings: Settings, data_dir: Path | None, folder: Path, seed: int, progress: Progress) -> Frozen:
    """Return the network of a seed, trained if it is not there."""
    file = folder / "network.safetensors"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        progress.phase(f"training on poisoned images, seed {seed}", 0)
        save_frozen(trained(settings, data_dir, seed, progress), file)
        stop_if_asked(progress)
    return load_frozen(file)


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
    read = read_images(settings.data, data_dir)
    train, test = read if settings.classes is None else (of_classes(images, settings.classes) for images in read)
    test = test.take(torch.arange(len(test))[: settings.test_rows])
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
