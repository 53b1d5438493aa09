"""What the writer refuses at its border: arrays of another shape or type than planned, NaN and infinities."""

import numpy as np
from pydantic import TypeAdapter
from torch import Tensor

from sketchstore.arrays import Array
from sketchstore.errors import NotFiniteSketchError, SketchBlockError, listed
from sketchstore.manifest import NO_LABEL, ColumnName

COLUMN_DTYPES = ("int64", "float32", "float64")


def as_array(values: Array | Tensor) -> Array:
    """A tensor or array as an array.

    Args:
        values: On any device.

    Returns:
        The values, without a copy where there need be none.
    """
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else values


def as_column(name: str, values: Array | Tensor, rows: int) -> Array:
    """Per-row values as they are stored.

    Args:
        name: The column.
        values: What was given.
        rows: How many rows there must be.

    Returns:
        The values, C-contiguous.

    Raises:
        SketchBlockError: If the name is taken, or the type, shape or a label is not allowed.
    """
    TypeAdapter(ColumnName).validate_python(name)
    array = np.ascontiguousarray(as_array(values))
    if name.startswith("squared_norms"):
        raise SketchBlockError(f"column {name!r} is computed at publication from the stored sketches")
    if array.dtype.name not in COLUMN_DTYPES or array.ndim == 0 or len(array) != rows:
        raise SketchBlockError(
            f"column {name!r} is {array.dtype} {list(array.shape)}, must be one of {listed(COLUMN_DTYPES)} with "
            f"{rows} rows"
        )
    if name in ("labels", "predicted_labels") and (
        array.dtype != np.int64 or array.ndim != 1 or array.min(initial=0) < NO_LABEL
    ):
        raise SketchBlockError(f"column {name!r} must be int64 [{rows}], each 0 or more, or -1 for none")
    check_finite(array, f"column {name!r}", 0)
    return array


def check_finite(array: Array, what: str, first_row: int) -> None:
    """Refuse NaN and infinities.

    Args:
        array: What was given, first axis rows.
        what: Its name, for the message.
        first_row: The row number of its first row.

    Raises:
        NotFiniteSketchError: If there is one; it names the row.
    """
    finite = np.isfinite(array)
    if not finite.all():
        row = int(np.argwhere(~finite)[0][0])
        raise NotFiniteSketchError(f"{what}: row {first_row + row} holds NaN or an infinity")


def as_queries(
    file: str, sketches: Array, query_rows: Array, targets: Array, count: int, sketch_dim: int
) -> dict[str, Array]:
    """Query sketches as the tensors of their file.

    Args:
        file: The file, for messages.
        sketches: float32 [M, d] in true units.
        query_rows: [M], each 0 to ``count`` − 1.
        targets: Target labels [M]; −1 for a measurement without a target.
        count: How many queries there are.
        sketch_dim: d.

    Returns:
        Tensors by name.

    Raises:
        SketchBlockError: If an array does not fit, or a query row and target is given twice.
    """
    if sketches.dtype != np.float32 or sketches.ndim != 2 or sketches.shape[1] != sketch_dim:
        raise SketchBlockError(
            f"{file}: sketches are {sketches.dtype} {list(sketches.shape)}, must be float32 [M, {sketch_dim}]"
        )
    rows, labels = query_rows.astype(np.int64), targets.astype(np.int64)
    if rows.shape != (len(sketches),) or labels.shape != (len(sketches),):
        raise SketchBlockError(f"{file}: query rows and target labels must have shape [{len(sketches)}]")
    if len(rows) and (rows.min() < 0 or rows.max() >= count or labels.min() < NO_LABEL):
        raise SketchBlockError(f"{file}: query rows must be 0 to {count - 1}, target labels -1 or more")
    if len(set(zip(rows.tolist(), labels.tolist(), strict=True))) != len(rows):
        raise SketchBlockError(f"{file}: a query row and target label is given twice")
    check_finite(sketches, file, 0)
    return {"sketches": sketches, "query_rows": rows, "target_labels": labels}
