"""Stores the rows of one block in the unfinished index: in the process that holds the build, or in one that helps it.

Blocks lie at places of their own, so several processes may store different blocks at once. Only the holder of the
build's lock writes the journal: a block whose line never got there is redone whole.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import Tensor

from sketchstore.arrays import Array
from sketchstore.block_files import BlockFiles
from sketchstore.border import as_array, as_column, check_finite
from sketchstore.digests import digest_bytes
from sketchstore.errors import SketchBlockError, listed
from sketchstore.float16 import to_float16
from sketchstore.journal import BlockLine
from sketchstore.plan import Block, BuildPlan


class BlockWriter:
    """Writes blocks into shards and columns, without a word in the journal.

    Args:
        content: The directory that becomes the index.
        plan: The build plan.
    """

    def __init__(self, content: Path, plan: BuildPlan) -> None:
        self._plan = plan
        self._files = BlockFiles(content, plan)

    def write(
        self,
        block: Block,
        sketches: Mapping[str, npt.NDArray[np.float32] | Tensor],
        columns: Mapping[str, Array | Tensor] | None,
        scales: Mapping[str, int],
        *,
        started: bool,
    ) -> BlockLine:
        """Store the sketches of one block, and per-row values computed with them, synced.

        Args:
            block: The block.
            sketches: float32 [rows, d] in true units, for every view of the plan.
            columns: Per-row values by column name, first axis the block's rows; the same columns for every block.
            scales: The scale exponents by view; zeros for float32.
            started: Whether other blocks, and so the columns' files, are written already.

        Returns:
            The line that the journal gets once the block counts as finished.

        Raises:
            SketchBlockError: If an array has another shape or type than the plan says.
        """
        if set(sketches) != set(self._plan.views):
            raise SketchBlockError(f"sketches for views {listed(sketches)}, the plan has {listed(self._plan.views)}")
        stored: dict[str, Array] = {}
        subnormal: dict[str, int] = {}
        for view, values in sketches.items():
            array = as_array(values)
            what = f"view {view!r}, block {block.number}"
            if array.dtype != np.float32 or array.shape != (block.rows, self._plan.sketch.dim):
                raise SketchBlockError(
                    f"{what}: sketches are {array.dtype} {list(array.shape)}, must be float32 "
                    f"[{block.rows}, {self._plan.sketch.dim}]"
                )
            check_finite(array, what, block.start)
            if self._plan.dtype == "float16":
                stored[view], subnormal[view] = to_float16(array, scales[view], what)
            else:
                stored[view], subnormal[view] = array, 0
        column_arrays = {name: as_column(name, values, block.rows) for name, values in (columns or {}).items()}
        for view, array in stored.items():
            self._files.write_sketches(view, block, np.ascontiguousarray(array))
        for name, array in column_arrays.items():
            self._files.write_column(name, block, array, started=started)
        return BlockLine(
            block=block.number,
            sketches={view: digest_bytes(array.tobytes()) for view, array in stored.items()},
            subnormal=subnormal,
            columns={name: digest_bytes(array.tobytes()) for name, array in column_arrays.items()},
        )
