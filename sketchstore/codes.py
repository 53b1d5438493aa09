"""8-bit codes of sketches: a quarter of the bytes to scan, with a rigorous bound on what the rounding took away."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sketchstore.arrays import Array, map_tensor

LARGEST_CODE = 127
OPTIONS = {"bits": 8}
_EPSILON = 2.0**-52  # twice the unit roundoff of float64
_SMALLEST_SCALE = 2.0**-1022  # smaller ones have no full precision


@dataclass(frozen=True)
class Codes:
    """The codes of all rows of a view: φ_n ≈ ``scales[n]`` · ``codes[n]``.

    Attributes:
        codes: int8 [n, d], memory-mapped, −127 to 127.
        scales: Measurement units per code step, float64 [n]; 0 for a row of zeros.
        errors: Upper bound of ‖φ_n − scales[n] · codes[n]‖ in measurement units, float64 [n].
    """

    codes: Array
    scales: Array
    errors: Array


class EncodedRows(NamedTuple):
    """Codes int8 [m, d], scales and errors float64 [m] of some rows."""

    codes: Tensor
    scales: Tensor
    errors: Tensor


def encode(sketches: Tensor, slack: float = 2.0) -> EncodedRows:
    r"""Round sketches to 8 bits a value.

    .. math:: s = \max_j |\phi_j| / 127, \qquad c_j = \mathrm{round}(\phi_j / s)

    The distance is taken in code steps, where nothing overflows or underflows. With u = 2⁻⁵³, x_j = φ_j / s and its
    quotient q_j in float64:

    * \|q_j − x_j\| ≤ 127 u, so the quotients are at most 127 u √d away from x, in norm;
    * q_j − c_j is exact (Sterbenz: \|q_j − c_j\| ≤ ½, and c_j = 0 changes nothing);
    * the norm of d differences is off by a factor of at most 1 + (d/2 + 2) u in any order of summation.

    ``errors`` allows both with ``_EPSILON`` = 2 u, and the few roundings of its own. Where s would be subnormal, and so
    not precise, the codes are 0 and the error is √d max_j \|φ_j\|.

    Args:
        sketches: Sketches in measurement units, float64 [m, d].
        slack: How many times over the roundings are allowed for. 1 is a rigorous bound already; the 2 of a writer
            leaves a checker that sums in another order, and allows 1, below what was written.

    Returns:
        The codes, scales and errors.
    """
    dim = sketches.shape[1]
    largest = torch.linalg.vector_norm(sketches, math.inf, dim=1)
    scales = largest / LARGEST_CODE
    scales[scales < _SMALLEST_SCALE] = 0.0
    codable = scales > 0
    steps = sketches / torch.where(codable, scales, math.inf).unsqueeze(1)
    codes = steps.round()
    distances = torch.linalg.vector_norm(steps.sub_(codes), dim=1)  # in code steps
    allowed = slack * _EPSILON
    errors = scales * (distances * (1 + allowed * (dim + 4)) + allowed * LARGEST_CODE * math.sqrt(dim))
    errors = torch.where(codable, errors, largest * math.sqrt(dim)) * (1 + 4 * allowed)
    return EncodedRows(codes.to(torch.int8), scales, errors)


def map_codes(path: Path, file: str, num_rows: int, sketch_dim: int) -> Codes:
    """Map a file of codes into memory.

    Args:
        path: The file.
        file: Its name in messages.
        num_rows: n.
        sketch_dim: d.

    Returns:
        The codes.
    """
    per_row = (num_rows,)
    return Codes(
        codes=map_tensor(path, file, "codes", dtype=np.int8, shape=(num_rows, sketch_dim)),
        # After n·d bytes of codes these may begin anywhere; an unaligned array is copied.
        scales=np.require(map_tensor(path, file, "scales", dtype="<f8", shape=per_row), requirements="A"),
        errors=np.require(map_tensor(path, file, "errors", dtype="<f8", shape=per_row), requirements="A"),
    )
