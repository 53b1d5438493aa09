"""Reads the tables that text recipes learn from: TSV, CSV, JSON lines, Parquet, or a folder saved by `datasets`.

A table is read whole and as it stands: nothing is trimmed, guessed or repaired. A column of CSV or TSV without a name,
as pandas writes the rows' own numbers, is called ``Unnamed: 0`` by its place, as pandas reads it.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet

from indexer.recipe import RecipeDataError

ENDINGS = (".tsv", ".csv", ".jsonl", ".parquet")
_ALLOWED = ", ".join(f"*{ending}" for ending in ENDINGS) + " or a folder written by datasets' save_to_disk"


@dataclass(frozen=True)
class TextTable:
    """One split of a data set.

    Attributes:
        path: The file or folder it was read from.
        columns: Names of the columns, in order.
        rows: One mapping per row; text in TSV and CSV, JSON values elsewhere.
        class_names: For columns that a `datasets` folder declares as ClassLabel: the names of 0, 1, ….
    """

    path: Path
    columns: tuple[str, ...]
    rows: Sequence[Mapping[str, Any]]
    class_names: Mapping[str, tuple[str, ...]]

    def check_columns(self, wanted: Sequence[str]) -> None:
        """Refuse columns that the table lacks.

        Args:
            wanted: Their names.

        Raises:
            RecipeDataError: Naming the first that is missing and those that are there.
        """
        for name in wanted:
            if name not in self.columns:
                raise RecipeDataError(f"{self.path}: no column {name!r}; it has {', '.join(self.columns)}")


def find_table(folder: Path, names: Sequence[str]) -> Path | None:
    """Find the first of these tables in a folder.

    Args:
        folder: Where to look.
        names: Names with their ending, or without: then the usual endings are tried, and a folder of that name.

    Returns:
        The file or folder, None where there is none.
    """
    for name in names:
        exact = folder / name
        if exact.is_file() or (exact / "state.json").is_file():
            return exact
        for ending in ENDINGS:
            candidate = folder / f"{name}{ending}"
            if candidate.is_file():
                return candidate
    return None


def read_table(path: Path) -> TextTable:
    """Read a table whole.

    TSV has no quoting: a ``"`` is text. CSV is quoted as usual. Both start with a line of column names.

    Args:
        path: A file with one of the four endings, or a folder saved by `datasets`.

    Returns:
        The table.

    Raises:
        RecipeDataError: If it is none of these, is damaged, or a row has too many or too few fields.
    """
    try:
        if path.is_dir():
            return _read_datasets_folder(path)
        match path.suffix.lower():
            case ".tsv" | ".csv":
                return _read_separated(path)
            case ".jsonl":
                return _read_json_lines(path)
            case ".parquet":
                return _of_arrow(path, pyarrow.parquet.read_table(path), {})
            case _:
                raise RecipeDataError(f"{path}: not a table that can be read; allowed: {_ALLOWED}")
    except (OSError, UnicodeDecodeError, pa.ArrowException, csv.Error, json.JSONDecodeError) as error:
        raise RecipeDataError(f"{path}: cannot be read ({type(error).__name__}: {error})") from error


def _read_separated(path: Path) -> TextTable:
    text = path.read_bytes().decode("utf-8-sig")  # read_text would end a line at a carriage return within a text
    if path.suffix.lower() == ".tsv":
        lines = enumerate(text.split("\n"), 1)
        fields = [(number, line.removesuffix("\r").split("\t")) for number, line in lines if line.strip("\r")]
    else:
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        fields = [(reader.line_num, row) for row in reader if row]
    if not fields:
        raise RecipeDataError(f"{path}: empty; the first line names the columns")
    columns = tuple(name or f"Unnamed: {place}" for place, name in enumerate(fields[0][1]))
    if len(set(columns)) != len(columns):
        raise RecipeDataError(f"{path}: a column name comes twice in {', '.join(columns)}")
    rows = []
    for line, row in fields[1:]:
        if len(row) != len(columns):
            raise RecipeDataError(f"{path}: line {line} has {len(row)} fields, the first line names {len(columns)}")
        rows.append(dict(zip(columns, row, strict=True)))
    return TextTable(path, columns, rows, {})


def _read_json_lines(path: Path) -> TextTable:
    rows: list[dict[str, Any]] = []
    text = path.read_bytes().decode("utf-8-sig")
    for number, line in enumerate(text.split("\n"), 1):  # splitlines would split at U+2028
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise RecipeDataError(f"{path}: line {number} is not JSON ({error.msg} at column {error.colno})") from error
        if not isinstance(row, dict) or (rows and set(row) != set(rows[0])):
            expected = f"an object with {', '.join(rows[0])}" if rows else "an object"
            raise RecipeDataError(f"{path}: line {number} is not {expected}")
        rows.append(row)
    if not rows:
        raise RecipeDataError(f"{path}: empty; every line is a JSON object with the columns")
    return TextTable(path, tuple(rows[0]), rows, {})


def _read_datasets_folder(path: Path) -> TextTable:
    # The layout of save_to_disk: state.json lists Arrow stream files, dataset_info.json declares the features.
    state_path = path / "state.json"
    if not state_path.is_file():
        raise RecipeDataError(f"{path}: no state.json in this folder; allowed: {_ALLOWED}")
    state = json.loads(state_path.read_text(encoding="utf-8"))
    if state.get("_indices_data_files"):
        raise RecipeDataError(f"{path}: the data set holds a selection of its files; save it after flatten_indices()")
    parts = []
    for entry in state["_data_files"]:
        file = path / Path(str(entry["filename"])).name  # a name of this folder, never a path out of it
        with pa.memory_map(str(file)) as source:
            parts.append(pyarrow.ipc.open_stream(source).read_all())
    features = json.loads((path / "dataset_info.json").read_text(encoding="utf-8")).get("features") or {}
    named = {
        column: tuple(str(name) for name in feature["names"])
        for column, feature in features.items()
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
    }
    return _of_arrow(path, pa.concat_tables(parts), named)


def _of_arrow(path: Path, table: Any, class_names: Mapping[str, tuple[str, ...]]) -> TextTable:
    return TextTable(path, tuple(table.column_names), table.to_pylist(), class_names)
