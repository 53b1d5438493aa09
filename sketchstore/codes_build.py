"""Building the derived 8-bit codes of a view, streamed from its shards to the disk."""

from collections.abc import Callable
from pathlib import Path

import torch

from sketchstore.arrays import tensor_header
from sketchstore.codes import OPTIONS, encode
from sketchstore.reader import Index
from sketchstore.view import View

BLOCK_BYTES = 512 << 10  # float64 values that stay in a core's cache through all steps of the rounding


def build_codes(index: Index, view_name: str, progress: Callable[[int], object] | None = None) -> Path:
    """Write the 8-bit codes of all rows of a view and list them among the derived entries.

    Memory holds a block of rows, and 16 bytes a row for the scales and errors that follow the codes in the file.

    Args:
        index: The open index directory.
        view_name: The view.
        progress: Told how many more rows are done, block by block.

    Returns:
        The file.
    """
    view = index.view(view_name)
    return index.derived.write(
        "codes", view_name, None, OPTIONS, lambda path: _write(view, path, progress or (lambda rows: None))
    )


def _write(view: View, path: Path, progress: Callable[[int], object]) -> None:
    rows, dim = view.num_rows, view.sketch_dim
    scales, errors = torch.empty(rows, dtype=torch.float64), torch.empty(rows, dtype=torch.float64)
    block_rows = max(1, BLOCK_BYTES // (8 * dim))
    with path.open("wb") as stream:
        stream.write(
            tensor_header({"codes": ("i1", (rows, dim)), "scales": ("<f8", (rows,)), "errors": ("<f8", (rows,))})
        )
        for start in range(0, rows, block_rows):
            block = slice(start, min(rows, start + block_rows))
            encoded = encode(view.sketches(block))
            stream.write(encoded.codes.numpy().data)
            scales[block], errors[block] = encoded.scales, encoded.errors
            progress(block.stop - block.start)
        for values in (scales, errors):
            stream.write(values.numpy().astype("<f8", copy=False).data)
