"""Products with 8-bit codes of the stored rows: a quarter of the bytes of float32, with a known error per row.

Residuals are rounded to integers too, so that products are integer sums: exact, whatever the order, and the same alone
or in a round with others.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch

from attribution.coarse_rows import Places
from attribution.exact_sums import Array, inner_product_error
from indexer.attributor.compiled import compiled, compiled_in_lanes
from indexer.attributor.integer_dots import LANES, sum_of_one, sums_of_four
from indexer.attributor.projections import project_together
from indexer.attributor.scan_rounds import ScanRounds
from indexer.attributor.scan_threads import in_pieces
from sketchstore.codes import Codes
from sketchstore.heads import Heads

Sums = npt.NDArray[np.int32]

#: Largest magnitude of a code.
_LARGEST_CODE = 127
#: Rows multiplied with every residual of a round while they are in the cache of a core.
_BLOCK_ROWS = 128
#: Rows that one thread multiplies before another would have woken.
_FEW_ROWS = 512


@compiled
def _multiply(codes, rows, starts, vectors, left, right, out):  # type: ignore[no-untyped-def]
    """Rows ``left`` to ``right`` of the codes with the vectors that ask for them.

    Vector j asks for ``rows[starts[j] : starts[j + 1]]``, ascending.
    """
    count = vectors.shape[0]
    places = np.empty(count, np.int64)
    for j in range(count):
        places[j] = starts[j] + np.searchsorted(rows[starts[j] : starts[j + 1]], left)
    dim = codes.shape[1]
    whole = dim // LANES * LANES
    for top in range(left, right, _BLOCK_ROWS):
        below = min(top + _BLOCK_ROWS, right)
        for j in range(count):
            place, vector = places[j], vectors[j]
            # Scattered rows come from memory four at a time faster than one by one.
            while place + 4 <= starts[j + 1] and rows[place + 3] < below:
                one, two, three, four = rows[place], rows[place + 1], rows[place + 2], rows[place + 3]
                first, second, third, fourth = sums_of_four(codes, one, two, three, four, vector, whole)
                for k in range(whole, dim):
                    value = np.int32(vector[k])
                    first = np.int32(first + np.int32(codes[one, k]) * value)
                    second = np.int32(second + np.int32(codes[two, k]) * value)
                    third = np.int32(third + np.int32(codes[three, k]) * value)
                    fourth = np.int32(fourth + np.int32(codes[four, k]) * value)
                out[place], out[place + 1], out[place + 2], out[place + 3] = first, second, third, fourth
                place += 4
            while place < starts[j + 1] and rows[place] < below:
                row = rows[place]
                total = sum_of_one(codes, row, vector, whole)
                for k in range(whole, dim):
                    total = np.int32(total + np.int32(codes[row, k]) * np.int32(vector[k]))
                out[place] = total
                place += 1
            places[j] = place


@compiled
def _decode(sums, rows, scales, code_errors, norms, step, length, lost_length, values, errors):  # type: ignore[no-untyped-def]
    """Products and their error bounds from integer sums; one rounding is 2⁻⁵³, and no line has more than eight."""
    for i in range(sums.shape[0]):
        row = rows[i]
        values[i] = sums[i] * (scales[row] * step)
        error = code_errors[row] * length + norms[i] * lost_length
        errors[i] = error * (1.0 + 1e-9) + 2.0**-50 * (norms[i] * length)


@compiled_in_lanes
def _round(vector, largest, integers):  # type: ignore[no-untyped-def]
    # Writes the integers; gives the step, their length and what they lost, whose own rounding is below 1e-12.
    peak = 0.0
    for i in range(vector.shape[0]):
        peak = max(peak, abs(vector[i]))
    step = peak / largest
    if step == 0.0:  # a zero vector has no step
        step = 1.0
    length, lost = 0.0, 0.0
    for i in range(vector.shape[0]):
        whole = np.rint(vector[i] / step)
        integers[i] = np.int16(whole)
        rounded = whole * step
        length += rounded * rounded
        lost += (vector[i] - rounded) * (vector[i] - rounded)
    return step, math.sqrt(length) * (1.0 + 1e-12), math.sqrt(lost) * (1.0 + 1e-12)


@compiled
def _sum_squares(codes, first, last, out):  # type: ignore[no-untyped-def]
    for i in range(first, last):
        total = np.int64(0)
        for j in range(codes.shape[1]):
            code = np.int32(codes[i, j])
            total += code * code
        out[i] = total


@dataclass(frozen=True)
class _Wanted:
    """Integer products that a selection waits for."""

    scans: "CodeScans"
    rows: Places
    vector: npt.NDArray[np.int16]

    @property
    def scanned(self) -> object:
        """The codes."""
        return self.scans

    def serve(self, together: Sequence["_Wanted"]) -> Sequence[Sums]:
        """Multiply for all who want products of these codes.

        Args:
            together: What they want.

        Returns:
            Their sums.
        """
        return self.scans.multiply([(one.rows, one.vector) for one in together])


@dataclass(frozen=True)
class Rounded:
    """A vector rounded to integers.

    Attributes:
        integers: int16 [d].
        step: What one stands for.
        length: ‖step · integers‖.
        lost: ‖vector − step · integers‖.
    """

    integers: npt.NDArray[np.int16]
    step: float
    length: float
    lost: float


class CodeScans:
    """The codes of one view, multiplied in rounds for all selections in flight.

    Args:
        codes: The codes.
        rounds: The rounds they are multiplied in.
    """

    def __init__(self, codes: Codes, rounds: ScanRounds) -> None:
        self.codes = codes
        self.rounds = rounds
        # No sum of products may leave int32.
        self.largest: int = max(1, min(2**15 - 1, (2**31 - 1) // (_LARGEST_CODE * codes.codes.shape[1])))

    @property
    def dim(self) -> int:
        """Codes in a row."""
        return int(self.codes.codes.shape[1])

    @cached_property
    def norms(self) -> Array:
        """‖φ̂_n‖ of every row, from exact sums: two roundings and a square root, float64 [n]."""
        out = np.empty(self.codes.codes.shape[0], np.int64)
        in_pieces(lambda first, last: _sum_squares(self.codes.codes, first, last, out), out.shape[0])
        return np.sqrt(out.astype(np.float64)) * self.codes.scales

    def rounded(self, vector: Array) -> "Rounded":
        """Round a vector to integers whose sums of products with codes stay within int32.

        Args:
            vector: float64 [d].

        Returns:
            The integers, and how far they are from the vector.
        """
        integers = np.empty(vector.shape[0], dtype=np.int16)
        return Rounded(integers, *_round(vector, self.largest, integers))

    def products(self, rows: Places, vector: npt.NDArray[np.int16]) -> Sums:
        """Multiply rows with an integer vector, in one round with what others ask for.

        Args:
            rows: Ascending rows.
            vector: int16 [d], of magnitude at most ``largest``.

        Returns:
            Exact sums, int32 [m].
        """
        # So few rows are not worth waiting for a round.
        if rows.shape[0] < _FEW_ROWS:
            return self.multiply([(rows, vector)])[0]
        sums: Sums = self.rounds.ask(_Wanted(self, rows, vector))
        return sums

    def multiply(self, wanted: Sequence[tuple[Places, npt.NDArray[np.int16]]]) -> Sequence[Sums]:
        """Multiply rows with integer vectors now, each with its own.

        Args:
            wanted: Ascending rows and the vector, as for ``products``.

        Returns:
            Exact sums, in the same order.
        """
        rows = np.concatenate([some for some, _ in wanted]) if len(wanted) > 1 else wanted[0][0]
        starts = np.cumsum([0, *(some.shape[0] for some, _ in wanted)])
        vectors = np.stack([vector for _, vector in wanted])
        out = np.empty(rows.shape[0], np.int32)
        codes = self.codes.codes
        asked = [some for some, _ in wanted if some.shape[0]]
        if asked:
            first, last = min(int(some[0]) for some in asked), max(int(some[-1]) for some in asked)

            def multiply(left: int, right: int) -> None:
                _multiply(codes, rows, starts, vectors, first + left, first + right, out)

            # Waking another thread costs as much as these rows.
            if rows.shape[0] < _FEW_ROWS:
                multiply(0, last + 1 - first)
            else:
                in_pieces(multiply, last + 1 - first)
        return [out[starts[j] : starts[j + 1]] for j in range(len(wanted))]


class CodedRows:
    """The codes of a pool's rows: ``attribution``'s CoarseRows.

    Args:
        scans: The codes of all rows of the view.
        rows: The pool's rows, ascending.
        norms: ‖φ_n‖ by place, as stored.
        heads: The rows' heads.
    """

    def __init__(self, scans: CodeScans, rows: Places, norms: Array, heads: "CodedHeads | None" = None) -> None:
        self._scans = scans
        self._rows = rows
        self._heads = heads
        # The stored norms are rounded; a bound must not be.
        self._norms = norms * (1 + inner_product_error(scans.dim, torch.float64))

    @property
    def rows(self) -> Places:
        """The rows, int64 [c], ascending."""
        return self._rows

    @property
    def norms(self) -> Array:
        """Upper bounds of ‖φ_n‖, float64 [c]."""
        return self._norms

    @property
    def bytes_per_row(self) -> int:
        """Bytes read for one product: a code a value."""
        return self._scans.dim

    @property
    def heads(self) -> "CodedHeads | None":
        """The rows in a few leading directions, where the index has them."""
        return self._heads

    def products(self, vector: Array, places: Places | None) -> tuple[Array, Array]:
        r"""Multiply codes with a vector rounded to integers.

        .. math:: |\phi \cdot r - \hat\phi \cdot \hat r| \le \|\phi - \hat\phi\| \|\hat r\| + \|\phi\| \|r - \hat r\|

        Args:
            vector: float64 [d].
            places: Ascending places, or None for all rows.

        Returns:
            Products and bounds of their errors, float64 [m].
        """
        codes = self._scans.codes
        rounded = self._scans.rounded(vector)
        rows, norms = (self._rows, self._norms) if places is None else (self._rows[places], self._norms[places])
        sums = self._scans.products(rows, rounded.integers)
        values, errors = np.empty(sums.shape[0]), np.empty(sums.shape[0])
        lengths = (rounded.step, rounded.length, rounded.lost)
        _decode(sums, rows, codes.scales, codes.errors, norms, *lengths, values, errors)
        return values, errors


class CodedHeads:
    """The coded heads of a pool's rows: ``attribution``'s HeadRows.

    Args:
        scans: The codes of all heads of the view.
        heads: What else is stored of them.
        rows: The pool's rows, ascending.
        norms: ‖φ_n‖ by place, as stored; heads are no longer.
    """

    def __init__(self, scans: CodeScans, heads: Heads, rows: Places, norms: Array) -> None:
        self._coded = CodedRows(scans, rows, norms)
        self._scans = scans
        self._basis = heads.basis
        self._tails = heads.tails[rows]

    @property
    def rounds(self) -> ScanRounds:
        """The rounds that heads are multiplied in."""
        return self._scans.rounds

    @property
    def basis(self) -> Array:
        """The directions, float64 [k, d]."""
        return self._basis

    @property
    def rows(self) -> Places:
        """The rows, int64 [c], ascending."""
        return self._coded.rows

    @property
    def codes(self) -> Codes:
        """The codes of all heads of the view, by row."""
        return self._scans.codes

    @property
    def norms(self) -> Array:
        """Upper bounds of ‖φ_n‖, and so of heads, float64 [c]."""
        return self._coded.norms

    def rounded(self, vector: Array) -> Rounded:
        """Round the head of a residual to integers; see :meth:`CodeScans.rounded`.

        Args:
            vector: float64 [k].

        Returns:
            The integers, and how far they are from the vector.
        """
        return self._scans.rounded(vector)

    @property
    def tails(self) -> Array:
        """Upper bounds of the tails' lengths, float64 [c]."""
        return self._tails

    def project(self, vector: Array) -> Array:
        """Multiply the directions with a vector, in float64, by sums whose order depends on nothing else.

        Args:
            vector: float64 [d].

        Returns:
            B · vector, float64 [k].
        """
        projected: Array = project_together(self._basis, [vector])[0]
        return projected

    @property
    def bytes_per_row(self) -> int:
        """Bytes read for one product."""
        return self._coded.bytes_per_row

    def products(self, vector: Array, places: Places | None) -> tuple[Array, Array]:
        """Multiply heads Bφ_n with a vector.

        Args:
            vector: float64 [k].
            places: Ascending places, or None for all rows.

        Returns:
            Products and bounds of their errors, float64 [m].
        """
        return self._coded.products(vector, places)
