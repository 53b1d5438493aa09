r"""Weighted sums of squares of (u_k·φ)² over the eigenvectors of T: float32 products, and their rounding bounded.

A float32 sum of 4,096 products is certain to (4096 + 3) 2⁻²⁴ of the norms only. Sums over :data:`_DEPTH` columns, the
partial sums added in float32 one by one, are certain to an eighth of that, for a tenth to a fifth more time than one
product; a float64 product takes nearly twice the time. Rows that this leaves too uncertain are multiplied in float64.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from attribution.exact_sums import inner_product_error

#: Columns summed at a time, eigenvectors at a time, rows at a time. Smaller tiles stay in a smaller cache, but each
#: product ends with threads that wait for each other, which takes longest where other programs run.
_DEPTH, _WIDTH, _ROWS = 512, 1024, 2048
#: Share of a weighted sum that the rounding of float32 may move it by.
_LARGEST_SHARE = 0.1
#: Below this float32 is denormal, and may be taken for 0.
_SMALLEST_FLOAT32 = 2.0**-126


class RotationProducts:
    """Multiplies rows with all eigenvectors and weighs the squares.

    Args:
        eigenvectors: U, one per column, shape [d, d], float64.
        weights: What the square of each product is weighed with, ≥ 0, a column per sum, shape [d, m], float64.
    """

    def __init__(self, eigenvectors: Float[Tensor, "d d"], weights: Float[Tensor, "d m"]) -> None:
        self._eigenvectors = eigenvectors
        self._weights = weights
        self._totals = torch.sqrt(weights.sum(dim=0))  # [m]
        self._rounded: Tensor | None = eigenvectors.to(torch.float32).contiguous()
        dim = eigenvectors.shape[0]
        self._float32_error = inner_product_error(min(_DEPTH, dim) + -(-dim // _DEPTH), torch.float32)
        self._float64_error = inner_product_error(dim, torch.float64)

    def weigh(self, rows: Float[Tensor, "b d"]) -> tuple[Float[Tensor, "b m"], Float[Tensor, " b"]]:
        r"""Sum the weighted squares of the products of some rows.

        Args:
            rows: Rows, shape [b, d].

        Returns:
            Σ_k w_km y_nk² with y_nk ≈ u_k·φ_n, float64, shape [b, m], and a bound of \|y_nk − u_k·φ_n\| for every k,
            shape [b].
        """
        found = [self._weigh(group) for group in torch.split(rows, _ROWS)]
        sums, errors = (torch.cat(parts) for parts in zip(*found, strict=True))
        return sums, errors

    def _weigh(self, rows: Float[Tensor, "b d"]) -> tuple[Tensor, Tensor]:
        norms = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)
        if self._rounded is not None:
            sums = self._squares(rows.to(torch.float32), self._rounded)
            # Products that vanish in float32 take no more than this with them; a row of zeros has no error.
            vanished = rows.shape[1] * _SMALLEST_FLOAT32
            errors = torch.where(norms > 0, self._float32_error * norms + vanished, 0.0)
            poor = self._poor(sums, errors)
            if not bool(poor.any()):
                return sums, errors
            if 2 * int(poor.sum()) <= poor.numel():
                sums[poor] = self._squares(rows[poor].to(torch.float64), self._eigenvectors)
                errors[poor] = self._float64_error * norms[poor]
                return sums, errors
            self._rounded = None  # this T is not for float32
        return self._squares(rows.to(torch.float64), self._eigenvectors), self._float64_error * norms

    def _poor(self, sums: Float[Tensor, "b m"], errors: Float[Tensor, " b"]) -> Bool[Tensor, " b"]:
        # The root of a sum is a norm, which moves by no more than this. What overflowed is poor as well.
        shift = errors[:, None] * self._totals
        return ~(shift * (2 * torch.sqrt(sums) + shift) <= _LARGEST_SHARE * sums).all(dim=1)

    def _squares(self, rows: Float[Tensor, "b d"], right: Float[Tensor, "d d"]) -> Float[Tensor, "b m"]:
        count, dim = rows.shape
        depth = _DEPTH if rows.dtype == torch.float32 else dim
        sums = torch.zeros(count, self._weights.shape[1], dtype=torch.float64)
        width = min(_WIDTH, dim)
        room, more = rows.new_empty(2, count * width)
        for left in range(0, dim, width):
            end = min(left + width, dim)
            total, partial = (part[: count * (end - left)].view(count, end - left) for part in (room, more))
            torch.mm(rows[:, :depth], right[:depth, left:end], out=total)
            for top in range(depth, dim, depth):
                torch.mm(rows[:, top : top + depth], right[top : top + depth, left:end], out=partial)
                total += partial
            sums.addmm_(total.to(torch.float64).square_(), self._weights[left:end])
        return sums
