"""Building the derived heads of a view: directions from a sample of its rows, then one pass over all of them."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from sketchstore.arrays import tensor_header
from sketchstore.heads import MAX_DEPARTURE, departure, encode_heads, head_dim, head_options
from sketchstore.principal_directions import leading_directions
from sketchstore.reader import Index
from sketchstore.view import View

SAMPLE_ROWS = 4096


def build_heads(index: Index, view_name: str, progress: Callable[[int], object] | None = None) -> Path:
    """Write the heads of all rows of a view and list them among the derived entries.

    Memory holds the sample in float32, the basis, a block of rows, and 24 bytes a row for what follows the codes in
    the file.

    Args:
        index: The open index directory.
        view_name: The view.
        progress: Told how many more rows are done, block by block.

    Returns:
        The file.
    """
    view = index.view(view_name)
    options = head_options(view.sketch_dim)
    return index.derived.write(
        "heads", view_name, None, options, lambda path: _write(view, path, progress or (lambda rows: None))
    )


def _basis(view: View) -> Tensor:
    sampled = min(view.num_rows, SAMPLE_ROWS)
    rows = torch.arange(sampled) * view.num_rows // sampled
    largest = max(float(sketches.abs().max()) for _, sketches in view.blocks(rows=rows))
    sample = torch.empty(sampled, view.sketch_dim)
    done = 0
    for here, sketches in view.blocks(rows=rows):  # float32 may not hold the sketches' squares, those of these it does
        sample[done : done + here.numel()] = sketches.div_(largest or 1.0)
        done += here.numel()
    basis = leading_directions(sample, head_dim(view.sketch_dim))
    assert departure(basis) <= MAX_DEPARTURE
    return basis


def _write(view: View, path: Path, progress: Callable[[int], object]) -> None:
    rows, basis = view.num_rows, _basis(view)
    count, dim = basis.shape
    columns = {name: torch.empty(rows, dtype=torch.float64) for name in ("scales", "errors", "tails")}
    tensors = {"basis": ("<f8", (count, dim)), "codes": ("i1", (rows, count))}
    with path.open("wb") as stream:
        stream.write(tensor_header({**tensors, **{name: ("<f8", (rows,)) for name in columns}}))
        stream.write(basis.numpy().astype("<f8", copy=False).data)
        for here, sketches in view.blocks():
            encoded = encode_heads(sketches, basis)
            stream.write(encoded.codes.numpy().data)
            for name, values in columns.items():
                values[here] = getattr(encoded, name)
            progress(here.numel())
        for values in columns.values():
            stream.write(values.numpy().astype("<f8", copy=False).data)
