"""The compiled twin of ``attribution.bound_kernels``: one pass over a few bytes a row, nothing in between."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from attribution import bound_kernels
from attribution.bound_kernels import BoundKernels, Facing, Head, Lengths, Reached
from attribution.coarse_rows import HeadRows, Places
from attribution.cores import on_all_cores
from indexer.attributor.coded_rows import CodedHeads
from indexer.attributor.compiled import compiled
from indexer.attributor.integer_dots import LANES, sum_of_one
from indexer.attributor.scan_threads import in_pieces

#: Bytes of heads that meet every residual of a round while a core's cache holds them.
_BLOCK_BYTES = 1 << 19


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
    whole = codes.shape[1] // LANES * LANES
    for place in range(left, right):
        anchor = anchors[place]
        # A row that is not bounded now gives minus infinity, or what is not a number: neither reaches anything.
        if not along[place] * cosines[anchor] + across[place] * sines[anchor] >= single:
            continue
        looked += 1
        row = rows[place]
        total = sum_of_one(codes, row, integers, whole)
        for k in range(whole, codes.shape[1]):
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
    rounded = heads.rounded(head.vector)
    arrays = (
        (lengths.anchor, lengths.along, lengths.across, lengths.tail_along, lengths.tail_error, lengths.tail_across),
        (facing.cosines, facing.sines, facing.tail_cosines, facing.tail_blur, facing.tail_sines),
        (heads.codes.codes, heads.rows, heads.codes.scales, heads.codes.errors, heads.norms),
        (rounded.integers, rounded.step, rounded.length, rounded.lost, head.unit, head.blur),
    )
    reached: Reached = heads.rounds.ask(_HeadScan(heads, arrays, mark))
    return reached


class _HeadScan:
    """One residual against the heads of its pool; a block of heads stays in the cache while it meets all of a round."""

    def __init__(self, heads: CodedHeads, arrays: tuple[Any, ...], mark: float) -> None:
        count = heads.rows.shape[0]
        self.heads = heads
        self._arrays = arrays
        self._mark = mark
        self._places, self._products, self._errors = np.empty(count, dtype=np.int64), np.empty(count), np.empty(count)
        self._found: dict[int, tuple[int, int]] = {}

    @property
    def scanned(self) -> object:
        """The codes of all heads of the view."""
        return self.heads.codes.codes

    def serve(self, together: Sequence["_HeadScan"]) -> Sequence[Reached]:
        """Bound the rows of every scan, block after block of the view's rows.

        Args:
            together: The scans.

        Returns:
            The rows that each reaches.
        """
        if len(together) == 1:
            in_pieces(self._bound, self.heads.rows.shape[0])
            return [self._reached()]
        num_rows, width = self.heads.codes.codes.shape
        blocks = np.append(np.arange(0, num_rows, max(1, _BLOCK_BYTES // width)), num_rows)
        edges = [np.searchsorted(scan.heads.rows, blocks) for scan in together]

        def bound(block: int) -> None:
            for scan, edge in zip(together, edges, strict=True):
                if edge[block] < edge[block + 1]:
                    scan._bound(int(edge[block]), int(edge[block + 1]))

        on_all_cores([partial(bound, block) for block in range(blocks.shape[0] - 1)])
        return [scan._reached() for scan in together]

    def _bound(self, left: int, right: int) -> None:
        out = (self._places, self._products, self._errors)
        self._found[left] = _heads(*self._arrays, self._mark, left, right, *out)

    def _reached(self) -> Reached:
        kept = [slice(left, end) for left, (end, _) in sorted(self._found.items())]
        arrays = (self._places, self._products, self._errors)
        places, products, errors = (np.concatenate([array[piece] for piece in kept]) for array in arrays)
        return Reached(places, products, errors, sum(looked for _, looked in self._found.values()))


KERNELS = BoundKernels(places_reaching, heads_reaching)
