r"""Gradients of weights as factors: what a sketch needs that forms an entry where it uses it, and writes none.

Where an example has few positions, its gradient :math:`G = \sum_p u_p v_p^\top` is far longer than u and v together,
and writing and reading it costs more than computing it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

MOST_POSITIONS = 32
"""Beyond it a batched product to memory is as fast: 16 positions take 0.6 of its time, 64 the same, 256 1.4 times."""
FEWEST_ROWS = 8
"""Rows of a batch below which the kernel's sixteen lanes would mostly hold nothing."""
LEAST_SIDE = 4
"""Rows and columns that a weight must have."""


@dataclass(frozen=True)
class Factors:
    """Gradients [b, rows, columns] of one weight, as what they are made of.

    Entry [o, c] of an example is Σ_p left[o · row_step + p · position_step] · right[columns[c] + positions[p]].

    Attributes:
        left: float32 [b, …], what stands on the rows.
        right: float32 [b, …], what stands on the columns.
        row_step: Places in `left` from one row to the next.
        position_step: Places in `left` from one position to the next.
        num_rows: Rows of the weight.
        columns: Place in `right` of each column, int64 [columns].
        positions: What a position adds to it, int64 [positions].
    """

    left: Tensor
    right: Tensor
    row_step: int
    position_step: int
    num_rows: int
    columns: Tensor
    positions: Tensor

    @property
    def num_parameters(self) -> int:
        """Entries of the weight."""
        return self.num_rows * len(self.columns)

    def formed(self) -> Tensor:
        """The gradients themselves.

        Returns:
            float32 [b, rows · columns].
        """
        steps = self.row_step * torch.arange(self.num_rows)[:, None]
        left = self.left[:, steps + self.position_step * torch.arange(len(self.positions))]
        right = self.right[:, self.columns[:, None] + self.positions]
        return (left @ right.transpose(1, 2)).flatten(1)


def position_factors(left: Tensor, right: Tensor) -> Factors:
    """Factors of a weight that does the same at every position.

    Args:
        left: What stands on the rows, [b, positions, rows].
        right: What stands on the columns, [b, positions, columns].

    Returns:
        The factors.
    """
    positions, rows = left.shape[1:]
    width = right.shape[2]
    return Factors(
        left=left.flatten(1),
        right=right.flatten(1),
        row_step=1,
        position_step=rows,
        num_rows=rows,
        columns=torch.arange(width),
        positions=width * torch.arange(positions),
    )


def convolution_factors(
    delta: Tensor, images: Tensor, kernel: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int]
) -> Factors:
    """Factors of a convolution without groups: patches are places in the padded images, and need not be copied.

    Args:
        delta: The gradient at the output, [b, out, height, width] or [b, out, width].
        images: The padded input, [b, channels, H, W].
        kernel: Height and width of a patch.
        stride: Steps between patches.
        dilation: Steps within a patch.

    Returns:
        The factors.
    """
    _, channels, height, width = images.shape
    flat = delta.flatten(2)
    tall = (height - dilation[0] * (kernel[0] - 1) - 1) // stride[0] + 1
    wide = (width - dilation[1] * (kernel[1] - 1) - 1) // stride[1] + 1
    within = width * dilation[0] * torch.arange(kernel[0])[:, None] + dilation[1] * torch.arange(kernel[1])
    columns = height * width * torch.arange(channels)[:, None] + within.flatten()
    positions = width * stride[0] * torch.arange(tall)[:, None] + stride[1] * torch.arange(wide)
    return Factors(
        left=flat.flatten(1),
        right=images.flatten(1),
        row_step=flat.shape[2],
        position_step=1,
        num_rows=flat.shape[1],
        columns=columns.flatten(),
        positions=positions.flatten(),
    )
