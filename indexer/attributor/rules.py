"""Each method as an iterator of steps over rows: which function of ``attribution`` picks, from what it reads."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from attribution.acquired import acquire
from attribution.infogain import select_infogain
from attribution.infogain_approx import select_infogain_approx
from attribution.infoloss import select_infoloss
from attribution.steps import Step
from indexer.attributor.candidates import PoolRows
from indexer.attributor.coarse import CoarseViews
from indexer.attributor.compiled_bounds import KERNELS
from indexer.attributor.conditioning import Conditioning, rows_tensor
from indexer.attributor.engines import IndexSearch
from indexer.attributor.pool import Pool
from indexer.attributor.rounded_pool import RoundedPool
from indexer.attributor.stored_rows import StoredRows

SCORE_UNITS = {
    "infogain_approx": "measurement^4",
    "infogain": "measurement^2",
    "infoloss": "measurement^2",
    "trak": "1",
    "graddot": "measurement^2",
    "repsim": "1",
    "relatif": "1",
    "random": "1",
}
#: Longest list asked of an index; a GPU's FAISS returns no more.
_MAX_RESULTS = 2048


@dataclass(frozen=True)
class Asked:
    """What a rule works with.

    Attributes:
        pool: The question's rows.
        stored: The stored rows of the view.
        rows: The candidates.
        conditioning: The query given D.
        query: φ_*, float64 [d].
        noise_variance: σ².
        budget: How many to select.
        coarse: What certified selections look at first.
    """

    pool: Pool
    stored: StoredRows
    rows: PoolRows
    conditioning: Conditioning
    query: torch.Tensor
    noise_variance: float
    budget: int
    coarse: CoarseViews


def shares_scans(asked: Asked, search: IndexSearch, strategy: str) -> bool:
    """Say whether approximate InfoGain multiplies codes, in rounds with the other selections in flight.

    Args:
        asked: The question.
        search: The index's search over the comparable rows.
        strategy: ``certified`` or ``literal``.

    Returns:
        Whether it does.
    """
    return _looks_coarsely(search, strategy) and asked.coarse.has_codes(asked.pool)


def _looks_coarsely(search: IndexSearch, strategy: str) -> bool:
    return strategy == "certified" and search.exact and search.local


def approximate_steps(asked: Asked, search: IndexSearch, strategy: str) -> Iterator[Step]:
    """Select by approximate InfoGain over an index (15).

    Args:
        asked: The question.
        search: The index's search over the comparable rows.
        strategy: ``certified`` or ``literal``.

    Yields:
        Steps; ``position`` is a row.
    """
    candidates = asked.pool.candidates
    everything = candidates.numel() == asked.pool.comparable.numel()
    allowed = None if everything else candidates
    yield from select_infogain_approx(
        asked.query,
        search,
        asked.stored.sketches,
        asked.noise_variance,
        budget=asked.budget,
        rows_allowed=allowed,
        num_allowed=int(candidates.numel()),
        largest_norm=asked.rows.largest_norm,
        strategy=strategy,
        squared_norms=asked.pool.view.squared_norms,
        float32_sketches=lambda rows: asked.stored.read(rows, torch.float32),
        kernel_column=asked.rows.kernel_column_of_row(),
        coarse=asked.coarse.of(asked.pool, asked.stored) if _looks_coarsely(search, strategy) else None,
        bytes_per_sketch=asked.stored.bytes_per_row,
        kernels=KERNELS,
        max_results=_MAX_RESULTS,
    )


def gain_steps(asked: Asked) -> Iterator[Step]:
    """Select by exact InfoGain (8).

    Args:
        asked: The question.

    Yields:
        Steps; ``position`` is a row.
    """
    candidates = asked.pool.candidates
    kernel_column = asked.rows.kernel_column()
    rounded = asked.coarse.rounded(asked.pool) if kernel_column is None else None
    steps = select_infogain(
        asked.query,
        asked.rows,
        asked.noise_variance,
        budget=asked.budget,
        kernel_column=kernel_column,
        rounded=rounded,
    )
    for step in steps:
        # Without codes the query's products are a pass as well.
        passes = asked.rows.passes + (1 if rounded is None else 0)
        stored = passes * int(candidates.numel()) + asked.rows.rows_read
        yield _with_reads(
            replace(step, position=int(candidates[step.position])), asked, stored, rounded, asked.rows.kernel_bytes
        )


def loss_steps(asked: Asked) -> Iterator[Step]:
    """Select by InfoLoss (62).

    Args:
        asked: The question.

    Yields:
        Steps; ``position`` is a row.
    """
    given = asked.conditioning.posterior("/method")
    positions = asked.conditioning.positions(asked.pool.candidates)
    in_gram_form = given.cross is None
    rounded = asked.coarse.rounded(asked.pool) if in_gram_form else None
    steps = select_infoloss(
        given, positions, budget=asked.budget, candidates=asked.rows if in_gram_form else None, rounded=rounded
    )
    compared = 0 if in_gram_form else int(asked.pool.comparable.numel())
    for step in steps:
        stored = compared + asked.rows.passes * int(asked.pool.candidates.numel()) + asked.rows.rows_read
        yield _with_reads(replace(step, position=asked.conditioning.row(step.position)), asked, stored, rounded)


def _with_reads(step: Step, asked: Asked, stored_rows: int, rounded: RoundedPool | None, other_bytes: int = 0) -> Step:
    # A step with what was read for it so far: stored rows, codes, anything else.
    scans = 0 if rounded is None else rounded.scans
    return replace(
        step,
        index_queries=scans,
        rows_scored=stored_rows + scans * int(asked.pool.candidates.numel()),
        bytes_read=stored_rows * asked.stored.bytes_per_row
        + (0 if rounded is None else rounded.bytes_read)
        + other_bytes,
    )


def random_steps(asked: Asked, seed: int) -> Iterator[Step]:
    """Select at random: every candidate draws a number from [0, 1), the largest win.

    Args:
        asked: The question.
        seed: The seed.

    Yields:
        Steps with the exact InfoGain of what was drawn; ``position`` is a row, ``score`` the number it drew.
    """
    candidates = asked.pool.candidates
    drawn = np.random.default_rng(seed).random(candidates.numel())
    order = np.argsort(-drawn, kind="stable")[: asked.budget]
    chosen = candidates[torch.from_numpy(order)]
    for step in acquire(asked.query, asked.rows.sketches_of_rows(chosen), asked.noise_variance):
        place = step.position
        yield replace(
            step,
            position=int(chosen[place]),
            score=float(drawn[order[place]]),
            rows_scored=int(chosen.numel()),
            bytes_read=int(chosen.numel()) * asked.stored.bytes_per_row,
        )


def selected_rows(steps: list[Step]) -> torch.Tensor:
    """Name the rows of some steps.

    Args:
        steps: Steps whose position is a row.

    Returns:
        int64 [t], in order.
    """
    return rows_tensor([step.position for step in steps])
