"""Which rows may be near-duplicates of others, judged by their heads: a sixteenth of a code scan's bytes."""

import math

import numpy as np
from numpy.typing import NDArray

from attribution.coarse_rows import Places
from attribution.exact_sums import Array, row_dots
from indexer.attributor.coded_rows import CodedHeads
from indexer.attributor.compiled import compiled
from indexer.attributor.integer_dots import LANES, sum_of_one
from indexer.attributor.projections import project_together
from indexer.attributor.scan_threads import in_pieces

_BLOCK_ROWS = 64


@compiled
def _mark(coded, vectors, limits, left, right, out):  # type: ignore[no-untyped-def]
    """out[j, i] = whether head and tail of row i may reach the product ``least[j]`` · ‖φ_i‖ with vector j.

    The leading values of a head alone rule out most rows, with all that follows them counted to the tail.
    """
    codes, rows, scales, errors, tails, norms = coded
    steps, lengths, lost, tail_lengths, rest_lengths, least = limits
    width = codes.shape[1]
    whole = width // LANES * LANES
    leads = whole > LANES
    rests = np.zeros(_BLOCK_ROWS)
    for top in range(left, right, _BLOCK_ROWS):
        below = min(top + _BLOCK_ROWS, right)
        if leads:
            for i in range(top, below):
                row = rows[i]
                squares = 0.0
                for k in range(LANES):
                    squares += np.float64(codes[row, k]) ** 2
                shortest = max(scales[row] * math.sqrt(squares) * (1.0 - 1e-9) - errors[row], 0.0)
                rests[i - top] = math.sqrt(max(norms[i] * norms[i] - shortest * shortest, 0.0))
        for j in range(vectors.shape[0]):
            for i in range(top, below):
                row = rows[i]
                reach, blur = least[j] * norms[i], errors[row] * lengths[j] + norms[i] * lost[j]
                if leads:
                    total = sum_of_one(codes, row, vectors[j], LANES)
                    bound = total * (scales[row] * steps[j]) + blur + rests[i - top] * rest_lengths[j]
                    if bound * (1.0 + 1e-9) < reach:
                        out[j, i] = False
                        continue
                total = sum_of_one(codes, row, vectors[j], whole)
                for k in range(whole, width):
                    total = np.int32(total + np.int32(codes[row, k]) * np.int32(vectors[j, k]))
                bound = total * (scales[row] * steps[j]) + blur + tails[i] * tail_lengths[j]
                out[j, i] = bound * (1.0 + 1e-9) >= reach


def places_near(heads: CodedHeads, norms: Array, sketches: Array, cosine: float) -> list[Places]:
    r"""Find the rows whose cosine with a sketch may exceed a limit.

    .. math:: \phi_n \cdot \phi \le \hat h_n \cdot \hat h + e_n \|\hat h\| + \|\phi_n\| \|h - \hat h\|
        + \|\tau_n\| \|\tau\|

    Args:
        heads: The heads of a pool.
        norms: ‖φ_n‖ by place.
        sketches: float64 [m, d].
        cosine: The limit.

    Returns:
        For each sketch, places whose cosine with it may exceed the limit; all whose cosine does are among them.
    """
    projected = project_together(heads.basis, list(sketches))
    leading = np.ascontiguousarray(projected[:, :LANES])
    squared = row_dots(sketches, sketches)
    tail_lengths, rest_lengths = (
        np.sqrt(np.maximum(squared - row_dots(heads_of, heads_of), 0.0) + 1e-9 * squared)
        for heads_of in (projected, leading)
    )
    rounded = [heads.rounded(one) for one in projected]
    steps, lengths, lost = (np.array([getattr(one, name) for one in rounded]) for name in ("step", "length", "lost"))
    codes = heads.codes
    near: NDArray[np.bool_] = np.empty((sketches.shape[0], norms.shape[0]), dtype=np.bool_)
    coded = (codes.codes, heads.rows, codes.scales, codes.errors, heads.tails, norms)
    integers = np.stack([one.integers for one in rounded])
    limits = (steps, lengths, lost, tail_lengths, rest_lengths, cosine * np.sqrt(squared))
    in_pieces(lambda left, right: _mark(coded, integers, limits, left, right, near), norms.shape[0])
    return [np.flatnonzero(one) for one in near]
