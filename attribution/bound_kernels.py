"""The arithmetic of bounds on many rows at once, on arrays. A faster twin may be given wherever ``BoundKernels`` is."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from attribution.coarse_rows import HeadRows, Places
from attribution.exact_sums import Array

Float32Array = npt.NDArray[np.float32]
Anchors = npt.NDArray[np.int16]

#: Rows bounded at a time: they stay in the innermost caches.
_BOUNDED_TOGETHER = 1 << 14


@dataclass
class Lengths:
    """What is known of each row along and across the anchor it was last looked at with; by place.

    Attributes:
        anchor: Which anchor.
        along: Upper bound of |φ · anchor|; −∞ for a row that is not bounded now.
        across: Upper bound of the length of φ orthogonal to the anchor.
        tail_along: The tail's product with the anchor's unit tail, signed; unused without heads, like those below.
        tail_error: Bound of its error.
        tail_across: Upper bound of the length of the tail orthogonal to the anchor's tail.
    """

    anchor: Anchors
    along: Float32Array
    across: Float32Array
    tail_along: Float32Array
    tail_error: Float32Array
    tail_across: Float32Array


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
        anchor = lengths.anchor[piece]
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


def heads_reaching(heads: HeadRows, head: Head, lengths: Lengths, facing: Facing, mark: float) -> Reached:
    r"""Find the rows whose bound reaches a mark, and whose head's product and bounded tail reach it together.

    .. math:: |\phi \cdot u| \le |h_\phi \cdot h_u + (\tau_\phi \cdot a)(a \cdot u)|
        + \sqrt{\|\tau_\phi\|^2 - (\tau_\phi \cdot a)^2} \sqrt{\|\tau_u\|^2 - (a \cdot u)^2}

    with a the anchor's unit tail: the head is known, and (i) bounds what the tail adds.

    Args:
        heads: The rows' heads.
        head: The residual's.
        lengths: The rows.
        facing: The residual.
        mark: What both bounds must reach.

    Returns:
        These rows.
    """
    places = places_reaching(lengths, facing, mark)
    products, errors = heads.products(head.vector, places)
    products, errors = products / head.unit, errors / head.unit + head.blur
    anchor = lengths.anchor[places]
    cosines = facing.tail_cosines[anchor]
    along, error = lengths.tail_along[places].astype(np.float64), lengths.tail_error[places].astype(np.float64)
    middle = np.abs(products + along * cosines) + errors + error * np.abs(cosines)
    across = lengths.tail_across[places] * facing.tail_sines[anchor]
    reaching = middle + (np.abs(along) + error) * facing.tail_blur + across >= mark
    return Reached(places[reaching], products[reaching], errors[reaching], int(places.shape[0]))


@dataclass(frozen=True)
class BoundKernels:
    """The two evaluations of bounds.

    Attributes:
        places_reaching: As :func:`places_reaching`.
        heads_reaching: As :func:`heads_reaching`.
    """

    places_reaching: Callable[[Lengths, Facing, float], Places] = places_reaching
    heads_reaching: Callable[[HeadRows, Head, Lengths, Facing, float], Reached] = heads_reaching
