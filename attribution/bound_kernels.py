"""The arithmetic of bounds on many rows at once, on arrays. A faster twin may be given wherever ``BoundKernels`` is."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from attribution.coarse_rows import HeadRows, Places
from attribution.exact_sums import Array

Float32Array = npt.NDArray[np.float32]

#: Rows bounded at a time: they stay in the innermost caches.
_BOUNDED_TOGETHER = 1 << 14
#: Room for the rounding of float32 bounds: seven operations of 2⁻²⁴ each.
_ROUND_UP = 1 + 2.0**-20
#: Rounding of a number to float32, relative, with room to spare.
_FLOAT32 = 2.0**-23


class Lengths:
    """What is known of each row along and across the anchor it was last looked at with, in units; by place.

    Everything of a row lies side by side, for rows are written here and there.

    Args:
        norms: Upper bounds of ‖φ‖ in units.
        tails: Upper bounds of ‖τ_φ‖ in units; None without heads.

    Attributes:
        table: float32 [c, 8], in this order:
        anchor: Which anchor, a whole number.
        along: Upper bound of |φ · anchor|; −∞ for a row that is not bounded now.
        across: Upper bound of the length of φ orthogonal to the anchor.
        tail_along: The tail's product with the anchor's unit tail, signed; unused without heads, like those below.
        tail_error: Bound of its error.
        tail_across: Upper bound of the length of the tail orthogonal to the anchor's tail.
        norm: As given, rounded up.
        tail: As given, rounded up.
    """

    def __init__(self, norms: Array, tails: Array | None) -> None:
        self.with_tails = tails is not None
        self.table: Float32Array = np.zeros((norms.shape[0], 8), dtype=np.float32)
        columns = self.table.T
        self.anchor, self.along, self.across, self.tail_along, self.tail_error, self.tail_across = columns[:6]
        self.norm, self.tail = columns[6:]
        self.forget()
        self.norm[:] = norms * _ROUND_UP
        if tails is not None:
            self.tail[:] = tails * _ROUND_UP

    def forget(self) -> None:
        """Bound no row: none reaches any mark, and none has an anchor that may be gone."""
        self.anchor.fill(0.0)
        self.along.fill(-np.inf)
        self.across.fill(0.0)

    def anchors(self, places: Places | slice) -> Places:
        """Give the anchors of some rows.

        Args:
            places: Which rows.

        Returns:
            Their numbers.
        """
        numbers: Places = self.anchor[places].astype(np.int64)
        return numbers


@dataclass(frozen=True)
class Facing:
    """How the present unit residual lies to every anchor; by anchor.

    Attributes:
        cosines: Upper bound of |anchor · r|/‖r‖.
        sines: Upper bound of √(1 − cosine²).
        tail_cosines: Product of the anchor's unit tail with the residual, signed.
        tail_blur: Bound of its error.
        tail_sines: Upper bound of what the residual's tail has orthogonal to the anchor's tail.
    """

    cosines: Float32Array
    sines: Float32Array
    tail_cosines: Array
    tail_blur: float
    tail_sines: Array


def places_reaching(lengths: Lengths, facing: Facing, mark: float) -> Places:
    """Find the rows whose bound |φ·a| cos + ‖φ across a‖ sin reaches a mark (method.md section 6, i).

    Args:
        lengths: The rows.
        facing: The residual.
        mark: What a bound must reach.

    Returns:
        Places, ascending.
    """
    found = []
    for left in range(0, lengths.along.shape[0], _BOUNDED_TOGETHER):
        piece = slice(left, left + _BOUNDED_TOGETHER)
        anchor = lengths.anchors(piece)
        bounds = lengths.along[piece] * facing.cosines[anchor] + lengths.across[piece] * facing.sines[anchor]
        found.append(np.flatnonzero(bounds >= np.float32(mark)) + left)
    return np.concatenate(found)


@dataclass(frozen=True)
class Head:
    """The present unit residual in the leading directions, and in what units its products are wanted.

    Attributes:
        vector: Its head, [k].
        unit: What products are divided by.
        blur: Rounding to allow for in every product, in these units.
    """

    vector: Array
    unit: float
    blur: float


Face = Callable[[Array], tuple[Head, Facing]]
"""Completes what is known of the present residual once its head B·u is, [k]: its tail then lies somewhere too."""


@dataclass(frozen=True)
class Reached:
    """Rows whose bounds reach a mark.

    Attributes:
        places: Which, ascending.
        heads: Products of their heads with the residual's, in units, [m].
        errors: Bounds of the errors of these, [m].
        looked: How many heads were multiplied to find them.
    """

    places: Places
    heads: Array
    errors: Array
    looked: int


def heads_reaching(heads: HeadRows, unit: Array, face: Face, lengths: Lengths, mark: float) -> Reached:
    r"""Find the rows whose bound reaches a mark, and whose head's product and bounded tail reach it together.

    .. math:: |\phi \cdot u| \le |h_\phi \cdot h_u + (\tau_\phi \cdot a)(a \cdot u)|
        + \sqrt{\|\tau_\phi\|^2 - (\tau_\phi \cdot a)^2} \sqrt{\|\tau_u\|^2 - (a \cdot u)^2}

    with a the anchor's unit tail: the head is known, and (i) bounds what the tail adds.

    Args:
        heads: The rows' heads.
        unit: The residual, float64 [d].
        face: Told the residual's head, says the rest.
        lengths: The rows.
        mark: What both bounds must reach.

    Returns:
        These rows.
    """
    head, facing = face(heads.project(unit))
    places = places_reaching(lengths, facing, mark)
    products, errors = heads.products(head.vector, places)
    products, errors = products / head.unit, errors / head.unit + head.blur
    anchor = lengths.anchors(places)
    cosines = facing.tail_cosines[anchor]
    along, error = lengths.tail_along[places].astype(np.float64), lengths.tail_error[places].astype(np.float64)
    middle = np.abs(products + along * cosines) + errors + error * np.abs(cosines)
    across = lengths.tail_across[places] * facing.tail_sines[anchor]
    reaching = middle + (np.abs(along) + error) * facing.tail_blur + across >= mark
    return Reached(places[reaching], products[reaching], errors[reaching], int(places.shape[0]))


@dataclass(frozen=True)
class Looked:
    """Rows that were multiplied with the present unit residual.

    Attributes:
        places: Which, ascending.
        products: φ · u, signed, in units, [m].
        errors: Bounds of the errors of these, [m].
    """

    places: Places
    products: Array
    errors: Array


@dataclass(frozen=True)
class LookedTails:
    """Products of such rows' heads with the residual's.

    Attributes:
        heads: h_φ · h_u, in units, [m].
        errors: Bounds of the errors of these, [m].
        tail_length: ‖τ_u‖, of the residual.
        blur: Bound of the relative error of products with its unit tail.
    """

    heads: Array
    errors: Array
    tail_length: float
    blur: float


def anchor_rows(lengths: Lengths, anchor: int, looked: Looked, tails: LookedTails | None) -> None:
    r"""Write down how rows lie along and across the residual that they were just multiplied with.

    .. math:: \|\phi \text{ across } u\|^2 = \|\phi\|^2 - (\phi \cdot u)^2, \quad
        \tau_\phi \cdot \frac{\tau_u}{\|\tau_u\|} = \frac{\phi \cdot u - h_\phi \cdot h_u}{\|\tau_u\|}

    Args:
        lengths: Where to.
        anchor: The residual's number among the anchors.
        looked: The rows.
        tails: Their heads' products; None where nobody multiplied these, or rows have none.
    """
    places, products, errors = looked.places, looked.products, looked.errors
    norms = lengths.norm[places].astype(np.float64)
    lower = np.maximum(np.abs(products) - errors, 0.0)
    lengths.along[places] = np.minimum(np.abs(products) + errors, norms) * _ROUND_UP
    lengths.across[places] = np.sqrt(np.maximum(norms**2 - lower**2, 0.0)) * _ROUND_UP
    lengths.anchor[places] = anchor
    if not lengths.with_tails:
        return
    longest = lengths.tail[places].astype(np.float64)
    # Without a head's product a tail may lie anywhere between along and against the anchor's.
    along, error = np.zeros_like(longest), longest
    if tails is not None:
        along = (products - tails.heads) / tails.tail_length
        error = (errors + tails.errors) / tails.tail_length + (_FLOAT32 + tails.blur) * np.abs(along)
    lower = np.maximum(np.abs(along) - error, 0.0)
    lengths.tail_along[places] = along
    lengths.tail_error[places] = error * _ROUND_UP
    lengths.tail_across[places] = np.sqrt(np.maximum(longest**2 - lower**2, 0.0)) * _ROUND_UP


@dataclass(frozen=True)
class BoundKernels:
    """The evaluations of bounds.

    Attributes:
        places_reaching: As :func:`places_reaching`.
        heads_reaching: As :func:`heads_reaching`.
        anchor_rows: As :func:`anchor_rows`.
    """

    places_reaching: Callable[[Lengths, Facing, float], Places] = places_reaching
    heads_reaching: Callable[[HeadRows, Array, Face, Lengths, float], Reached] = heads_reaching
    anchor_rows: Callable[[Lengths, int, Looked, LookedTails | None], None] = anchor_rows
