"""The proof of a purge reads back every file that rows are in: what is planted of a purged row is not published."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sketchstore import remove
from sketchstore.arrays import tensor_file_bytes
from sketchstore.errors import PurgeError
from sketchstore.kept import Kept
from sketchstore.merge import merge_indexes
from sketchstore.reader import Index, open_index, verify_index
from sketchstore.remove import remove_rows
from tests.index_factory import make_index, png, resign

GONE = "train:3"
PREVIEW = pa.array([png(3)], pa.binary())


def with_query_of(index: Index, id: str, *, query: int = 2) -> Index:
    """Give one of its queries an id."""
    path = index.path / "queries/examples.parquet"
    table = pq.read_table(path)
    ids = table.column("id").to_pylist()
    ids[query] = id
    pq.write_table(table.set_column(table.schema.get_field_index("id"), "id", pa.array(ids)), path)
    resign(index.path)
    return open_index(index.path)


def unused_in_a_dictionary(path: Path, table: pa.Table) -> None:
    # What a column that is encoded before it is filtered does: no row has the value, and the file does.
    column = table.column("preview_png").combine_chunks()
    codes = pa.array(range(len(column)), pa.int32(), mask=np.asarray(column.is_null()))
    encoded = pa.DictionaryArray.from_arrays(codes, pa.concat_arrays([column, PREVIEW]))
    place = table.schema.get_field_index("preview_png")
    pq.write_table(table.set_column(place, "preview_png", encoded), path, store_schema=False, compression="none")
    assert png(3) in path.read_bytes()
    assert png(3) not in pq.read_table(path).column("preview_png").to_pylist()


def shown_for_another(path: Path, table: pa.Table) -> None:
    previews = table.column("preview_png").to_pylist()
    place = table.schema.get_field_index("preview_png")
    shown = pa.array([png(3), *previews[1:]], pa.binary())
    pq.write_table(table.set_column(place, "preview_png", shown), path, compression="zstd")


def metadata_of_another(path: Path, table: pa.Table) -> None:
    place = table.schema.get_field_index("metadata.weight")
    weights = pa.array([0.75, *table.column("metadata.weight").to_pylist()[1:]])
    pq.write_table(table.set_column(place, "metadata.weight", weights), path, compression="zstd")


def beside_the_columns(path: Path, table: pa.Table) -> None:
    pq.write_table(table.replace_schema_metadata({"dropped": GONE}), path, compression="zstd")


def between_the_pages(path: Path, table: pa.Table) -> None:
    # Behind the magic and in front of the footer, at a place that no column points at.
    data = path.read_bytes()
    footer = 8 + int.from_bytes(data[-8:-4], "little")
    path.write_bytes(data[:-footer] + GONE.encode() + data[-footer:])
    assert pq.read_table(path).equals(table)


def in_a_file_beside(path: Path, table: pa.Table) -> None:
    path.with_name(".examples.parquet.spool").write_bytes(png(3))


LEFTOVERS = [
    unused_in_a_dictionary,
    shown_for_another,
    metadata_of_another,
    beside_the_columns,
    between_the_pages,
    in_a_file_beside,
]


@pytest.mark.parametrize("leave", LEFTOVERS)
def test_a_leftover_in_the_examples_is_found_and_not_published(tmp_path, monkeypatch, leave):
    index, copy = make_index(tmp_path), remove.copy_tables

    def careless(path: Path, tables: Any) -> int:
        written = copy(path, tables)
        leave(path, pq.read_table(path))
        return written

    monkeypatch.setattr(remove, "copy_tables", careless)
    with pytest.raises(PurgeError, match=r"examples\.parquet.* does not hold exactly the rows that stay"):
        remove_rows(index, [GONE], purge=True)
    assert open_index(index.path).revision == index.revision
    assert verify_index(index.path) == []


@pytest.mark.parametrize("purge", [True, False], ids=["purge", "remove"])
@pytest.mark.parametrize("file", ["own.safetensors", "representations.npy", "examples.parquet"])
def test_a_leftover_in_the_queries_is_found_and_not_published(tmp_path, monkeypatch, file, purge):
    index, copy = with_query_of(make_index(tmp_path, representations=4), GONE), remove.copy_tables

    def tensors(arrays: Any) -> bytes:
        return tensor_file_bytes({**arrays, "sketches": arrays["sketches"][::-1]})

    def column(path: Path, parts: Any) -> None:
        with path.open("wb") as stream:
            np.save(stream, parts[0] + 1)

    def table(path: Path, tables: Any) -> None:
        [(found, _)] = tables
        whole = Kept(found.count) if found.split == "query" else tables[0][1]
        copy(path, [(found, whole)])

    careless: dict[str, tuple[str, Callable[..., Any]]] = {
        "own.safetensors": ("tensor_file_bytes", tensors),
        "representations.npy": ("write_column", column),
        "examples.parquet": ("copy_tables", table),
    }
    monkeypatch.setattr(remove, *careless[file])
    with pytest.raises(PurgeError, match=f"queries/{file}"):
        remove_rows(index, [GONE], purge=purge)
    assert open_index(index.path).revision == index.revision


def test_a_query_that_a_merge_brought_goes_with_the_purge_of_its_id(tmp_path):
    first, second = with_query_of(make_index(tmp_path), "more:1"), make_index(tmp_path, name="more", num_rows=20)
    table = pq.read_table(second.path / "examples.parquet")
    ids = pa.array([f"more:{row}" for row in range(20)])
    pq.write_table(table.set_column(1, "id", ids), second.path / "examples.parquet")
    resign(second.path)
    remove_rows(open_index(second.path), ["more:1"])
    merge_indexes([first, open_index(second.path)], tmp_path / "both")
    both = open_index(tmp_path / "both")
    assert "more:1" in both.queries.examples.column("id").to_pylist()
    report = remove_rows(both, [], purge=True)
    assert (report.removed_rows, report.removed_queries, report.purged_rows) == (0, 1, 1)
    found = open_index(both.path)
    assert "more:1" not in found.queries.examples.column("id").to_pylist()
    assert verify_index(both.path) == []


def test_a_query_that_shows_the_same_under_an_id_of_its_own_stays(tmp_path):
    index = make_index(tmp_path)
    path = index.path / "queries/examples.parquet"
    table = pq.read_table(path)
    place, text = table.schema.get_field_index("preview_png"), table.schema.get_field_index("preview_text")
    shown = table.set_column(place, "preview_png", pa.array([png(3)] * 6)).set_column(
        text, "preview_text", pa.nulls(6, pa.string())
    )
    pq.write_table(shown, path)
    resign(index.path)
    report = remove_rows(open_index(index.path), [GONE], purge=True)
    assert report.removed_queries == 0
    assert open_index(index.path).queries.examples.preview(0) == ("image/png", png(3))


def test_the_last_query_can_go(tmp_path):
    index = with_query_of(make_index(tmp_path, num_queries=1, representations=4), GONE, query=0)
    assert remove_rows(index, [GONE], purge=True).removed_queries == 1
    assert open_index(index.path).queries.count == 0
    assert verify_index(index.path) == []


def test_a_table_of_many_row_groups_and_kinds_of_values_is_proven(tmp_path):
    previews = [png(row) if row % 3 == 0 else f"text {row}" if row % 3 == 1 else {"row": row} for row in range(2600)]
    index = make_index(tmp_path, num_rows=2600, dim=4, previews=previews, shard_rows=1024)
    gone = [f"train:{row}" for row in (*range(1024), 1030, 2599)]  # a whole row group, and some
    assert remove_rows(index, gone, purge=True).num_rows == 2600 - len(gone)
    found = open_index(index.path)
    assert found.examples.preview(0) == ("text/plain; charset=utf-8", b"text 1024")
    assert verify_index(index.path) == []
