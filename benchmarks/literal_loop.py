"""The paper's selection as a user of FAISS would write it, which every speed-up here is measured against.

K times: the residual in float64 by Eq. 15, one search of an IndexFlatIP with r and −r as two rows of a batch,
over-fetch as many as are picked already and one more, merge the lists by absolute score, drop what is picked. It shares
no code with the project. Its scores are float32, so where two rows are closer than rounding it may name the other one;
``compare_picks`` finds out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sketchstore.view import View

Array = NDArray[np.float64]
BLOCK_ROWS = 4096
#: Relative to ‖φ‖‖r‖; float64 products of 4,096 terms differ by about 1e-13 between summation orders.
FLOAT64_ROUNDING = 1e-12


def flat_index(view: View) -> Any:
    """Add every row of a view, in measurement units, to an IndexFlatIP: one float32 copy in memory."""
    index = faiss.IndexFlatIP(view.sketch_dim)
    for start in range(0, view.num_rows, BLOCK_ROWS):
        index.add(view.sketches(slice(start, start + BLOCK_ROWS), torch.float32).numpy())
    return index


def rows_of(index: Any) -> Tensor:
    """Return the rows an IndexFlatIP holds, float32 [n, d], without a copy; they live as long as the index."""
    values = faiss.rev_swig_ptr(index.get_xb(), index.ntotal * index.d)
    return torch.from_numpy(values.reshape(index.ntotal, index.d))


def residual(query: Array, acquired: Array, noise_variance: float) -> Array:
    """Eq. 15 by a dense solve: the query less what the acquired rows [t, d] explain of it."""
    gram = acquired @ acquired.T + noise_variance * np.eye(len(acquired))
    explained: Array = acquired.T @ np.linalg.solve(gram, acquired @ query)
    return query - explained


def literal_loops(
    index: Any,
    queries: Sequence[Array],
    noise_variance: float,
    budget: int,
    picked: Sequence[Sequence[int]] | None = None,
) -> list[list[int]]:
    """Select for several queries, every step with one search of 2 × queries rows.

    Args:
        index: An IndexFlatIP over the candidates.
        queries: φ_*, float64 [d] each; one of them is the loop of a single request.
        noise_variance: σ².
        budget: K, at most the number of rows.
        picked: Picks to go on from, equally many for every query.

    Returns:
        K rows for each query, in order.
    """
    rows = rows_of(index).numpy()
    picks = [list(begun) for begun in picked] if picked is not None else [[] for _ in queries]
    for step in range(len(picks[0]), budget):
        residuals = [
            residual(query, rows[taken].astype(np.float64), noise_variance)
            for query, taken in zip(queries, picks, strict=True)
        ]
        batch = np.stack([*residuals, *(-each for each in residuals)]).astype(np.float32)
        scores, found = index.search(batch, min(step + 1, index.ntotal))
        for request, taken in enumerate(picks):
            opposite = request + len(queries)
            merged_scores = np.concatenate([scores[request], scores[opposite]])
            merged_rows = np.concatenate([found[request], found[opposite]])
            merged_scores[np.isin(merged_rows, taken)] = -np.inf
            taken.append(int(merged_rows[merged_scores.argmax()]))
    return picks


@dataclass(frozen=True)
class Comparison:
    """Whether a selection is the literal loop's.

    Attributes:
        same: Every pick is the loop's, or ties with it within float32 rounding and wins in float64.
        rounding_ties: Steps of the latter kind.
    """

    same: bool
    rounding_ties: int


def compare_picks(
    index: Any, query: Array, noise_variance: float, ours: Sequence[int], literal: Sequence[int]
) -> Comparison:
    """Compare a selection with the literal loop's; float64 scores decide where float32 cannot.

    From a rounding tie on, the loop is run again from our pick, so that later picks are compared too.

    Args:
        index: The IndexFlatIP that the loop searched.
        query: φ_*, float64 [d].
        noise_variance: σ².
        ours: The selection.
        literal: The loop's.

    Returns:
        The verdict.
    """
    rows = rows_of(index).numpy()
    ours, theirs, ties = list(ours), list(literal), 0
    while ours != theirs:
        if len(ours) != len(theirs):
            return Comparison(False, ties)
        step = next(place for place, (mine, other) in enumerate(zip(ours, theirs, strict=True)) if mine != other)
        left = residual(query, rows[ours[:step]].astype(np.float64), noise_variance)
        contenders = rows[[ours[step], theirs[step]]].astype(np.float64)
        mine, other = np.abs(contenders @ left)
        scale = float(np.linalg.norm(contenders, axis=1).max() * np.linalg.norm(left))
        float32_rounding = 2 * len(left) * np.finfo(np.float32).eps
        if mine < other - FLOAT64_ROUNDING * scale or mine > other + float32_rounding * scale:
            return Comparison(False, ties)
        ties += 1
        theirs = literal_loops(index, [query], noise_variance, len(ours), [ours[: step + 1]])[0]
    return Comparison(True, ties)
