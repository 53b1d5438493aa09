"""Small indexes, rows read back from them, and oracles restricted to a pool: what the attributor's tests share."""

import math
from pathlib import Path
from typing import Any

from torch import Tensor

from indexer.attributor import Attributor, QuerySketch
from indexer.attributor.spectra import compute_spectrum
from sketchstore.derived import StoredSpectrum
from sketchstore.reader import Index
from tests import oracles
from tests.index_factory import make_index

METHODS = ("infogain_approx", "infogain", "infoloss")
GREEDY = {"infogain_approx": oracles.greedy_approx, "infogain": oracles.greedy_infogain}
RELATIVE_NOISES = (0.01, 1.0, 100.0)


def small_index(path: Path, *, spectra: bool = True, faiss: str | None = "Flat", **options: Any) -> Index:
    """An own-label float16 index of 3 × 40 rows; d = 48 keeps the kernel form, d = 12 needs the gram form."""
    settings: dict[str, Any] = {"num_rows": 120, "dim": 48, "dtype": "float16", "view": "own"} | options
    index = make_index(path, faiss=faiss, **settings)
    if spectra:
        for name, view in index.views.items():
            for label in view.partitions:
                found = compute_spectrum(view, view.partition_rows(label))
                stored = StoredSpectrum(found.form, found.gram, found.eigenvalues, found.eigenvectors)
                index.derived.write_spectrum(name, label, stored)
    return index


def attributor(path: Path, *, engine: str = "faiss", **options: Any) -> Attributor:
    return Attributor(small_index(path, **options), engine=engine)


def comparable(index: Index, query: QuerySketch) -> tuple[Tensor, Tensor]:
    """Rows comparable with a query, and their sketches, float64."""
    view = index.view(query.view)
    rows = view.partition_rows(query.label if view.comparable == "label" else None)
    return rows, view.sketches(rows)


def greedy(method: str, query: Tensor, everything: Tensor, pool: list[int], noise: float, budget: int) -> list[int]:
    """The oracle's picks, as positions in ``everything``, chosen from ``pool``."""
    if method != "infoloss":
        return [pool[place] for place in GREEDY[method](query, everything[pool], noise, budget)]
    picks: list[int] = []
    for _ in range(budget):
        losses = {place: oracles.info_loss(query, everything, [*picks, place], noise) for place in pool}
        picks.append(max((p for p in pool if p not in picks), key=lambda place: (losses[place], -place)))
    return picks


def close(value: float | None, expected: float, tolerance: float = 1e-8) -> bool:
    return value is not None and math.isclose(value, expected, rel_tol=tolerance, abs_tol=1e-15)
