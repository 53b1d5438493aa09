"""What is read from an index is what was written: sketches, norms, partitions, examples, queries, derived entries."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sketchstore.derived import StoredSpectrum
from sketchstore.errors import (
    IncompatibleSketchError,
    IndexNotFoundError,
    MissingDerivedError,
    MissingQuerySketchError,
    StaleDerivedError,
    UnknownColumnError,
    UnknownIdError,
    UnknownLabelError,
    UnknownMetadataError,
    UnknownRowError,
    UnknownViewError,
)
from sketchstore.examples import ExampleTable
from sketchstore.first_use import PublishedFiles
from sketchstore.manifest import Parameter, Sketch
from sketchstore.reader import open_index
from sketchstore.tables import ExampleRow, write_examples_table
from tests.index_factory import make_contents, make_index, make_plan


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return make_index(tmp_path_factory.mktemp("index"))


@pytest.fixture(scope="module")
def written():
    return make_contents(make_plan())


@settings(max_examples=50, deadline=None)
@given(rows=st.lists(st.integers(0, 59), max_size=20))
def test_rows_in_any_order_across_shards_are_those_written(index, written, rows):
    found = index.view("own").sketches(torch.tensor(rows, dtype=torch.int64))
    assert found.dtype == torch.float64
    assert np.array_equal(found.numpy(), written.sketches["own"][rows])


@pytest.mark.parametrize(
    "piece", [slice(None), slice(0, 0), slice(5, 9), slice(30, 35), slice(40, 20), slice(-3, None)]
)
def test_slices_across_shards_are_those_written(index, written, piece):
    assert np.array_equal(index.view("own").sketches(piece).numpy(), written.sketches["own"][piece])


def test_a_folder_of_indexes_is_told_from_an_index(tmp_path):
    for name in ("one", "two"):
        make_index(tmp_path, name=name)
    with pytest.raises(IndexNotFoundError, match=r"is a folder of indexes: one, two\. Name one of them"):
        open_index(tmp_path)


@pytest.mark.parametrize("rows", [[60], [-1], [3, 100]])
def test_rows_that_do_not_exist_are_refused(index, rows):
    with pytest.raises(UnknownRowError, match="0 to 59"):
        index.view("own").sketches(torch.tensor(rows))
    with pytest.raises(UnknownRowError, match="step 1"):
        index.view("own").sketches(slice(0, 10, 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_float16_sketches_are_the_written_ones_to_half_precision(tmp_path, written, dtype):
    view = make_index(tmp_path, dtype="float16").view("own")
    found = view.sketches(slice(None), dtype)
    assert found.dtype == dtype
    # Rounding to nearest: half a unit in the last of 11 places; nothing here is near the subnormals.
    assert np.allclose(found.numpy(), written.sketches["own"], rtol=2.0**-11, atol=0)
    assert torch.equal(view.sketches(slice(None), torch.float64), view.sketches(slice(None), torch.float32).double())


def test_writing_to_what_was_read_never_reaches_the_file(tmp_path):
    index = make_index(tmp_path)
    before = {file: file.read_bytes() for file in index.path.rglob("*") if file.is_file()}
    index.view("own").sketches(slice(0, 5)).zero_()
    index.view("own").squared_norms.zero_()
    index.labels.zero_()
    index.view("own").stored(slice(0, 5))[:] = 0
    assert {file: file.read_bytes() for file in index.path.rglob("*") if file.is_file()} == before


def test_blocks_cover_the_rows_in_order(index):
    view = index.view("own")
    for rows in (None, torch.tensor([50, 2, 33, 4])):
        parts = list(view.blocks(block_rows=7, rows=rows))
        visited = torch.cat([part for part, _ in parts])
        assert visited.equal(torch.arange(60) if rows is None else rows)
        assert torch.cat([values for _, values in parts]).equal(view.sketches(visited))
        assert max(len(part) for part, _ in parts) <= 7
    assert len(list(view.blocks())) == 1


def test_norms_and_their_means_are_those_of_the_stored_sketches(tmp_path):
    index = make_index(tmp_path, dtype="float16")
    view = index.view("own")
    norms = view.sketches(slice(None)).square().sum(dim=1)
    assert torch.allclose(view.squared_norms, norms, rtol=1e-12, atol=0)
    assert view.mean_squared_norm() == pytest.approx(float(norms.mean()), rel=1e-12)
    for label in range(3):
        assert view.mean_squared_norm(label) == pytest.approx(float(norms[index.labels == label].mean()), rel=1e-12)
    with pytest.raises(UnknownLabelError, match="0, 1, 2"):
        view.mean_squared_norm(3)


def test_partitions_hold_the_rows_of_their_label_in_ascending_order(index):
    view = index.view("own")
    assert view.partitions == [0, 1, 2]
    for label in view.partitions:
        rows = view.partition_rows(label)
        assert rows.equal(torch.nonzero(index.labels == label).squeeze(1))
        assert view.partition(label) == f"label-{label}"
    assert view.partition_rows().equal(torch.arange(60))
    assert view.partition() == "all"
    for label in (3, -1):
        with pytest.raises(UnknownLabelError):
            view.partition_rows(label)


def test_rows_without_a_label_are_in_no_partition(tmp_path):
    labels = np.array([0, -1] * 30)
    index = make_index(tmp_path, labels=labels)
    assert index.manifest.labels.counts == {"0": 30}
    assert index.view("own").partitions == [0]
    assert index.view("own").partition_rows(0).tolist() == list(range(0, 60, 2))


def test_unknown_views_and_columns_name_what_there_is(index):
    with pytest.raises(UnknownViewError, match="views are own"):
        index.view("margin")
    with pytest.raises(UnknownColumnError, match="one_minus_p"):
        index.column("p")
    with pytest.raises(UnknownViewError, match="own"):
        index.queries.sketch(0, "margin", 0)


def test_columns_are_those_written(tmp_path):
    representations = np.arange(120, dtype=np.float32).reshape(60, 2)
    index = make_index(tmp_path, columns={"representations": representations})
    assert np.array_equal(index.column("representations").numpy(), representations)
    assert index.column("one_minus_p").dtype == torch.float64
    assert index.predicted_labels.equal(index.labels)


def test_examples_are_found_by_row_and_by_id(index):
    examples = index.examples
    assert examples.count == 60
    assert [examples.row(examples.id(row)) for row in range(60)] == list(range(60))
    assert examples.rows(["train:5", "train:2"]).tolist() == [5, 2]
    assert examples.label(7) == int(index.labels[7])
    assert examples.predicted_label(7) == int(index.labels[7])
    assert examples.metadata(6) == {"source": "book", "length": 6, "weight": 1.5}
    assert examples.preview(6)[0] == "image/png"


@pytest.mark.parametrize("id", ["train:60", "train:05", "train:-1", "train: 5", "train:٥", "query:5", "", "5"])
def test_unknown_ids_are_refused(index, id):
    with pytest.raises(UnknownIdError):
        index.examples.row(id)


def test_an_unknown_number_is_refused_with_the_numbers_there_are(index):
    for id in ("trian:7", "train:60"):
        with pytest.raises(UnknownIdError, match=r"its ids are train:0 to train:59$") as caught:
            index.examples.row(id)
        assert caught.value.near == []
        assert caught.value.allowed == {"from": "train:0", "to": "train:59"}


def test_an_unknown_id_comes_with_similar_ones_unless_only_their_numbers_are_similar(tmp_path):
    rows = [ExampleRow(id=id, label=0) for id in ("cat-0017", "cat-0018", "aeroplane")]
    write_examples_table(tmp_path / "examples.parquet", rows, len(rows))
    table = ExampleTable(PublishedFiles(tmp_path), "examples.parquet", len(rows), "train")
    with pytest.raises(UnknownIdError, match=r"did you mean aeroplane\?") as caught:
        table.row("airplane")
    assert caught.value.allowed == ["aeroplane"]
    with pytest.raises(UnknownIdError, match=r"its ids look like 'cat-0017'") as caught:
        table.row("cat-0077")
    assert caught.value.near == []


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        ({}, lambda row: True),
        ({"source": "web"}, lambda row: row % 2 == 1),
        ({"source": ["web", "book"]}, lambda row: True),
        ({"source": "web", "length": 3}, lambda row: row % 2 == 1 and row % 7 == 3),
        ({"length": [1, 2]}, lambda row: row % 7 in (1, 2)),
        ({"weight": 2}, lambda row: row == 8),
        ({"source": "film"}, lambda row: False),
        ({"source": []}, lambda row: False),
    ],
    # The text of a function holds its address, which differs between pytest's processes.
    ids=lambda value: str(value) if isinstance(value, dict) else "rows",
)
def test_where_finds_rows_by_metadata(index, conditions, expected):
    assert index.examples.where(conditions).tolist() == [row for row in range(60) if expected(row)]


@pytest.mark.parametrize(
    "conditions", [{"colour": "red"}, {"length": "3"}, {"source": 3}, {"length": True}, {"length": 2.5}]
)
def test_where_refuses_unknown_metadata_and_values_of_another_type(index, conditions):
    with pytest.raises(UnknownMetadataError):
        index.examples.where(conditions)


YEARS = [1999, 2001, None, 2001, 2010]
DATES = ["1999-12-31", None, "2001-02-03", "2001-02-03T04:05", "2010-01-01"]


@pytest.fixture
def dated(tmp_path):
    rows = [
        ExampleRow(
            id=f"{row}", label=0, metadata={"year": year, "date": date, "share": year and year / 4, "old": year == 1999}
        )
        for row, (year, date) in enumerate(zip(YEARS, DATES, strict=True))
    ]
    write_examples_table(tmp_path / "examples.parquet", rows, len(rows))
    return ExampleTable(PublishedFiles(tmp_path), "examples.parquet", len(rows), "train")


@pytest.mark.parametrize(
    ("conditions", "rows"),
    [
        ({"year": {"gte": 2001}}, [1, 3, 4]),
        ({"year": {"gt": 2001}}, [4]),
        ({"year": {"lt": 2001}}, [0]),
        ({"year": {"lte": 2001}}, [0, 1, 3]),
        ({"year": {"gt": 1999, "lt": 2010}}, [1, 3]),
        ({"year": {"gte": 2000.5}}, [1, 3, 4]),
        ({"year": {"gt": 2000.5, "lt": 2009.5}}, [1, 3]),
        ({"year": {"lte": 2000.5}}, [0]),
        ({"year": {"lt": 2001.0}}, [0]),
        ({"share": {"gte": 500.25}}, [1, 3, 4]),
        ({"share": {"gt": 500}}, [1, 3, 4]),
        ({"date": {"gte": "2001", "lt": "2002"}}, [2, 3]),
        ({"year": None}, [2]),
        ({"date": None}, [1]),
        ({"year": [None, 1999]}, [0, 2]),
        ({"year": None, "date": None}, []),
        ({"old": True}, [0]),
    ],
    ids=str,
)
def test_where_takes_bounds_and_none(dated, conditions, rows):
    assert dated.where(conditions).tolist() == rows


@pytest.mark.parametrize(
    ("conditions", "message"),
    [
        ({"year": {"gte": "2001"}}, "is int64; '2001' is not"),
        ({"date": {"lt": 3}}, "is string; 3 is not"),
        ({"old": {"gt": False}}, "has no bounds"),
        ({"year": {"over": 3}}, "no bound 'over'; the bounds are gt, gte, lt, lte"),
    ],
    ids=str,
)
def test_where_refuses_bounds_that_say_nothing(dated, conditions, message):
    with pytest.raises(UnknownMetadataError, match=message):
        dated.where(conditions)


def test_queries_are_those_written(index, written):
    queries = index.queries
    assert queries.count == 6
    pairs = zip(written.query_rows["own"].tolist(), written.target_labels["own"].tolist(), strict=True)
    for sketch, (row, target) in zip(written.query_sketches["own"], pairs, strict=True):
        assert queries.sketch(row, "own", target).tolist() == sketch.tolist()
        assert target in queries.targets(row, "own")
    assert queries.predicted_label(3) == 0
    assert queries.label(3) == 1
    assert queries.examples.preview(3) == ("text/plain; charset=utf-8", b"query 3")


def test_a_target_that_was_not_sketched_names_those_that_were(index):
    with pytest.raises(MissingQuerySketchError, match="stored are 1"):
        index.queries.sketch(1, "own", 2)
    with pytest.raises(UnknownRowError, match="0 to 5"):
        index.queries.sketch(6, "own", 0)


def test_an_index_without_queries_opens(tmp_path):
    assert make_index(tmp_path, num_queries=0).queries is None


@pytest.mark.parametrize(
    ("field", "value"), [("seed", 1), ("family", "rademacher"), ("options", {"s": 2}), ("parameters", ())]
)
def test_sketches_of_another_matrix_are_refused_naming_the_difference(field, value):
    parameters = (Parameter(name="w", shape=(2, 3), ntk_scale=1.0),)
    mine = Sketch(family="gaussian", seed=0, dim=4, num_parameters=6, parameters=parameters)
    mine.check_same(mine.model_copy())
    with pytest.raises(IncompatibleSketchError, match=field):
        mine.check_same(mine.model_copy(update={field: value}), index="cifar10")


def test_of_many_parts_the_first_that_differs_is_named():
    parts = [{"parameter": f"{number}.weight", "blocks": 2, "row_dim": 2, "column_dim": 2} for number in range(30)]
    mine = Sketch(family="kronecker", seed=0, dim=240, num_parameters=6, options={"parts": parts})
    other = mine.model_copy(update={"options": {"parts": [*parts[:7], {**parts[7], "blocks": 3}, *parts[8:]]}})
    with pytest.raises(IncompatibleSketchError, match=r"options parts: .*'7\.weight', 'blocks': 3") as refused:
        mine.check_same(other)
    assert "'8.weight'" not in str(refused.value)


def test_a_spectrum_is_read_as_written_and_listed(tmp_path):
    index = make_index(tmp_path)
    rows = index.view("own").partition_rows(1)
    sketches = index.view("own").sketches(rows)
    gram = sketches.T @ sketches
    values, vectors = torch.linalg.eigh(gram)
    with pytest.raises(MissingDerivedError, match="indexer derive"):
        index.derived.spectrum("own", 1)
    index.derived.write_spectrum("own", 1, StoredSpectrum("gram", gram, values, vectors))
    found = open_index(index.path).derived.spectrum("own", 1)
    assert found.form == "gram"
    assert found.gram.equal(gram)
    assert found.eigenvalues.equal(values)
    assert found.eigenvectors.equal(vectors)
    assert list(index.derived.entries()) == ["spectra/own/label-1.safetensors"]
    index.derived.remove("spectrum", "own", 1)
    assert index.derived.entries() == {}
    open_index(index.path)


def test_a_crash_while_deriving_leaves_an_index_that_can_be_repaired(tmp_path, monkeypatch):
    index = make_index(tmp_path, faiss="Flat")
    identity = torch.eye(16, dtype=torch.float64)
    spectrum = StoredSpectrum("gram", identity, torch.ones(16, dtype=torch.float64), identity)
    with monkeypatch.context() as patch:
        patch.setattr("sketchstore.derived.finish_file", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            index.derived.write_spectrum("own", 0, spectrum)
    open_index(index.path).derived.write_spectrum("own", 0, spectrum)
    assert open_index(index.path).derived.spectrum("own", 0).gram.equal(identity)


def test_derived_entries_of_overwritten_sketches_are_stale(tmp_path):
    from sketchstore.errors import CorruptDerivedError

    first = make_index(tmp_path / "a", faiss="Flat")
    second = make_index(tmp_path / "b", seed=1)
    (first.path / "derived").rename(second.path / "derived")
    with pytest.raises(StaleDerivedError, match="indexer derive"):
        open_index(second.path)
    opened = open_index(second.path, derived=False)
    with pytest.raises((StaleDerivedError, CorruptDerivedError)):
        opened.derived.file("faiss", "own", 0)


def test_opening_by_sizes_and_by_digests_gives_the_same_index(index):
    assert open_index(index.path, check="sizes").manifest == index.manifest


def test_where_takes_a_whole_number_in_either_form_json_may_give_it(index):
    assert index.examples.where({"length": 3.0}).tolist() == index.examples.where({"length": 3}).tolist() != []
