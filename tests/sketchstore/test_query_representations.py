"""The queries' penultimate features: written with them, checked like every file, purged with their query."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from sketchstore.errors import DigestMismatchError, ManifestError, NotFiniteValueError, RowCountError
from sketchstore.manifest import QUERY_REPRESENTATIONS
from sketchstore.merge import merge_indexes
from sketchstore.reader import open_index, verify_index
from sketchstore.remove import remove_rows
from tests.index_factory import make_index, resign


def test_they_are_read_back_as_written(tmp_path: Path):
    index = make_index(tmp_path, representations=4)
    assert index.queries is not None
    assert index.queries.has_representations
    values = index.queries.representations()
    assert values.shape == (6, 4)
    assert values.dtype == np.float32
    assert verify_index(index.path) == []


def test_an_index_without_them_says_so(tmp_path: Path):
    index = make_index(tmp_path)
    assert index.queries is not None
    assert not index.queries.has_representations


@pytest.mark.parametrize("check", ["digests", "use"])
def test_another_byte_is_refused(tmp_path: Path, check):
    path = make_index(tmp_path, representations=4).path / QUERY_REPRESENTATIONS
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(DigestMismatchError, match="representations"):
        open_index(path.parents[1], check=check).queries.representations()


def test_another_number_of_queries_is_damage(tmp_path: Path):
    path = make_index(tmp_path, representations=4).path
    np.save(path / QUERY_REPRESENTATIONS, np.ones((5, 4), np.float32))
    resign(path)
    with pytest.raises(RowCountError, match=r"\[5, 4\], must be \[6, k\]"):
        open_index(path)


def test_values_that_are_not_finite_are_found(tmp_path: Path):
    path = make_index(tmp_path, representations=4).path
    values = np.ones((6, 4), np.float32)
    values[2, 1] = np.nan
    np.save(path / QUERY_REPRESENTATIONS, values)
    resign(path)
    found = verify_index(path)
    assert [(each.file, each.kind) for each in found] == [(QUERY_REPRESENTATIONS, NotFiniteValueError.kind)]


def test_features_of_no_queries_are_refused(tmp_path: Path):
    path = make_index(tmp_path, num_queries=0).path
    (path / "queries").mkdir()
    np.save(path / QUERY_REPRESENTATIONS, np.ones((6, 4), np.float32))
    resign(path)
    with pytest.raises(ManifestError, match="queries is null"):
        open_index(path)


def test_a_query_that_goes_takes_its_features_along(tmp_path: Path):
    # The query has the id of a training example: both are withdrawn.
    path = make_index(tmp_path, representations=4).path
    _rename_query(path, 2, "train:7")
    before = open_index(shutil.copytree(path, tmp_path / "before"))
    report = remove_rows(open_index(path), ["train:7"], purge=True)
    assert report.removed_queries == 1
    after = open_index(path)
    assert QUERY_REPRESENTATIONS in report.rewritten
    np.testing.assert_array_equal(after.queries.representations(), np.delete(before.queries.representations(), 2, 0))
    assert verify_index(path) == []


def test_a_merge_keeps_those_of_the_first_index(tmp_path: Path):
    first = make_index(tmp_path / "a", name="first", representations=4)
    second = make_index(tmp_path / "b", name="second", representations=4, seed=0)
    _rename_rows(second.path)
    merge_indexes([first, open_index(second.path)], tmp_path / "both")
    both = open_index(tmp_path / "both")
    assert both.column("representations").shape == (120, 4)
    np.testing.assert_array_equal(both.queries.representations(), first.queries.representations())


def _rename_query(path: Path, row: int, id: str) -> None:
    _rename(
        path, "queries/examples.parquet", lambda ids: [id if place == row else old for place, old in enumerate(ids)]
    )


def _rename_rows(path: Path) -> None:
    _rename(path, "examples.parquet", lambda ids: [f"more:{old}" for old in ids])


def _rename(path: Path, file: str, change) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(path / file)
    column = table.schema.get_field_index("id")
    pq.write_table(table.set_column(column, "id", pa.array(change(table.column("id").to_pylist()))), path / file)
    resign(path)
