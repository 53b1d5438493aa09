"""The rows that a method must rank first, from an index's stored sketches by the dense oracles."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from experiments.indexing import Sketched, frozen_index
from indexer.progress import Progress
from sketchstore.reader import Index
from tests import oracles

GREEDY = {"infogain_approx": oracles.greedy_approx, "infogain": oracles.greedy_infogain}


def picks(
    index: Index,
    query_row: int,
    label: int,
    method: str,
    relative_noise: float,
    budget: int,
    *,
    own_class: bool = False,
    proponents: bool = False,
) -> list[int]:
    """Greedy picks of rows of one label; D is the whole training set, or with ``own_class`` the rows of the label.

    With ``proponents`` only rows whose covariance with the query given D is positive may be picked.
    """
    (name,) = [name for name in index.views if name in (str(label), "own", "margin")]
    view = index.view(name)
    assert index.queries is not None
    query = index.queries.sketch(query_row, name, label).double()
    pool = torch.nonzero(index.labels == label).squeeze(1).tolist()
    # On a view of own-label logits only the rows of the label compare, so they are D and the unit of the noise.
    alone = own_class or name == "own"
    given = pool if alone else list(range(index.num_rows))
    everything = view.sketches(torch.tensor(given), dtype=torch.float64)
    noise = relative_noise * view.mean_squared_norm(label if name == "own" else None)
    if proponents:
        covariances = oracles.covariance(query.unsqueeze(0), everything[pool], everything, noise)[0]
        pool = [row for row, covariance in zip(pool, covariances, strict=True) if covariance > 0]
    places = [given.index(row) for row in pool]
    if method != "infoloss":
        return [pool[place] for place in GREEDY[method](query, everything[places], noise, budget)]
    return [given[place] for place in _infoloss(query, everything, places, noise, budget)]


def _infoloss(query: Tensor, everything: Tensor, places: list[int], noise: float, budget: int) -> list[int]:
    # ``oracles.greedy_infoloss`` with candidates that are only a part of D.
    found: list[int] = []
    for _ in range(budget):
        kept = everything[[place for place in range(len(everything)) if place not in found]]
        covariances = oracles.covariance(query.unsqueeze(0), everything, kept, noise)[0]
        values = covariances**2 / (noise - oracles.variance(everything, kept, noise))
        found.append(max((place for place in places if place not in found), key=lambda place: float(values[place])))
    return found


def largest(scores: Tensor, labels: Tensor, label: int, budget: int) -> list[int]:
    """Rows of one label by descending score."""
    pool = torch.nonzero(labels == label).squeeze(1).tolist()
    return sorted(pool, key=lambda row: (-float(scores[row]), row))[:budget]


def shared_indexes(folder: Path) -> Callable[..., Index]:
    """A stand-in for ``frozen_index`` that builds one index for each way to sketch, wherever it is asked to go."""

    def build(file: Path, _: Path, how: Sketched, progress: Progress, device: str = "cpu") -> Index:
        place = folder / f"{how.measurement}-{how.ntk}-{how.dtype}-{how.dim}-{how.seed}"
        return frozen_index(file, place, how, progress, device)

    return build
