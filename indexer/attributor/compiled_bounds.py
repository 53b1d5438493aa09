"""The compiled twin of ``attribution.bound_kernels``: one pass over a few bytes a row, nothing in between."""

import numpy as np

from attribution import bound_kernels
from attribution.bound_kernels import BoundKernels, Facing, Head, Lengths, Reached
from attribution.coarse_rows import HeadRows, Places
from indexer.attributor.coded_rows import CodedHeads
from indexer.attributor.compiled import compiled
from indexer.attributor.scan_threads import in_pieces


@compiled
def _places(along, across, anchors, cosines, sines, mark, out):  # type: ignore[no-untyped-def]
    count = 0
    for place in range(along.shape[0]):
        anchor = anchors[place]
        # A row that is not bounded now gives minus infinity, or what is not a number: neither counts.
        out[count] = place
        count += along[place] * cosines[anchor] + across[place] * sines[anchor] >= mark
    return count


@compiled
def _heads(lengths, facing, coded, residual, mark, left, right, places, products, errors):  # type: ignore[no-untyped-def]
    # Writes the rows that reach the mark from place ``left`` on; gives where they end, and how many heads it read.
    anchors, along, across, tail_along, tail_error, tail_across = lengths
    cosines, sines, tail_cosines, tail_blur, tail_sines = facing
    codes, rows, scales, code_errors, norms = coded
    integers, step, length, lost, unit, blur = residual
    single = np.float32(mark)
    count, looked = left, 0
    for place in range(left, right):
        anchor = anchors[place]
        # A row that is not bounded now gives minus infinity, or what is not a number: neither reaches anything.
        if not along[place] * cosines[anchor] + across[place] * sines[anchor] >= single:
            continue
        looked += 1
        row = rows[place]
        total = np.int32(0)
        for k in range(codes.shape[1]):
            total = np.int32(total + np.int32(codes[row, k]) * np.int32(integers[k]))
        product = total * (scales[row] * step) / unit
        error = code_errors[row] * length + norms[place] * lost
        error = (error * (1.0 + 1e-9) + 2.0**-50 * (norms[place] * length)) / unit + blur
        near, wrong, cosine = np.float64(tail_along[place]), np.float64(tail_error[place]), tail_cosines[anchor]
        bound = abs(product + near * cosine) + error + wrong * abs(cosine)
        bound += (abs(near) + wrong) * tail_blur + np.float64(tail_across[place]) * tail_sines[anchor]
        if bound >= mark:
            places[count], products[count], errors[count] = place, product, error
            count += 1
    return count, looked


def places_reaching(lengths: Lengths, facing: Facing, mark: float) -> Places:
    """Find the rows whose bound reaches a mark; see the twin.

    Args:
        lengths: The rows.
        facing: The residual.
        mark: What a bound must reach.

    Returns:
        Places, ascending.
    """
    # One more than there are rows: every place is written before it is known to count.
    out = np.empty(lengths.along.shape[0] + 1, dtype=np.int64)
    arrays = (lengths.along, lengths.across, lengths.anchor, facing.cosines, facing.sines)
    return out[: _places(*arrays, np.float32(mark), out)].copy()


def heads_reaching(heads: HeadRows, head: Head, lengths: Lengths, facing: Facing, mark: float) -> Reached:
    """Find the rows whose bound, and whose head's product and bounded tail together, reach a mark; see the twin.

    Args:
        heads: The rows' heads.
        head: The residual's.
        lengths: The rows.
        facing: The residual.
        mark: What both bounds must reach.

    Returns:
        These rows.
    """
    if not isinstance(heads, CodedHeads):
        return bound_kernels.heads_reaching(heads, head, lengths, facing, mark)
    count = lengths.along.shape[0]
    places, products, errors = np.empty(count, dtype=np.int64), np.empty(count), np.empty(count)
    rounded = heads.rounded(head.vector)
    arrays = (
        (lengths.anchor, lengths.along, lengths.across, lengths.tail_along, lengths.tail_error, lengths.tail_across),
        (facing.cosines, facing.sines, facing.tail_cosines, facing.tail_blur, facing.tail_sines),
        (heads.codes.codes, heads.rows, heads.codes.scales, heads.codes.errors, heads.norms),
        (rounded.integers, rounded.step, rounded.length, rounded.lost, head.unit, head.blur),
    )
    found: dict[int, tuple[int, int]] = {}

    def bound(left: int, right: int) -> None:
        found[left] = _heads(*arrays, mark, left, right, places, products, errors)

    in_pieces(bound, count)
    kept = [slice(left, end) for left, (end, _) in sorted(found.items())]
    parts = [np.concatenate([array[piece] for piece in kept]) for array in (places, products, errors)]
    return Reached(parts[0].astype(np.int64), parts[1], parts[2], sum(looked for _, looked in found.values()))


KERNELS = BoundKernels(places_reaching, heads_reaching)
