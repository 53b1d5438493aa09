"""The examples table: for every row an external id, its label, metadata and a preview, in Parquet, read lazily."""

import math
import re
import threading
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from sketchstore.errors import (
    ExampleTableError,
    FileHeaderError,
    MissingFileError,
    RowCountError,
    UnknownIdError,
    UnknownMetadataError,
    UnknownRowError,
    listed,
    near_names,
)
from sketchstore.first_use import PublishedFiles
from sketchstore.kept import Kept

METADATA = "metadata."
FIXED_COLUMNS: dict[str, pa.DataType] = {
    "row": pa.int64(),
    "id": pa.string(),
    "label": pa.int64(),
    "predicted_label": pa.int64(),
}
PREVIEW_COLUMNS: dict[str, pa.DataType] = {
    "preview_png": pa.binary(),
    "preview_text": pa.string(),
    "preview_json": pa.string(),
}
PREVIEW_TYPES = {
    "preview_png": "image/png",
    "preview_text": "text/plain; charset=utf-8",
    "preview_json": "application/json",
}
METADATA_TYPES = (pa.bool_(), pa.int64(), pa.float64(), pa.string())

Scalar = str | int | float | bool
#: What a metadata value must be: this one, none, one of these, or within the bounds ``gt``, ``gte``, ``lt``, ``lte``.
MetadataCondition = Scalar | None | Sequence[Scalar | None] | Mapping[str, Scalar]
BOUNDS = {"gt": pc.greater, "gte": pc.greater_equal, "lt": pc.less, "lte": pc.less_equal}


class ExampleTable:
    """The examples of a split. Nothing is read before it is asked for; previews one row group at a time.

    Args:
        files: The files of the index directory.
        file: The Parquet file inside it.
        count: Rows it must have, those that were removed not counted.
        split: "train" or "query": what default ids start with.
        kept: Which of the file's lines are rows; None for all.
    """

    def __init__(self, files: PublishedFiles, file: str, count: int, split: str, kept: Kept | None = None) -> None:
        self.count = count
        self._kept = kept or Kept(count)
        self.split = split
        self._files = files
        self._file = file
        self._lock = threading.RLock()
        self._columns: dict[str, Any] = {}
        self._group: tuple[int, pa.Table] | None = None

    @cached_property
    def parquet(self) -> pq.ParquetFile:
        """The open Parquet file, its columns and row count checked.

        Raises:
            MissingFileError: If it is not there.
            FileHeaderError: If it is not Parquet.
            ExampleTableError: If a column is missing, unknown or of another type.
            RowCountError: If it has another number of rows.
        """
        try:
            parquet = pq.ParquetFile(self._files.path(self._file))
        except FileNotFoundError as error:
            raise MissingFileError(self._file, "is not there") from error
        except (pa.ArrowException, OSError) as error:
            raise FileHeaderError(self._file, f"is not a Parquet file: {error}") from error
        schema = parquet.schema_arrow
        for name, kind in (FIXED_COLUMNS | PREVIEW_COLUMNS).items():
            if name not in schema.names or schema.field(name).type != kind:
                found = schema.field(name).type if name in schema.names else "missing"
                raise ExampleTableError(self._file, f"column {name} is {found}, must be {kind}")
        for field in schema:
            if field.name in FIXED_COLUMNS or field.name in PREVIEW_COLUMNS:
                continue
            if not field.name.startswith(METADATA) or field.type not in METADATA_TYPES:
                raise ExampleTableError(self._file, f"column {field.name} ({field.type}) is not one the format knows")
        lines = self._kept.num_places
        if parquet.metadata.num_rows != lines:
            raise RowCountError(self._file, f"has {parquet.metadata.num_rows} rows, the manifest says {lines}")
        return parquet

    def column(self, name: str) -> Any:
        """One whole column, kept once read.

        Args:
            name: The column.

        Returns:
            Its values in row order.
        """
        with self._lock:
            if name not in self._columns:
                self._columns[name] = self._kept.take_arrow(self.parquet.read(columns=[name]).column(0))
            return self._columns[name]

    @property
    def metadata_names(self) -> list[str]:
        """Names of the metadata, without the ``metadata.`` of their columns."""
        with self._lock:
            names = self.parquet.schema_arrow.names
        return [name.removeprefix(METADATA) for name in names if name.startswith(METADATA)]

    @cached_property
    def _default_ids(self) -> bool:
        ids: list[str] = self.column("id").to_pylist()
        return all(id == f"{self.split}:{row}" for row, id in enumerate(ids))

    @cached_property
    def _rows_by_id(self) -> dict[str, int]:
        return {id: row for row, id in enumerate(self.column("id").to_pylist())}

    @cached_property
    def _withdrawn_ids(self) -> frozenset[str]:
        if self._kept.whole:
            return frozenset()
        lines = ~self._kept.mask(0, self._kept.num_places)
        ids = self.parquet.read(columns=["id"]).column(0).filter(pa.array(lines))
        return frozenset(str(id) for id in ids.to_pylist())

    def row(self, id: str) -> int:
        """The row of an external id.

        Args:
            id: The id.

        Returns:
            Its row.

        Raises:
            UnknownIdError: If no example has it; it carries similar ids, or says that it was withdrawn.
        """
        with self._lock:
            if self._default_ids:
                number = id.removeprefix(f"{self.split}:")
                if number.isascii() and number.isdigit() and id == f"{self.split}:{int(number)}":
                    row = int(number)
                    if row < self.count:
                        return row
            elif (found := self._rows_by_id.get(id)) is not None:
                return found
            sample = self.column("id")[:20_000].to_pylist()
            withdrawn = id in self._withdrawn_ids
        table = "training set" if self.split == "train" else "query set"
        if withdrawn:
            raise UnknownIdError(id, table, [], example=sample[0] if sample else "", withdrawn=True)
        if self._default_ids and self.count:
            raise UnknownIdError(id, table, [], numbered=(f"{self.split}:0", f"{self.split}:{self.count - 1}"))
        # Ids that differ in a number only resemble each other and say nothing about which one was meant.
        form = _without_numbers(id)
        near = [name for name in near_names(id, sample) if _without_numbers(name) != form]
        raise UnknownIdError(id, table, near, example=sample[0] if sample else "")

    def rows(self, ids: Sequence[str]) -> Tensor:
        """The rows of some external ids, in their order.

        Args:
            ids: The ids.

        Returns:
            Rows, int64.
        """
        return torch.tensor([self.row(id) for id in ids], dtype=torch.int64)

    def id(self, row: int) -> str:
        """The external id of a row.

        Args:
            row: The row.

        Returns:
            Its id.
        """
        self._check_row(row)
        return str(self.column("id")[row].as_py())

    def label(self, row: int) -> int:
        """The label of a row.

        Args:
            row: The row.

        Returns:
            Its label; −1 for none.
        """
        self._check_row(row)
        return int(self.column("label")[row].as_py())

    def predicted_label(self, row: int) -> int | None:
        """The label the model gives to a row.

        Args:
            row: The row.

        Returns:
            The predicted label, or None where none was stored.
        """
        self._check_row(row)
        value: int | None = self.column("predicted_label")[row].as_py()
        return value

    def metadata(self, row: int) -> dict[str, Scalar | None]:
        """The metadata of a row.

        Args:
            row: The row.

        Returns:
            Values by name; None where the example has none.
        """
        self._check_row(row)
        return {name: self.column(METADATA + name)[row].as_py() for name in self.metadata_names}

    def values(self, name: str) -> tuple[list[Scalar], Tensor]:
        """Every value of a metadata column, and which of them each row has.

        Args:
            name: The metadata's name.

        Returns:
            The different values, ascending, and for each row the place of its value among them, int64; −1 for none.

        Raises:
            UnknownMetadataError: If the examples have no such metadata.
        """
        if name not in self.metadata_names:
            raise UnknownMetadataError(f"no metadata {name!r}; the metadata are {listed(self.metadata_names)}")
        column = self.column(METADATA + name)
        different = pc.unique(column).drop_null()
        different = different.take(pc.array_sort_indices(different))
        places = pc.fill_null(pc.index_in(column, value_set=different), -1)
        return different.to_pylist(), torch.from_numpy(places.to_numpy().astype(np.int64))

    def where(self, conditions: Mapping[str, MetadataCondition]) -> Tensor:
        """Rows whose metadata are as asked for.

        Args:
            conditions: By metadata name; all must hold. A row without a value is found by None alone.

        Returns:
            Rows, int64, ascending.

        Raises:
            UnknownMetadataError: If a name is unknown, or a value is of another type than the metadata, or booleans
                are given bounds.
        """
        keep = np.ones(self.count, dtype=bool)
        for name, wanted in conditions.items():
            if name not in self.metadata_names:
                raise UnknownMetadataError(f"no metadata {name!r}; the metadata are {listed(self.metadata_names)}")
            column = self.column(METADATA + name)
            if isinstance(wanted, Mapping):
                keep &= _within(name, column, wanted)
            else:
                values = list(wanted) if isinstance(wanted, Sequence) and not isinstance(wanted, str) else [wanted]
                keep &= _among(name, column, values)
        return torch.from_numpy(np.flatnonzero(keep).astype(np.int64))

    def preview(self, row: int) -> tuple[str, bytes] | None:
        """What to show of a row.

        Args:
            row: The row.

        Returns:
            Media type and content, or None where there is no preview.
        """
        self._check_row(row)
        with self._lock:
            group, offset = self._group_of(self._kept.place(row))
            if self._group is None or self._group[0] != group:
                self._group = group, self.parquet.read_row_group(group, columns=list(PREVIEW_COLUMNS))
            table = self._group[1]
        for name, media_type in PREVIEW_TYPES.items():
            value = table.column(name)[offset].as_py()
            if value is not None:
                return media_type, value if isinstance(value, bytes) else value.encode()
        return None

    def _group_of(self, line: int) -> tuple[int, int]:
        for group in range(self.parquet.num_row_groups):
            size = self.parquet.metadata.row_group(group).num_rows
            if line < size:
                return group, line
            line -= size
        raise ExampleTableError(self._file, "row groups hold fewer rows than the file says")

    def _check_row(self, row: int) -> None:
        if not 0 <= row < self.count:
            raise UnknownRowError(f"row {row} does not exist; the rows are 0 to {self.count - 1}")


def _among(name: str, column: Any, values: Sequence[Scalar | None]) -> npt.NDArray[np.bool_]:
    if pa.types.is_integer(column.type):  # JSON knows one kind of number: 5 may arrive as 5.0
        values = [int(value) if isinstance(value, float) and value.is_integer() else value for value in values]
    for value in values:
        if value is not None and not _is_of_type(value, column.type):
            raise _of_another_type(name, column, value)
    found: npt.NDArray[np.bool_] = pc.is_in(column, value_set=pa.array(values, column.type)).to_numpy().astype(bool)
    return found


def _within(name: str, column: Any, bounds: Mapping[str, Scalar]) -> npt.NDArray[np.bool_]:
    if column.type == pa.bool_():
        raise UnknownMetadataError(f"metadata {name!r} is {column.type}, which has no bounds; give true or false")
    keep = np.ones(len(column), dtype=bool)
    for bound, value in bounds.items():
        if bound not in BOUNDS:
            raise UnknownMetadataError(
                f"metadata {name!r}: there is no bound {bound!r}; the bounds are {', '.join(BOUNDS)}"
            )
        if pa.types.is_integer(column.type) and isinstance(value, float):  # the same rows, without rounding these
            value = math.ceil(value) if bound in ("gte", "lt") else math.floor(value)
        if not _is_of_type(value, column.type):
            raise _of_another_type(name, column, value)
        found = BOUNDS[bound](column, pa.scalar(value, column.type))
        keep &= pc.fill_null(found, False).to_numpy().astype(bool)
    return keep


def _of_another_type(name: str, column: Any, value: object) -> UnknownMetadataError:
    return UnknownMetadataError(f"metadata {name!r} is {column.type}; {value!r} is not of that type")


def _without_numbers(name: str) -> str:
    return re.sub(r"\d+", "0", name)


def _is_of_type(value: object, kind: pa.DataType) -> bool:
    if isinstance(value, bool):
        return bool(kind == pa.bool_())
    if isinstance(value, int):
        return kind == pa.float64() or (kind == pa.int64() and -(2**63) <= value < 2**63)
    if isinstance(value, float):
        return bool(kind == pa.float64())
    return isinstance(value, str) and kind == pa.string()
