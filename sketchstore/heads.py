"""Heads of sketches: their part in a view's leading principal directions at 8 bits, and the length of what is left.

A product with a residual is then known in the head, and Cauchy and Schwarz have to bound the tail alone.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from pydantic import JsonValue
from torch import Tensor

from sketchstore.arrays import Array, map_tensor
from sketchstore.codes import encode

#: How far a computed B Bᵀ may be from the identity, in any entry.
MAX_DEPARTURE = 1e-12
#: How many times over a writer allows for roundings. 1 is a rigorous bound already; a checker, which allows 1, sums in
#: another order and so finds heads and lengths that are off by up to 2 more.
WRITER_SLACK = 4.0
_DIMS_PER_DIRECTION = 16
_EPSILON = 2.0**-52  # twice the unit roundoff of float64
_UNDERFLOW = 2.0**-500  # more than all that underflows in a row's sums, in norm


@dataclass(frozen=True)
class Heads:
    r"""The heads h_n = B φ_n ≈ ``scales[n]`` · ``codes[n]`` of all rows of a view, and their tails φ_n − Bᵀ h_n.

    For every vector r

    .. math:: |\phi_n \cdot r - s_n c_n \cdot B r| \le e_n \|B r\| + t_n \|r - B^\top B r\|

    Attributes:
        basis: B, orthonormal rows up to rounding, float64 [k, d].
        codes: int8 [n, k], memory-mapped, −127 to 127.
        scales: Measurement units per code step, float64 [n]; 0 where the head is zero.
        errors: Upper bound of ‖B φ_n − scales[n] · codes[n]‖ in measurement units, float64 [n].
        tails: Upper bound of ‖φ_n − Bᵀ B φ_n‖ in measurement units, float64 [n].
    """

    basis: Array
    codes: Array
    scales: Array
    errors: Array
    tails: Array


class EncodedHeads(NamedTuple):
    """Codes int8 [m, k]; scales, errors and tails float64 [m] of some rows."""

    codes: Tensor
    scales: Tensor
    errors: Tensor
    tails: Tensor


class Projected(NamedTuple):
    """Heads float64 [m, k] as computed; bounds of how wrong they are and of the tails, float64 [m]."""

    heads: Tensor
    allowed: Tensor
    tails: Tensor


def head_dim(sketch_dim: int) -> int:
    """How many directions a head has.

    Args:
        sketch_dim: d.

    Returns:
        k, a sixteenth of d, and at least 1.
    """
    return max(1, sketch_dim // _DIMS_PER_DIRECTION)


def head_options(sketch_dim: int) -> dict[str, JsonValue]:
    """The options of a derived entry of heads.

    Args:
        sketch_dim: d.

    Returns:
        The options.
    """
    return {"bits": 8, "directions": head_dim(sketch_dim)}


def heads_bytes(num_rows: int, sketch_dim: int) -> int:
    """Size of a file of heads.

    Args:
        num_rows: n.
        sketch_dim: d.

    Returns:
        Bytes, without the header.
    """
    count = head_dim(sketch_dim)
    return 8 * count * sketch_dim + num_rows * (count + 24)


def departure(basis: Tensor) -> float:
    """How far rows are from orthonormal.

    Args:
        basis: B, float64 [k, d].

    Returns:
        The largest entry of |B Bᵀ − I|; NaN if B holds one.
    """
    return float((basis @ basis.T - torch.eye(basis.shape[0], dtype=basis.dtype)).abs().max())


def project(sketches: Tensor, basis: Tensor, slack: float) -> Projected:
    r"""Heads of sketches, with what rounding and the basis may have done to them.

    B is what is stored, so what its entries were meant to be does not matter, only that it is nearly orthonormal. With
    u = 2⁻⁵³ and ω = ``MAX_DEPARTURE`` + 2 d u, no entry of B Bᵀ − I is above ω, so its norm is not above k ω, and

    .. math:: \|\phi - B^\top h\|^2 = \|\phi\|^2 - \|h\|^2 + h^\top (B B^\top - I) h
              \le \|\phi\|^2 - \|h\|^2 + k \omega \|h\|^2.

    In float64, whatever the order of the sums, each value of h is wrong by at most d u ‖φ‖ and h by √k times that, so
    ‖h‖² by 2 √k d u ‖φ‖² and the two squared lengths by (d + 3) u and (k + 3) u of themselves. ``slack`` times
    2 u (d + 4)(2 + √k) is more than all of this together, and k ω is added to it. (Products of B and φ that leave the
    range of float64 are covered by ``_UNDERFLOW``.)

    The allowance for h holds k ω ‖φ‖ as well, although h does not need it: in

    .. math:: \phi \cdot r = h \cdot B r + (\phi - B^\top h) \cdot (r - B^\top B r) - h^\top (B B^\top - I) B r

    it bounds the last term, and errors ‖B r‖ + tails ‖r − BᵀB r‖ is a bound without a third term.

    Args:
        sketches: Sketches in measurement units, float64 [m, d].
        basis: B, float64 [k, d], of ``departure`` at most ``MAX_DEPARTURE``.
        slack: How many times over the roundings are allowed for, at least 1.

    Returns:
        The heads, their allowances and the bounds of the tails.
    """
    count, dim = basis.shape
    heads = sketches @ basis.T
    lengths, head_lengths = (torch.linalg.vector_norm(part, dim=1) for part in (sketches, heads))
    omega = MAX_DEPARTURE + _EPSILON * dim
    relative = slack * _EPSILON * (dim + 4) * (2 + math.sqrt(count)) + count * omega
    squared = lengths.square()
    tails = (squared - head_lengths.square()).clamp_(min=0).add_(squared, alpha=relative).sqrt_()
    return Projected(heads, lengths * relative + _UNDERFLOW, tails * (1 + 4 * _EPSILON) + _UNDERFLOW)


def encode_heads(sketches: Tensor, basis: Tensor) -> EncodedHeads:
    """Heads at 8 bits a value.

    Args:
        sketches: Sketches in measurement units, float64 [m, d].
        basis: B, float64 [k, d].

    Returns:
        The codes, scales, errors and tails.
    """
    projected = project(sketches, basis, WRITER_SLACK)
    encoded = encode(projected.heads)
    return EncodedHeads(encoded.codes, encoded.scales, encoded.errors + projected.allowed, projected.tails)


def least_errors(projected: Projected, codes: Tensor, scales: Tensor) -> Tensor:
    """The smallest errors that a checker accepts for codes of heads.

    Args:
        projected: The heads with their allowances, of slack 1.
        codes: int8 [m, k].
        scales: float64 [m].

    Returns:
        Upper bounds of the distances in measurement units, float64 [m].
    """
    distances: Tensor = torch.linalg.vector_norm(projected.heads - scales.unsqueeze(1) * codes, dim=1)
    return distances * (1 + _EPSILON * (codes.shape[1] + 4)) + projected.allowed


def map_heads(path: Path, file: str, num_rows: int, sketch_dim: int) -> Heads:
    """Map a file of heads into memory.

    Args:
        path: The file.
        file: Its name in messages.
        num_rows: n.
        sketch_dim: d.

    Returns:
        The heads.
    """
    count = head_dim(sketch_dim)

    def aligned(name: str, *shape: int) -> Array:  # after the bytes of the codes an array may begin anywhere
        return np.require(map_tensor(path, file, name, dtype="<f8", shape=shape), requirements="A")

    return Heads(
        basis=aligned("basis", count, sketch_dim),
        codes=np.asarray(map_tensor(path, file, "codes", dtype=np.int8, shape=(num_rows, count))),
        scales=aligned("scales", num_rows),
        errors=aligned("errors", num_rows),
        tails=aligned("tails", num_rows),
    )
