"""What a search gives back, and the arithmetic its engines share: rounding bound, safe scaling, ordered top results."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sketchstore.errors import SketchBlockError

UNIT_ROUNDOFF = 2.0**-24  # float32
PAD = -1


@dataclass(frozen=True)
class SearchResults:
    """Signed inner products, best first, per residual; short lists are padded with −∞ and row −1.

    ``rows_scored`` counts the rows whose product was formed, over all residuals, ``bytes_read`` what was read for it of
    this machine's memory.
    """

    scores: Tensor  # [b, m] float64, descending
    rows: Tensor  # [b, m] int64
    rows_scored: int
    bytes_read: int


def relative_error(sketch_dim: int) -> float:
    """Bound of a float32 inner product in any order of summation: |computed − φ·r| ≤ bound · ‖φ‖ · ‖r‖.

    One rounding of r to float32, d of products and d − 1 of sums give γ_{d+1}; by Cauchy–Schwarz it applies to the
    norms. The stored φ are exact in float32.

    Args:
        sketch_dim: d.

    Returns:
        The bound.
    """
    terms = (sketch_dim + 2) * UNIT_ROUNDOFF
    return terms / (1.0 - terms)


def check_search(residuals: Tensor, num_results: int, sketch_dim: int) -> None:
    """Refuse residuals of another shape, not finite ones, and a number of results below one.

    Args:
        residuals: What is searched for.
        num_results: How many results.
        sketch_dim: d.

    Raises:
        SketchBlockError: If any of these is wrong.
    """
    if residuals.ndim != 2 or residuals.shape[1] != sketch_dim:
        raise SketchBlockError(f"residuals have shape {list(residuals.shape)}, must be [b, {sketch_dim}]")
    if not bool(torch.isfinite(residuals).all()):
        raise SketchBlockError("residuals hold NaN or an infinity")
    if num_results < 1:
        raise SketchBlockError(f"num_results is {num_results}, must be at least 1")


def to_float32(residuals: Tensor) -> tuple[Tensor, Tensor]:
    """Residuals as float32 of magnitude at most 1, and the powers of two taken out of them.

    Args:
        residuals: float64 [b, d].

    Returns:
        float32 [b, d] and the factors, float64 [b, 1], that undo the scaling.
    """
    largest = residuals.to(torch.float64).abs().amax(dim=1, keepdim=True)
    factors = torch.where(largest > 0, torch.exp2(torch.frexp(largest).exponent.to(torch.float64)), 1.0)
    return (residuals / factors).to(torch.float32), factors


def is_mirrored(residuals: Tensor) -> bool:
    """Whether the second half of a batch negates its first, as ±r do: then half the products are enough.

    Args:
        residuals: [b, d].

    Returns:
        True for such a batch.
    """
    half = residuals.shape[0] // 2
    return residuals.shape[0] == 2 * half > 0 and bool((residuals[:half] == -residuals[half:]).all())


def top(scores: Tensor, rows: Tensor, num_results: int) -> tuple[Tensor, Tensor]:
    """The largest scores of one residual, descending; among equal ones the lowest rows, in order.

    Args:
        scores: [n].
        rows: [n], ascending.
        num_results: How many to keep at most.

    Returns:
        At most ``num_results`` scores and their rows.
    """
    if num_results < scores.numel():
        smallest = torch.topk(scores, num_results).values[-1]
        above = torch.nonzero(scores > smallest).squeeze(1)
        level = torch.nonzero(scores == smallest).squeeze(1)[: num_results - above.numel()]
        keep = torch.cat([above, level]).sort().values
        scores, rows = scores[keep], rows[keep]
    order = torch.argsort(scores, descending=True, stable=True)
    return scores[order], rows[order]


def padded(lists: list[tuple[Tensor, Tensor]], num_results: int, rows_scored: int, bytes_read: int) -> SearchResults:
    """Lists of one residual each as one result.

    Args:
        lists: Scores and rows, best first.
        num_results: Width of the result.
        rows_scored: See SearchResults.
        bytes_read: See SearchResults.

    Returns:
        The lists, padded.
    """
    scores = torch.full((len(lists), num_results), -torch.inf, dtype=torch.float64)
    rows = torch.full((len(lists), num_results), PAD, dtype=torch.int64)
    for i, (values, found) in enumerate(lists):
        scores[i, : values.numel()] = values.to(torch.float64)
        rows[i, : found.numel()] = found
    return SearchResults(scores, rows, rows_scored, bytes_read)


def intersect(rows: Tensor, allowed: Tensor | None) -> Tensor:
    """Rows that are allowed, ascending.

    Args:
        rows: Ascending rows.
        allowed: Ascending rows, or None for all.

    Returns:
        The rows in both.
    """
    if allowed is None:
        return rows
    allowed = allowed.contiguous()  # searchsorted warns otherwise
    place = torch.searchsorted(rows, allowed)
    inside = place < rows.numel()
    return allowed[inside][rows[place[inside]] == allowed[inside]] if rows.numel() else rows


def contiguous(rows: Tensor) -> slice | None:
    """The slice that ascending rows form, if they do.

    Args:
        rows: Ascending rows.

    Returns:
        The slice, or None where there are gaps.
    """
    if rows.numel() == 0:
        return slice(0, 0)
    start, stop = int(rows[0]), int(rows[-1]) + 1
    return slice(start, stop) if stop - start == rows.numel() else None
