"""The compiled twin of ``attribution.bound_kernels``: one pass over a few bytes a row, nothing in between."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from attribution import bound_kernels
from attribution.bound_kernels import BoundKernels, Face, Facing, Lengths, Looked, LookedTails, Reached
from attribution.coarse_rows import HeadRows, Places
from attribution.cores import on_all_cores
from attribution.exact_sums import Array
from indexer.attributor.coded_rows import CodedHeads
from indexer.attributor.compiled import compiled
from indexer.attributor.integer_dots import LANES, sum_of_one
from indexer.attributor.projections import project_together
from indexer.attributor.scan_threads import in_pieces

#: Bytes of heads that meet every residual of a round while a core's cache holds them.
_BLOCK_BYTES = 1 << 19
#: As in the twin.
_ROUND_UP = 1 + 2.0**-20
_FLOAT32 = 2.0**-23
_NOTHING = np.empty(0)
_NO_TAILS = LookedTails(_NOTHING, _NOTHING, 1.0, 0.0)


#: Columns of the table of lengths.
_ANCHOR, _ALONG, _ACROSS, _TAIL_ALONG, _TAIL_ERROR, _TAIL_ACROSS, _NORM, _TAIL = range(8)


@compiled
def _places(table, cosines, sines, mark, out):  # type: ignore[no-untyped-def]
    count = 0
    for place in range(table.shape[0]):
        anchor = np.int64(table[place, _ANCHOR])
        # A row that is not bounded now gives minus infinity, or what is not a number: neither counts.
        out[count] = place
        count += table[place, _ALONG] * cosines[anchor] + table[place, _ACROSS] * sines[anchor] >= mark
    return count


@compiled
def _heads(table, facing, coded, residual, mark, left, right, places, products, errors):  # type: ignore[no-untyped-def]
    # Writes the rows that reach the mark from place ``left`` on; gives where they end, and how many heads it read.
    cosines, sines, tail_cosines, tail_blur, tail_sines = facing
    codes, rows, scales, code_errors, norms = coded
    integers, step, length, lost, unit, blur = residual
    single = np.float32(mark)
    # One division here instead of three a row; what rounding that costs, the last addends of the errors allow for.
    step, length, lost = step / unit, length / unit, lost / unit
    lost = lost * (1.0 + 1e-9) + 2.0**-49 * length
    length = length * (1.0 + 1e-9)
    count, looked = left, 0
    whole = codes.shape[1] // LANES * LANES
    for place in range(left, right):
        anchor = np.int64(table[place, _ANCHOR])
        # A row that is not bounded now gives minus infinity, or what is not a number: neither reaches anything.
        if not table[place, _ALONG] * cosines[anchor] + table[place, _ACROSS] * sines[anchor] >= single:
            continue
        looked += 1
        row = rows[place]
        total = sum_of_one(codes, row, integers, whole)
        for k in range(whole, codes.shape[1]):
            total = np.int32(total + np.int32(codes[row, k]) * np.int32(integers[k]))
        product = total * (scales[row] * step)
        error = code_errors[row] * length + norms[place] * lost + blur
        near, wrong = np.float64(table[place, _TAIL_ALONG]), np.float64(table[place, _TAIL_ERROR])
        cosine = tail_cosines[anchor]
        bound = abs(product + near * cosine) + error + wrong * abs(cosine)
        bound += (abs(near) + wrong) * tail_blur + np.float64(table[place, _TAIL_ACROSS]) * tail_sines[anchor]
        if bound >= mark:
            places[count], products[count], errors[count] = place, product, error
            count += 1
    return count, looked


@compiled
def _anchor(table, anchor, places, products, errors, with_tails, heads, head_errors, tail_length, tail_blur):  # type: ignore[no-untyped-def]
    inverse = 1.0 / tail_length
    for i in range(places.shape[0]):
        place, product, error = places[i], products[i], errors[i]
        norm = np.float64(table[place, _NORM])
        lower = max(abs(product) - error, 0.0)
        table[place, _ANCHOR] = anchor
        table[place, _ALONG] = min(abs(product) + error, norm) * _ROUND_UP
        table[place, _ACROSS] = math.sqrt(max(norm * norm - lower * lower, 0.0)) * _ROUND_UP
        if with_tails:
            tail = np.float64(table[place, _TAIL])
            near, wrong = 0.0, tail
            if heads.shape[0]:
                near = (product - heads[i]) * inverse
                wrong = (error + head_errors[i]) * inverse + (_FLOAT32 + tail_blur) * abs(near)
            lower = max(abs(near) - wrong, 0.0)
            table[place, _TAIL_ALONG] = near
            table[place, _TAIL_ERROR] = wrong * _ROUND_UP
            table[place, _TAIL_ACROSS] = math.sqrt(max(tail * tail - lower * lower, 0.0)) * _ROUND_UP


def anchor_rows(lengths: Lengths, anchor: int, looked: Looked, tails: LookedTails | None) -> None:
    """Write down how rows lie along and across the residual that they were just multiplied with; see the twin.

    Args:
        lengths: Where to.
        anchor: The residual's number among the anchors.
        looked: The rows.
        tails: Their heads' products; None where nobody multiplied these, or rows have none.
    """
    known = _NO_TAILS if tails is None else tails
    rows = (looked.places, looked.products, looked.errors)
    heads = (lengths.with_tails, known.heads, known.errors, known.tail_length, known.blur)
    _anchor(lengths.table, anchor, *rows, *heads)


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
    out = np.empty(lengths.table.shape[0] + 1, dtype=np.int64)
    return out[: _places(lengths.table, facing.cosines, facing.sines, np.float32(mark), out)].copy()


def heads_reaching(heads: HeadRows, unit: Array, face: Face, lengths: Lengths, mark: float) -> Reached:
    """Find the rows whose bound, and whose head's product and bounded tail together, reach a mark; see the twin.

    Args:
        heads: The rows' heads.
        unit: The residual.
        face: Told the residual's head, says the rest.
        lengths: The rows.
        mark: What both bounds must reach.

    Returns:
        These rows.
    """
    if not isinstance(heads, CodedHeads):
        return bound_kernels.heads_reaching(heads, unit, face, lengths, mark)
    reached: Reached = heads.rounds.ask(_HeadScan(heads, unit, face, lengths, mark))
    return reached


class _HeadScan:
    """One residual against the heads of its pool; a block of heads stays in the cache while it meets all of a round."""

    def __init__(self, heads: CodedHeads, unit: Array, face: Face, lengths: Lengths, mark: float) -> None:
        count = heads.rows.shape[0]
        self.heads = heads
        self.unit = unit
        self._face = face
        self._lengths = lengths
        self._mark = mark
        self._arrays: tuple[Any, ...] = ()
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
        projected = project_together(self.heads.basis, [scan.unit for scan in together])
        for scan, head in zip(together, projected, strict=True):
            scan._turn(head)
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

    def _turn(self, projected: Array) -> None:
        head, facing = self._face(projected)
        rounded, heads = self.heads.rounded(head.vector), self.heads
        self._arrays = (
            self._lengths.table,
            (facing.cosines, facing.sines, facing.tail_cosines, facing.tail_blur, facing.tail_sines),
            (heads.codes.codes, heads.rows, heads.codes.scales, heads.codes.errors, heads.norms),
            (rounded.integers, rounded.step, rounded.length, rounded.lost, head.unit, head.blur),
        )

    def _bound(self, left: int, right: int) -> None:
        out = (self._places, self._products, self._errors)
        self._found[left] = _heads(*self._arrays, self._mark, left, right, *out)

    def _reached(self) -> Reached:
        kept = [slice(left, end) for left, (end, _) in sorted(self._found.items())]
        arrays = (self._places, self._products, self._errors)
        places, products, errors = (np.concatenate([array[piece] for piece in kept]) for array in arrays)
        return Reached(places, products, errors, sum(looked for _, looked in self._found.values()))


KERNELS = BoundKernels(places_reaching, heads_reaching, anchor_rows)
