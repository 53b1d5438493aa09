"""200 small questions that try to make rules disagree: duplicates, exact ties, zero rows, filters, extreme noise.

25 index directories differ in size, dimension, storage type, view, shards, and in how many rows are equal, opposite,
parallel or zero; 8 questions of each differ in query, noise, budget and filter. A fifth of them are large enough for
heads, and are asked without spectra, so that every rule goes by codes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from indexer.attributor import CandidateFilter, Question
from indexer.attributor.errors import ZeroQueryError
from indexer.attributor.queries import resolve_query_row, resolve_train_row
from indexer.derive import derive
from sketchstore.reader import Index
from tests.index_factory import make_index

DIRECTORIES = 25
QUESTIONS = 8
CLASSES = 3
#: Dimensions from which there are heads (k = d / 16 ≥ 8).
_LARGE = 128


def is_large(seed: int) -> bool:
    """Whether a directory has heads: more rows of every label than dimensions, and enough of these."""
    return seed % 5 == 2


@dataclass(frozen=True)
class Instance:
    """A question with what an oracle needs to answer it.

    ``rows``: what may be selected, ascending, and their ``sketches``. ``conditioning``: the sketches of D, in which the
    candidates stand at ``places``.
    """

    question: Question
    rows: list[int]
    sketches: Tensor
    conditioning: Tensor
    places: list[int]
    noise_variance: float


def sketches(rng: np.random.Generator, num_rows: int, dim: int, *, whole_numbers: bool) -> np.ndarray:
    """Random rows, some of them then made equal, opposite, half of, or zero. Whole numbers tie without being equal."""
    if whole_numbers:
        values = rng.integers(-2, 3, (num_rows, dim)).astype(np.float32)
    else:
        values = rng.standard_normal((num_rows, dim)) * rng.lognormal(0.0, 0.5, (num_rows, 1))
        values = values.astype(np.float16).astype(np.float32)  # so that both storage types hold the same
    for factor in (1.0, 1.0, -1.0, 0.5, 0.0):
        count = int(rng.integers(0, max(2, num_rows // 6)))
        values[rng.integers(num_rows, size=count)] = factor * values[rng.integers(num_rows, size=count)]
    if not values.any():
        values[0, 0] = 1.0
    return values


def make_awkward_index(path: Path, seed: int) -> Index:
    """The directory of a seed, most with all that is derived by default, with or without spectra."""
    rng = np.random.default_rng([seed, 0])
    num_rows, dim = int(rng.integers(8, 90)), int(rng.integers(2, 40))
    if is_large(seed):
        dim += _LARGE
        num_rows += 4 * dim
    view = ("margin", "own", "custom", "class")[seed % 4]
    views = [str(label) for label in range(CLASSES)] if view == "class" else [view]
    index = make_index(
        path,
        view=view,
        sketches={name: sketches(rng, num_rows, dim, whole_numbers=seed % 3 == 0) for name in views},
        num_classes=CLASSES,
        num_queries=QUESTIONS,
        dtype=("float32", "float16")[seed % 2],
        seed=seed,
        faiss="Flat",
        shard_rows=(16, 32, 96)[seed % 3],
    )
    if seed % 5:  # the other fifth has its FAISS index alone
        derive(index, spectra=seed % 5 > 2)
    return index


def _filter(rng: np.random.Generator, comparable: list[int]) -> tuple[CandidateFilter, Callable[[int], bool]]:
    # Every other question has no filter. The factory's metadata: source (odd rows: web) and length (row modulo 7).
    chosen = set(rng.choice(comparable, size=(len(comparable) + 1) // 2, replace=False).tolist())
    ids = [f"train:{row}" for row in sorted(chosen)]
    kinds: list[tuple[CandidateFilter, Callable[[int], bool]]] = [
        (CandidateFilter(where={"source": "web"}), lambda row: row % 2 == 1),
        (CandidateFilter(where={"length": [1, 2, 3]}), lambda row: row % 7 in (1, 2, 3)),
        (CandidateFilter(ids=ids), lambda row: row in chosen),
        (CandidateFilter(exclude_ids=ids), lambda row: row not in chosen),
    ]
    kind = int(rng.integers(2 * len(kinds)))
    return kinds[kind] if kind < len(kinds) else (CandidateFilter(), lambda row: True)


def instances(index: Index, seed: int) -> list[Instance]:
    """The questions of a directory; drawn again where nothing may be selected or all comparable rows are zero."""
    rng = np.random.default_rng([seed, 1])
    made: list[Instance] = []
    while len(made) < QUESTIONS:
        try:
            if len(made) % 4 == 3:  # a training row, which may have duplicates among the candidates, or be one of them
                row = int(rng.integers(index.num_rows))
                query = resolve_train_row(index, row, include_self=len(made) == 3)
            else:
                query = resolve_query_row(index, int(rng.integers(QUESTIONS)))
        except ZeroQueryError:
            continue
        view = index.view(query.view)
        label = query.label if view.comparable == "label" else None
        comparable = view.partition_rows(label).tolist()
        wanted, passes = _filter(rng, comparable)
        rows = [row for row in comparable if passes(row) and row not in query.exclude_rows]
        unit = view.mean_squared_norm(label)
        if not (rows and unit > 0):
            continue
        leaving = [] if wanted.exclude_ids is None else [int(id.removeprefix("train:")) for id in wanted.exclude_ids]
        left = [row for row in comparable if row not in query.exclude_rows and row not in leaving]
        relative_noise = float(10 ** rng.uniform(-3, 3))
        question = Question(
            query,
            budget=int(rng.integers(1, 21)),
            relative_noise=relative_noise,
            filter=wanted,
            clip_budget=True,
            rescore=("infogain",),
        )
        made.append(
            Instance(
                question,
                rows,
                view.sketches(torch.tensor(rows)),
                view.sketches(torch.tensor(left)),
                [left.index(row) for row in rows],
                relative_noise * unit,
            )
        )
    return made
