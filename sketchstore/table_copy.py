"""Copying examples tables: lines left out, tables put one after the other, a row group in memory at a time."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sketchstore.errors import ExampleValueError
from sketchstore.examples import FIXED_COLUMNS, METADATA, PREVIEW_COLUMNS, ExampleTable
from sketchstore.kept import Kept
from sketchstore.tables import ROW_GROUP_ROWS


def copy_tables(path: Path, tables: Sequence[tuple[ExampleTable, Kept]]) -> int:
    """Write the chosen lines of several examples tables one after the other, renumbered from 0.

    Metadata that one table has and another has not are null there; what is null in all of a table has the others' type.

    Args:
        path: The Parquet file to write.
        tables: Tables as their files hold them, and which of their lines are wanted.

    Returns:
        How many lines were written.
    """
    schema = _united([table for table, _ in tables])
    written = 0
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for table, kept in tables:
            for lines in _lines(table, kept):
                columns = {name: _column(lines, name, schema.field(name).type) for name in schema.names}
                columns["row"] = pa.array(range(written, written + lines.num_rows), pa.int64())
                writer.write_table(pa.table(columns, schema=schema), row_group_size=ROW_GROUP_ROWS)
                written += lines.num_rows
        if not written:
            writer.write_table(schema.empty_table())
    return written


def _lines(table: ExampleTable, kept: Kept) -> Iterator[Any]:
    start = 0
    for batch in table.parquet.iter_batches(batch_size=ROW_GROUP_ROWS):
        chosen = pa.table(batch).filter(pa.array(kept.mask(start, start + batch.num_rows)))
        start += batch.num_rows
        if chosen.num_rows:
            yield chosen


def _column(lines: Any, name: str, kind: Any) -> Any:
    return lines.column(name).cast(kind) if name in lines.schema.names else pa.nulls(lines.num_rows, kind)


def _united(tables: Sequence[ExampleTable]) -> Any:
    """One schema for all tables.

    Returns:
        The schema: the fixed columns, every metadata, the previews.

    Raises:
        ExampleValueError: If a metadata has types that no common one holds.
    """
    kinds: dict[str, pa.DataType] = {}
    untyped: dict[str, pa.DataType] = {}
    for table in tables:
        for field in table.parquet.schema_arrow:
            if not field.name.startswith(METADATA):
                continue
            if _is_untyped(table, field):
                untyped[field.name] = field.type
                continue
            known = kinds.setdefault(field.name, field.type)
            if known == field.type:
                continue
            if {known, field.type} != {pa.int64(), pa.float64()}:
                raise ExampleValueError(
                    f"metadata {field.name.removeprefix(METADATA)!r} is {known} in one index and {field.type} in "
                    "another; give it one type and build the other index again"
                )
            kinds[field.name] = pa.float64()
    kinds = untyped | kinds
    return pa.schema(FIXED_COLUMNS | {name: kinds[name] for name in sorted(kinds)} | PREVIEW_COLUMNS)


def _is_untyped(table: ExampleTable, field: Any) -> bool:
    # A writer calls metadata that no row has a value of bool, which says nothing about the values that others have.
    if field.type != pa.bool_():
        return False
    column = table.parquet.read(columns=[field.name]).column(0)
    return bool(column.null_count == len(column))
