"""By how much the mean error of a kronecker sketch varies over seeds, found from further blocks of its weights.

Theory has a bound for one pair of gradients (`theory.kronecker_variance_bound`); for a mean over many pairs, whose
errors go together, it would need every weight's gradients at once. But a weight's B blocks are independent and of one
kind, so that the scatter of more such blocks is the variance of one, and a B-th of it that of the index's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from indexer.exact_kernel import ExactKernel, Pairs, mean_square
from indexer.jacobians import Slab
from indexer.parameters import ParameterList
from indexer.sketches.kronecker import KroneckerSketch
from indexer.sketches.kronecker_plan import MatrixPart, VectorPart, kronecker_spec, read_parts
from indexer.sketches.spec import SketchSpec

BLOCKS = 16
"""Blocks of every weight: their scatter is right to about a fifth for one weight, and to less for many together."""


class BlockScatter:
    """Further blocks of every weight of a kronecker sketch, filled by the slabs of an exact kernel as they pass by.

    Attributes:
        spec: The sketch whose mean error is asked about.
    """

    def __init__(
        self,
        spec: SketchSpec,
        parameters: ParameterList,
        rows: int,
        *,
        device: torch.device | None = None,
        num_threads: int | None = None,
    ) -> None:
        """Lay out the blocks.

        Args:
            spec: The sketch.
            parameters: The coordinates.
            rows: n, the rows whose slabs will pass.
            device: Where the slabs are; None means the CPU.
            num_threads: Threads of the compiled kernels; None takes torch's number.
        """
        self.spec = spec
        self._parameters = parameters
        self._parts = read_parts(spec, parameters)
        more = [
            replace(part, blocks=BLOCKS) if isinstance(part, MatrixPart) else replace(part, dim=1)
            for part in self._parts
        ]
        # Another seed: blocks that the index has itself would share its error.
        dim, seed = sum(part.dim for part in more), (spec.seed + 1) % 2**64
        self._sketch = KroneckerSketch(kronecker_spec(parameters, dim, seed, more), parameters, num_threads)
        self._values = torch.zeros(rows, dim, device=device)

    def watch(self, slabs: Iterable[Slab]) -> Iterator[Slab]:
        """Let slabs pass on to an exact kernel, and fill the blocks with them.

        Args:
            slabs: Slabs of all rows.

        Yields:
            The same slabs.
        """
        for slab in slabs:
            self._sketch.add(slab.gradients, slab.offset, self._values)
            yield slab

    def mean_error_variance(self, exact: ExactKernel, pairs: Pairs) -> Tensor:
        r"""Variance over seeds of the mean error of pairs of sketched inner products.

        Weights are independent, so their variances add: :math:`s^2/B` each, s² the variance of the mean over pairs
        between blocks. The vector part adds the :math:`2\|M\|_F^2/k` of k dense signs, M the mean of its symmetrised
        g g′ᵀ, which leaves out a term that is never positive (`kernel_errors`).

        Args:
            exact: Exact products of the same rows, part by part.
            pairs: The pairs.

        Returns:
            The variance, float64 [].
        """
        total = torch.zeros((), dtype=torch.float64)
        start = 0
        for number, part in enumerate(self._parts):
            if isinstance(part, VectorPart):
                if part.dim < sum(each.size for each in self._parameters if each.name in part.parameters):
                    total = total + 2 * mean_square(exact.part_kernels[number], pairs) / part.dim
                continue
            blocks = self._values[:, start : start + BLOCKS * part.row_dim * part.column_dim].cpu().double()
            blocks = blocks.view(-1, BLOCKS, part.row_dim * part.column_dim)
            # A number's scale has 1/√BLOCKS in it; each block alone estimates the whole.
            means = BLOCKS * (blocks[pairs.first] * blocks[pairs.second]).sum(2).mean(0)
            total = total + means.var() / part.blocks
            start += BLOCKS * part.row_dim * part.column_dim
        return total
