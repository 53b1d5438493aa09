"""Brittleness (Figure 3): is a correct prediction lost when the network is retrained without the selected examples?

Paper: the three information methods flip more predictions than every baseline at every size.

Fashion-MNIST, 25 % of the training set, the MLP of method.md section 8; candidates are the rows of the query's class,
queries correctly classified test images. D is the whole training set, sketched at the query's class logit;
``infoloss_own_label`` is InfoLoss with D the candidates only, which is what an index of own-label logits can compute.
Retraining starts from the same weights and keeps the order of the rows. Flips are taken to be monotone in the number
of rows removed: the largest size comes first, a query that survives it is not retrained at smaller ones, and one that
flips is bisected. Going up the sizes until a query's first flip would also count a flip that a larger set undoes.

``--config cifar10-resnet9`` is the paper's other network, for a GPU in its paper size; its small size is two classes,
600 images, four epochs and two queries.

``--config rte`` is a reduction of the paper's third in every size: pairs of sentences through a frozen MiniLM instead
of a fine-tuned BERT, and a head of one hidden layer that is trained, attributed and retrained (``text_pairs.py``). Its
information methods have NTK scales, as the other configurations', where the paper has none for BERT.

The work is ordered query by query, so that what is finished at any moment is a balanced table.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from experiments.brittleness_report import TunedAtSizes, next_size, report
from experiments.chosen_methods import EACH_SIZE, check_methods, named_noise
from experiments.ekfac import PACKAGE_DAMPING, ekfac_scores
from experiments.ekfac import is_available as ekfac_is_available
from experiments.indexing import Sketched, frozen_index
from experiments.information import METHODS as INFORMATION
from experiments.information import random_rows, select_rows
from experiments.journal import Journal
from experiments.margin_baselines import METHODS as BASELINES
from experiments.margin_baselines import NEXT_TO_NOTHING, MarginBaselines, ranked
from experiments.networks import RESNET9_TRAINING
from experiments.noise_by_removal import TuningSettings, tune, tune_at_sizes
from experiments.report import Report
from experiments.retrained_mlp import PAPER_MLP, MlpSettings, RetrainedMlp
from experiments.retrained_network import NetworkSettings, retrained
from experiments.text_pairs import PairSettings
from indexer.attributor import Attributor
from indexer.progress import Progress
from indexer.training import TrainingSettings

TITLE = "brittleness: predictions lost when the selected examples are removed (Figure 3)"
OWN_LABEL = "infoloss_own_label"
METHODS = (*INFORMATION, OWN_LABEL, "random", *BASELINES, "ekfac")
#: Information about what is flipped, the margin, without NTK scales, as the baselines have it.
OF_MARGIN = {"infogain_margin": "infogain", "infoloss_margin": "infoloss"}
#: InfoLoss that leaves out candidates which speak against the prediction: removing those holds it up.
PROPONENTS = "infoloss_proponents"
#: Baselines as their packages set λ and damping where nothing is said: next to nothing.
UNDAMPED = {"trak_undamped": "trak", "relatif_undamped": "relatif", "ekfac_undamped": "ekfac"}
#: Damping of EK-FAC's methods; None is the package's heuristic.
EKFAC_DAMPING = {"ekfac": None, "ekfac_undamped": PACKAGE_DAMPING}
#: Explanations of the order of the methods, asked with ``--methods`` only.
EXPLANATIONS = (*OF_MARGIN, PROPONENTS, *UNDAMPED)
#: Methods that are also asked as METHOD@NOISE, at a relative noise that nothing is tuned for, and as METHOD@each-size:
#: what METHOD@NOISE gives at each size with the noise that is tuned by removing as many rows.
WITH_NOISE = (*INFORMATION, OWN_LABEL, *OF_MARGIN, PROPONENTS)
#: Methods whose noise is tuned, and whose noise it is: approximate InfoGain has InfoGain's, and so on.
TUNED_FOR = {
    "infogain": ("infogain", "infogain_approx", "infogain_margin"),
    "infoloss": ("infoloss", OWN_LABEL, "infoloss_margin", PROPONENTS),
}


@dataclass(frozen=True)
class Settings:
    """How much of the experiment is done.

    Attributes:
        mlp: The network.
        queries: Queries that are done, of those stored.
        stored_queries: Queries stored in the index.
        tuning_queries: Stored queries of the other half of the test set, for the noise.
        tuning: What is tried there.
        sizes: How many examples are removed, ascending.
        dim: d of the sketches.
        regularisation: λ of TRAK and RelatIF in units of the mean squared norm, from the experiment ``lds``.
        methods: Those asked; EK-FAC is left out where kronfluence is not installed.
    """

    mlp: MlpSettings
    queries: int
    stored_queries: int
    tuning_queries: int
    tuning: TuningSettings
    sizes: tuple[int, ...]
    dim: int
    regularisation: float = 10.0
    methods: tuple[str, ...] = METHODS


PAPER = Settings(
    mlp=PAPER_MLP,
    queries=100,
    stored_queries=100,
    tuning_queries=25,
    tuning=TuningSettings(queries=25, noises=(0.1, 1.0, 10.0, 100.0, 1000.0)),
    sizes=(50, 100, 200, 400),
    dim=4096,
)
SMALL = replace(
    PAPER,
    mlp=replace(PAPER_MLP, train_fraction=0.1, training=replace(PAPER_MLP.training, epochs=10)),
    queries=4,
    stored_queries=4,
    tuning_queries=2,
    tuning=TuningSettings(queries=2, noises=(1.0, 10.0)),
    sizes=(30, 120),
    dim=1024,
)
SMOKE = Settings(
    mlp=MlpSettings(
        "digits", 1.0, (64, 32, 10), TrainingSettings(epochs=3, batch_size=32, peak_rate=0.03, weight_decay=1e-3)
    ),
    queries=2,
    stored_queries=2,
    tuning_queries=1,
    tuning=TuningSettings(queries=1, noises=(1.0, 10.0), num_removed=20),
    sizes=(5, 20),
    dim=256,
)
SIZES = {"smoke": SMOKE, "small": SMALL, "paper": PAPER}

CIFAR10_PAPER = replace(
    PAPER,
    mlp=NetworkSettings(
        data="cifar10",
        train_fraction=1.0,
        widths=(),
        training=RESNET9_TRAINING,
    ),
    tuning=replace(PAPER.tuning, num_removed=500),
    sizes=(125, 250, 500, 1000),
)
_SMALL_NETWORK = NetworkSettings(
    data="cifar10",
    train_fraction=1.0,
    widths=(),
    training=TrainingSettings(epochs=4, batch_size=32, peak_rate=0.05, weight_decay=5e-4, peak_epoch=1.0),
    classes=(0, 1),
    train_rows=600,
    test_rows=400,
)
CIFAR10_SMALL = replace(
    CIFAR10_PAPER,
    mlp=_SMALL_NETWORK,
    queries=2,
    stored_queries=2,
    tuning_queries=1,
    tuning=TuningSettings(queries=1, noises=(1.0, 100.0), num_removed=60),
    sizes=(60, 150),
    dim=1024,
    methods=tuple(method for method in METHODS if method != "ekfac"),
)
CIFAR10_SMOKE = replace(
    CIFAR10_SMALL,
    mlp=replace(_SMALL_NETWORK, training=replace(_SMALL_NETWORK.training, epochs=2), train_rows=40, test_rows=40),
    queries=1,
    stored_queries=1,
    tuning=TuningSettings(queries=1, noises=(1.0,), num_removed=5),
    sizes=(5, 10),
    dim=64,
)
RTE_PAPER = replace(
    PAPER,
    mlp=PairSettings(
        data="rte",
        train_fraction=1.0,
        widths=(1536, 64, 2),
        # python -m experiments.pair_head
        training=TrainingSettings(epochs=10, batch_size=32, peak_rate=0.003, weight_decay=0.1),
    ),
    queries=50,
    stored_queries=50,
    tuning=replace(PAPER.tuning, num_removed=50),
    sizes=(25, 50, 100, 200),
)
RTE_SMALL = replace(
    RTE_PAPER,
    queries=10,
    stored_queries=10,
    tuning_queries=3,
    tuning=replace(RTE_PAPER.tuning, queries=3, noises=(1.0, 10.0, 100.0)),
    dim=1024,
)
RTE_SMOKE = replace(
    RTE_SMALL,
    mlp=replace(RTE_PAPER.mlp, widths=(1536, 8, 2), train_rows=60, test_rows=30),
    queries=1,
    stored_queries=1,
    tuning_queries=1,
    tuning=TuningSettings(queries=1, noises=(1.0,), num_removed=5),
    sizes=(5, 15),
    dim=64,
    methods=tuple(method for method in METHODS if method != "ekfac"),
)
CONFIGURATIONS = {
    "fashion-mnist": SIZES,
    "cifar10-resnet9": {
        "smoke": CIFAR10_SMOKE,
        "small": CIFAR10_SMALL,
        "paper": CIFAR10_PAPER,
    },
    "rte": {"smoke": RTE_SMOKE, "small": RTE_SMALL, "paper": RTE_PAPER},
}

Ranker = Callable[[int, int, int], list[int]]
"""Ranks training rows: (stored query, its label, how many) → rows, most influential first."""


def check(settings: Settings) -> None:
    """Refuse methods that there are not (``chosen_methods.check_methods``)."""
    check_methods(settings.methods, (*METHODS, *EXPLANATIONS), WITH_NOISE)


def run(settings: Settings, data_dir: Path | None, out: Path, progress: Progress) -> Report:
    """Train, index, tune, remove and retrain; continue where an earlier run stopped."""
    check(settings)
    mlp = retrained(
        settings.mlp,
        data_dir,
        out / "network.safetensors",
        num_tuning=settings.tuning_queries,
        num_queries=settings.stored_queries,
        progress=progress,
    )
    device = settings.mlp.training.device
    index = frozen_index(mlp.file, out / "class-logit", Sketched("class_logit", True, settings.dim), progress, device)
    attributor = Attributor(index, engine="brute_force")
    journal = Journal(out / "trainings.jsonl", {"mlp": str(settings.mlp), "dim": settings.dim})
    tuning = replace(settings.tuning, methods=tuned_methods(settings.methods))
    noises = tune(mlp, attributor, tuning, journal, progress)
    if noises:
        progress.note(f"relative noise by margin drop on the tuning queries: {noises}")
    at_sizes = tuned_at_sizes(settings, mlp, attributor, noises, journal, progress)
    composed = {} if at_sizes is None else at_sizes.methods
    margin = frozen_index(mlp.file, out / "margin", Sketched("margin", False, settings.dim), progress, device)
    of_margin = Attributor(margin, engine="brute_force")
    parts = [part for by_size in composed.values() for part in by_size.values()]
    asked = list(dict.fromkeys(method for method in (*settings.methods, *parts) if method not in composed))
    at_noise = {method: noise for method in asked if isinstance(noise := named_noise(method)[1], float)}
    every = {
        **information_rankers(attributor, of_margin, noises),
        **{
            method: ranker_at_noise(attributor, of_margin, named_noise(method)[0], at_noise[method])
            for method in at_noise
        },
        **baseline_rankers(mlp, MarginBaselines(mlp.frozen, margin, settings.regularisation)),
        **ekfac_rankers(mlp, out, [name for name in EKFAC_DAMPING if name in settings.methods], progress),
        "random": random_ranker(mlp),
    }
    rankers = {method: every[method] for method in asked if method in every}
    remove_and_retrain(settings, mlp, rankers, journal, progress)
    return report(
        settings.sizes, tuning, mlp, list(rankers), {**noises, **at_noise}, journal, at_sizes, settings.queries
    )


def tuned_methods(methods: Sequence[str]) -> tuple[str, ...]:
    """Return the methods whose noise must be tuned before some methods are asked.

    METHOD@NOISE has its own, and METHOD@each-size is tuned by :func:`tuned_at_sizes`.

    Args:
        methods: Those asked.
    """
    return tuple(method for method, users in TUNED_FOR.items() if any(user in methods for user in users))


def tuned_at_sizes(
    settings: Settings,
    mlp: RetrainedMlp,
    attributor: Attributor,
    noises: Mapping[str, float],
    journal: Journal,
    progress: Progress,
) -> TunedAtSizes | None:
    """Tune the noise of each METHOD@each-size: METHOD@NOISE stands for it, or METHOD where that has the noise already.

    Args:
        settings: Methods, sizes and what is tried.
        mlp: The network.
        attributor: Over the index of the class logits, which noise is tuned on.
        noises: Noise of the methods that are asked without one.
        journal: Where finished trainings are kept.
        progress: Told how many trainings are done.

    Returns:
        What stands for them; None where none is asked.
    """
    rules = {method: rule for method in settings.methods for rule, noise in [named_noise(method)] if noise == EACH_SIZE}
    if not rules:
        return None
    tuned_by = {rule: method for method, users in TUNED_FOR.items() for rule in users}
    tuning = replace(settings.tuning, methods=tuple(dict.fromkeys(tuned_by[rule] for rule in rules.values())))
    found = tune_at_sizes(mlp, attributor, tuning, settings.sizes, journal, progress)
    progress.note(f"relative noise of each size by margin drop on the tuning queries: {found}")
    stands_for = {
        method: {
            size: rule if noise == noises.get(tuned_by[rule]) else f"{rule}@{noise:g}"
            for size, noise in found[tuned_by[rule]].items()
        }
        for method, rule in rules.items()
    }
    return TunedAtSizes(tuning, stands_for)


def information_rankers(of_logit: Attributor, of_margin: Attributor, noises: Mapping[str, float]) -> dict[str, Ranker]:
    """Return rankings of the rows of a query's class by the methods that have a noise, their own or another's.

    Args:
        of_logit: Over the index of the class logits.
        of_margin: Over the index of the margins.
        noises: Noise of each method that is tuned.
    """
    lent = {rule: noises[method] for method, rules in TUNED_FOR.items() if method in noises for rule in rules}
    return {rule: ranker_at_noise(of_logit, of_margin, rule, noise) for rule, noise in {**lent, **noises}.items()}


def random_ranker(mlp: RetrainedMlp) -> Ranker:
    """Return a random ranking of the rows of a query's class."""
    labels = mlp.frozen.train.labels
    return lambda query, label, budget: random_rows(torch.nonzero(labels == label).squeeze(1), budget, seed=query)


def information_ranker(
    attributor: Attributor,
    method: str,
    relative_noise: float,
    condition: str = "comparable",
    proponents: bool = False,
) -> Ranker:
    """Return the ranking of the rows of a query's class by an information method (``information.select_rows``)."""
    return lambda query, label, budget: select_rows(
        attributor, query, label, method, budget, relative_noise, condition=condition, proponents=proponents
    )


def ranker_at_noise(of_logit: Attributor, of_margin: Attributor, rule: str, noise: float) -> Ranker:
    """Return the ranking of one of ``WITH_NOISE`` at a relative noise.

    Args:
        of_logit: Over the index of the class logits.
        of_margin: Over the index of the margins.
        rule: The method.
        noise: σ² in units of the mean squared norm.
    """
    if rule in OF_MARGIN:
        return information_ranker(of_margin, OF_MARGIN[rule], noise)
    if rule == OWN_LABEL:
        return information_ranker(of_logit, "infoloss", noise, condition="pool")
    if rule == PROPONENTS:
        return information_ranker(of_logit, "infoloss", noise, proponents=True)
    return information_ranker(of_logit, rule, noise)


def baseline_rankers(mlp: RetrainedMlp, baselines: MarginBaselines) -> dict[str, Ranker]:
    """Return the baselines' rankings of the rows of a query's class."""
    labels = mlp.frozen.train.labels

    def by_score(method: str, regularisation: float | None = None) -> Ranker:
        def rank(query: int, label: int, budget: int) -> list[int]:
            scoring = baselines if regularisation is None else baselines.regularised(regularisation)
            scores = scoring.scores(query, (method,))[method]
            return ranked(scores, torch.nonzero(labels == label).squeeze(1), budget)

        return rank

    return {
        **{method: by_score(method) for method in BASELINES},
        **{name: by_score(method, NEXT_TO_NOTHING) for name, method in UNDAMPED.items() if method in BASELINES},
    }


def ekfac_rankers(mlp: RetrainedMlp, out: Path, methods: Sequence[str], progress: Progress) -> dict[str, Ranker]:
    """Return EK-FAC's rankings of the rows of a query's class; nothing where kronfluence is not installed.

    Args:
        mlp: The network.
        out: Where factors and scores are kept, in a folder for each method.
        methods: Those asked, of ``EKFAC_DAMPING``.
        progress: Told that one begins.
    """
    if methods and not ekfac_is_available():
        progress.note("EK-FAC is left out: kronfluence is not installed")
        return {}

    def ranker(method: str) -> Ranker:
        progress.phase("EK-FAC influence", 0)
        folder, device = out / method.replace("_", "-"), mlp.settings.training.device
        scores = ekfac_scores(mlp.frozen, folder, device=device, damping=EKFAC_DAMPING[method])
        labels = mlp.frozen.train.labels
        return lambda query, label, budget: ranked(scores[query], torch.nonzero(labels == label).squeeze(1), budget)

    return {method: ranker(method) for method in methods}


def remove_and_retrain(
    settings: Settings,
    mlp: RetrainedMlp,
    rankers: Mapping[str, Ranker],
    journal: Journal,
    progress: Progress,
) -> None:
    """Fill the journal query by query: ``rows/query/method``, and ``removed/query/method/size`` until all is known."""
    units = [(row, method) for row in mlp.query_rows[: settings.queries] for method in rankers]
    left = [(row, method) for row, method in units if next_size(journal, row, method, settings.sizes) is not None]
    progress.phase("removing and retraining", len(units), done=len(units) - len(left))
    for row, method in left:
        if progress.stop_requested():
            progress.note("stopped: reported are the queries that all methods have finished; the same arguments go on")
            return
        label = int(mlp.frozen.queries.labels[row])
        rows = journal.once(
            f"rows/{row}/{method}",
            lambda: rankers[method](row, label, settings.sizes[-1]),  # noqa: B023
        )
        while (size := next_size(journal, row, method, settings.sizes)) is not None:
            journal.once(
                f"removed/{row}/{method}/{size}",
                lambda: _outcome(mlp, row, rows[:size]),  # noqa: B023
            )
        progress.advance(1)


def _outcome(mlp: RetrainedMlp, row: int, removed: list[int]) -> dict[str, float | bool]:
    weights = mlp.retrain(removed)
    return {
        "flipped": bool(mlp.misclassified(weights, [row])[0]),
        "margin": float(mlp.query_margins(weights, [row])[0]),
    }
