"""Writing the examples table: light columns are gathered, previews stream through a spool, so memory stays small."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sketchstore.errors import ExampleValueError, listed
from sketchstore.examples import METADATA, PREVIEW_COLUMNS, Scalar
from sketchstore.manifest import NO_LABEL

ROW_GROUP_ROWS = 1024
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_INT64 = range(-(2**63), 2**63)


@dataclass(frozen=True)
class ExampleRow:
    """One example as the table keeps it. ``preview``: PNG bytes, text, or anything JSON can hold in a dict."""

    id: str
    label: int = NO_LABEL
    predicted_label: int | None = None
    metadata: Mapping[str, Scalar | None] = field(default_factory=dict)
    preview: bytes | str | Mapping[str, Any] | None = None


def write_examples_table(path: Path, rows: Iterable[ExampleRow], count: int) -> list[int]:
    """Write an examples table in row order.

    Args:
        path: The Parquet file to write; a spool lies beside it meanwhile.
        rows: The examples, in row order.
        count: How many there must be.

    Returns:
        The labels.

    Raises:
        ExampleValueError: If an id is empty or repeated, a label, metadata value or preview cannot be stored, or there
            are more or fewer rows than ``count``.
    """
    ids: list[str] = []
    labels: list[int] = []
    predicted: list[int | None] = []
    metadata: dict[str, list[Scalar | None]] = {}
    spool_path = path.with_name(f".{path.name}.spool")
    previews = pa.schema(PREVIEW_COLUMNS)
    with pa.OSFile(str(spool_path), "wb") as sink, pa.ipc.new_file(sink, previews) as spool:
        batch: dict[str, list[bytes | str | None]] = {name: [] for name in PREVIEW_COLUMNS}
        for row, example in enumerate(rows):
            _check(example, row)
            ids.append(example.id)
            labels.append(example.label)
            predicted.append(example.predicted_label)
            for name in example.metadata.keys() - metadata.keys():
                metadata[name] = [None] * row
            for name, values in metadata.items():
                values.append(example.metadata.get(name))
            column, value = _preview(example, row)
            for name, column_values in batch.items():
                column_values.append(value if name == column else None)
            if row % ROW_GROUP_ROWS == ROW_GROUP_ROWS - 1:
                spool.write_batch(pa.record_batch(batch, schema=previews))
                batch = {name: [] for name in PREVIEW_COLUMNS}
        if batch["preview_png"]:
            spool.write_batch(pa.record_batch(batch, schema=previews))
    if len(ids) != count:
        raise ExampleValueError(f"{path.name}: {len(ids)} examples were given, must be {count}")
    if len(set(ids)) != count:
        seen: set[str] = set()
        repeated = next(id for id in ids if id in seen or seen.add(id))  # type: ignore[func-returns-value]
        raise ExampleValueError(f"{path.name}: id {repeated!r} is given twice; ids must be unique")
    light: dict[str, Any] = {
        "row": pa.array(range(count), pa.int64()),
        "id": pa.array(ids, pa.string()),
        "label": pa.array(labels, pa.int64()),
        "predicted_label": pa.array(predicted, pa.int64()),
    } | {METADATA + name: _metadata_array(name, metadata[name]) for name in sorted(metadata)}
    schema = pa.schema({name: array.type for name, array in light.items()} | PREVIEW_COLUMNS)
    with (
        pa.OSFile(str(spool_path), "rb") as source,
        pa.ipc.open_file(source) as spool,
        pq.ParquetWriter(path, schema, compression="zstd") as writer,
    ):
        for group in range(spool.num_record_batches):
            batch_table = spool.get_batch(group)
            start = group * ROW_GROUP_ROWS
            columns = {name: array.slice(start, batch_table.num_rows) for name, array in light.items()}
            columns |= {name: batch_table.column(name) for name in PREVIEW_COLUMNS}
            writer.write_table(pa.table(columns, schema=schema), row_group_size=ROW_GROUP_ROWS)
        if count == 0:
            writer.write_table(schema.empty_table())
    spool_path.unlink()
    return labels


def _check(example: ExampleRow, row: int) -> None:
    if not isinstance(example.id, str) or not example.id:
        raise ExampleValueError(f"row {row}: id is {example.id!r}, must be a string that is not empty")
    predicted = NO_LABEL if example.predicted_label is None else example.predicted_label
    for what, label in (("label", example.label), ("predicted_label", predicted)):
        if isinstance(label, bool) or not isinstance(label, int) or not NO_LABEL <= label < 2**63:
            raise ExampleValueError(f"row {row}: {what} is {label!r}, must be an int of 0 or more, or -1 for none")
    for name, value in example.metadata.items():
        if not isinstance(name, str) or not name:
            raise ExampleValueError(f"row {row}: metadata name {name!r} must be a string that is not empty")
        if value is not None and not isinstance(value, str | int | float | bool):
            kind = type(value).__name__
            raise ExampleValueError(f"row {row}: metadata {name!r} is a {kind}, must be str, int, float, bool or None")
        if isinstance(value, float) and not math.isfinite(value):
            raise ExampleValueError(f"row {row}: metadata {name!r} is {value}, which is no number; give None for none")
        if isinstance(value, int) and value not in _INT64:
            raise ExampleValueError(f"row {row}: metadata {name!r} is {value}, which is no 64-bit integer")


def _preview(example: ExampleRow, row: int) -> tuple[str, bytes | str | None]:
    match example.preview:
        case None:
            return "preview_text", None
        case bytes() as png:
            if not png.startswith(PNG_MAGIC):
                raise ExampleValueError(f"row {row}: preview bytes must be a PNG image")
            return "preview_png", png
        case str() as text:
            return "preview_text", text
        case Mapping() as value:
            try:
                return "preview_json", json.dumps(value, ensure_ascii=False, allow_nan=False, sort_keys=True)
            except (TypeError, ValueError) as error:
                raise ExampleValueError(f"row {row}: preview cannot be written as JSON: {error}") from error
        case other:
            kind = type(other).__name__
            raise ExampleValueError(f"row {row}: preview is a {kind}, must be PNG bytes, str, a JSON object or None")


def _metadata_array(name: str, values: list[Scalar | None]) -> Any:
    kinds = {type(value) for value in values if value is not None}
    kind: pa.DataType
    if kinds <= {bool}:
        kind = pa.bool_()
    elif kinds <= {int}:
        kind = pa.int64()
    elif kinds <= {int, float}:
        kind = pa.float64()
    elif kinds <= {str}:
        kind = pa.string()
    else:
        found = listed(sorted(kind.__name__ for kind in kinds))
        raise ExampleValueError(f"metadata {name!r} mixes {found}; give every example the same type")
    if kinds == {int, float}:
        values = [None if value is None else float(value) for value in values]
    return pa.array(values, kind)
