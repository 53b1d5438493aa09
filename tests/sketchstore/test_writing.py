"""What the writer refuses, what float16 costs, and that its files are ordinary safetensors, npy and Parquet."""

import io

import numpy as np
import pyarrow.parquet as pq
import pytest
import safetensors.numpy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from sketchstore.arrays import map_npy, map_tensor, npy_header, tensor_file_bytes, tensor_header
from sketchstore.errors import (
    ExampleValueError,
    Float16RangeError,
    NotFiniteSketchError,
    SketchBlockError,
    UnknownMetadataError,
)
from sketchstore.float16 import scale_exponent_for, to_float16
from sketchstore.plan import MAX_SHARD_BYTES, shard_rows_for
from sketchstore.reader import open_index
from sketchstore.tables import ExampleRow
from sketchstore.writer import IndexWriter
from tests.index_factory import make_contents, make_index, make_plan, png, train_rows, write_contents


@pytest.fixture
def writer(tmp_path):
    with IndexWriter.create(tmp_path / "small", make_plan()) as writer:
        yield writer


def first(writer):
    block = writer.pending_blocks()[0]
    return block, np.ones((block.rows, 16), np.float32)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_sketch_that_is_not_finite_is_refused_and_its_row_named(writer, value):
    block, values = first(writer)
    values[3, 5] = value
    with pytest.raises(NotFiniteSketchError, match="view 'own', block 0: row 3"):
        writer.write_block(block, {"own": values})
    assert block in writer.pending_blocks()


@pytest.mark.parametrize(
    "edit",
    [
        lambda values: {"own": values[:-1]},
        lambda values: {"own": values[:, :-1]},
        lambda values: {"own": values.astype(np.float64)},
        lambda values: {"margin": values},
        lambda values: {},
        lambda values: {"own": values, "margin": values},
    ],
    ids=["rows", "dim", "dtype", "view", "none", "extra"],
)
def test_a_block_that_does_not_fit_the_plan_is_refused(writer, edit):
    block, values = first(writer)
    with pytest.raises(SketchBlockError):
        writer.write_block(block, edit(values))


@pytest.mark.parametrize(
    "columns",
    [
        {"p": np.ones(15)},
        {"p": np.ones(16, np.int8)},
        {"p": np.full(16, np.nan)},
        {"labels": np.full(16, -2)},
        {"labels": np.ones(16)},
        {"squared_norms.own": np.ones(16)},
    ],
    ids=["rows", "dtype", "nan", "label", "float label", "norms"],
)
def test_a_column_that_does_not_fit_is_refused(writer, columns):
    block, values = first(writer)
    with pytest.raises(SketchBlockError):
        writer.write_block(block, {"own": values}, columns)


@pytest.mark.parametrize("name", ["../x", "a/b", "", "a b"])
def test_a_column_name_cannot_leave_its_folder(writer, name):
    with pytest.raises(ValidationError):
        writer.write_columns({name: np.ones(60)})


def test_torch_tensors_are_taken_as_they_are(tmp_path):
    plan = make_plan()
    contents = make_contents(plan)
    with IndexWriter.create(tmp_path / "small", plan) as writer:
        for block in writer.pending_blocks():
            values = torch.from_numpy(contents.sketches["own"][block.start : block.stop])
            writer.write_block(block, {"own": values}, {"one_minus_p": torch.ones(block.rows)})
        write_contents(writer, contents)
        index = open_index(writer.publish())
    assert index.column("one_minus_p").dtype == torch.float32
    assert index.revision


def test_float16_needs_its_scale_first_and_keeps_it(tmp_path):
    plan = make_plan(dtype="float16")
    with IndexWriter.create(tmp_path / "small", plan) as writer:
        block, values = first(writer)
        with pytest.raises(SketchBlockError, match="set_scales"):
            writer.write_block(block, {"own": values})
        with pytest.raises(SketchBlockError, match="views"):
            writer.set_scales({"margin": 0})
        writer.set_scales({"own": -3})
        writer.set_scales({"own": -3})
        with pytest.raises(SketchBlockError, match="already"):
            writer.set_scales({"own": -4})
    with IndexWriter.create(tmp_path / "small", plan, resume=True) as writer:
        assert writer.scales == {"own": -3}


def test_float32_has_no_scale(writer):
    with pytest.raises(SketchBlockError, match="must be 0"):
        writer.set_scales({"own": 1})


def test_float16_overflow_is_refused_with_the_cure(tmp_path):
    with IndexWriter.create(tmp_path / "small", make_plan(dtype="float16")) as writer:
        writer.set_scales({"own": 0})
        block, values = first(writer)
        values[2, 2] = 65519.0
        writer.write_block(block, {"own": values})
        values[2, 2] = -65520.0
        with pytest.raises(Float16RangeError, match=r"65520 overflows.*--dtype float32"):
            writer.write_block(writer.pending_blocks()[0], {"own": values})


@pytest.mark.parametrize(("count", "refused"), [(9, False), (10, True)])
def test_more_than_one_percent_subnormal_entries_are_refused(tmp_path, count, refused):
    # 60 rows of 16: 960 entries, of which 1 % are 9.6.
    plan = make_plan(dtype="float16")
    values = np.ones((60, 16), np.float32)
    values.ravel()[:count] = 2.0**-15
    contents = make_contents(plan)
    contents.sketches["own"][:] = values

    def build():
        with IndexWriter.create(tmp_path / "small", plan) as writer:
            writer.set_scales({"own": 0})
            write_contents(writer, contents)
            writer.publish()

    if refused:
        with pytest.raises(Float16RangeError, match="10 of 960 entries are subnormal"):
            build()
    else:
        build()


def test_zeros_are_not_subnormal(tmp_path):
    index = make_index(tmp_path, dtype="float16", sketches={"own": np.zeros((60, 16), np.float32)})
    assert index.view("own").mean_squared_norm() == 0.0


@settings(max_examples=200, deadline=None)
@given(largest=st.floats(1e-37, 1e37), fractions=st.lists(st.floats(-1, 1), min_size=1, max_size=8))
def test_a_scale_chosen_from_a_probe_fits_it(largest, fractions):
    probe = np.array([largest, *(largest * fraction for fraction in fractions)], dtype=np.float32)
    exponent = scale_exponent_for(probe)
    stored, _ = to_float16(probe, exponent, "probe")
    assert 2.0**7 <= float(np.abs(stored).max()) <= 2.0**8
    back = np.ldexp(stored.astype(np.float64), exponent)
    # Half a unit in the last of 11 places, or half the spacing of the subnormals below 2^-14 as stored.
    assert np.all(np.abs(back - probe) <= np.maximum(np.abs(probe) * 2.0**-11, 2.0**-25 * 2.0**exponent))


def test_a_probe_of_zeros_has_scale_one_and_one_of_nan_none():
    assert scale_exponent_for(np.zeros((2, 2), np.float32)) == 0
    with pytest.raises(NotFiniteSketchError):
        scale_exponent_for(np.array([np.nan], np.float32))


@pytest.mark.parametrize(("dtype", "code"), [("float16", np.float16), ("float32", np.float32)])
def test_shards_are_ordinary_safetensors_files(tmp_path, dtype, code):
    index = make_index(tmp_path, dtype=dtype)
    for shard in index.manifest.views["own"].shards:
        tensors = safetensors.numpy.load_file(index.path / shard.file)
        assert list(tensors) == ["sketches"]
        assert tensors["sketches"].dtype == code
        assert tensors["sketches"].shape == (shard.rows, 16)
        header = tensor_header({"sketches": (dtype, (shard.rows, 16))})
        assert len(header) % 64 == 0
        assert (index.path / shard.file).stat().st_size == len(header) + tensors["sketches"].nbytes


def test_columns_are_ordinary_npy_files(tmp_path):
    index = make_index(tmp_path)
    assert np.load(index.path / "columns/labels.npy", allow_pickle=False).tolist() == index.labels.tolist()
    buffer = io.BytesIO()
    np.save(buffer, np.arange(6.0).reshape(2, 3))
    assert buffer.getvalue().startswith(npy_header(np.dtype("<f8"), (2, 3)))


@settings(max_examples=40, deadline=None)
@given(
    shapes=st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=3), min_size=1, max_size=3),
    dtype=st.sampled_from(["float16", "float32", "float64", "int64"]),
)
def test_tensor_files_round_trip_through_both_libraries(tmp_path_factory, shapes, dtype):
    arrays = {f"t{i}": np.arange(np.prod(shape)).reshape(shape).astype(dtype) for i, shape in enumerate(shapes)}
    path = tmp_path_factory.mktemp("round") / "x.safetensors"
    path.write_bytes(tensor_file_bytes(arrays))
    theirs = safetensors.numpy.load_file(path)
    for name, array in arrays.items():
        ours = map_tensor(path, "x", name, dtype=dtype, shape=array.shape)
        assert np.array_equal(ours, array)
        assert np.array_equal(theirs[name], array)
    path.write_bytes(safetensors.numpy.save(arrays))
    for name, array in arrays.items():
        assert np.array_equal(map_tensor(path, "x", name), array)


def test_an_empty_column_maps(tmp_path):
    np.save(tmp_path / "x.npy", np.empty((0, 3)))
    assert map_npy(tmp_path / "x.npy", "x").shape == (0, 3)


def test_weights_are_stored_as_they_are(tmp_path):
    plan = make_plan()
    shared = torch.arange(6.0).reshape(2, 3)
    with IndexWriter.create(tmp_path / "small", plan) as writer:
        write_contents(writer, make_contents(plan))
        writer.write_model({"a": shared, "b": shared.T, "c": torch.tensor(3)})
        index = open_index(writer.publish())
    from safetensors.torch import load_file

    found = load_file(index.weights_path)
    assert found["a"].equal(shared)
    assert found["b"].equal(shared.T)
    assert int(found["c"]) == 3
    assert make_index(tmp_path, name="bare").weights_path is None


@pytest.mark.parametrize(
    ("row", "named"),
    [
        (ExampleRow(id=""), "row 0: id"),
        (ExampleRow(id=3), "row 0: id"),  # type: ignore[arg-type]
        (ExampleRow(id="a", label=-2), "row 0: label is -2"),
        (ExampleRow(id="a", label=True), "row 0: label is True"),
        (ExampleRow(id="a", predicted_label=1.0), "row 0: predicted_label"),  # type: ignore[arg-type]
        (ExampleRow(id="a", metadata={"tags": ["x"]}), "metadata 'tags' is a list"),  # type: ignore[dict-item]
        (ExampleRow(id="a", metadata={"n": 2**63}), "64-bit"),
        (ExampleRow(id="a", metadata={"n": float("nan")}), "metadata 'n' is nan"),
        (ExampleRow(id="a", metadata={"n": float("-inf")}), "metadata 'n' is -inf"),
        (ExampleRow(id="a", metadata={"": 1}), "metadata name"),
        (ExampleRow(id="a", preview=b"GIF89a"), "PNG"),
        (ExampleRow(id="a", preview={"x": float("nan")}), "JSON"),
        (ExampleRow(id="a", preview=7), "preview is a int"),  # type: ignore[arg-type]
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_example_that_cannot_be_stored_is_refused(writer, row, named):
    with pytest.raises(ExampleValueError, match=named):
        writer.write_examples([row])
    assert not writer.written("examples.parquet")


def test_too_few_examples_repeated_ids_and_mixed_metadata_are_refused(writer):
    with pytest.raises(ExampleValueError, match="2 examples were given, must be 60"):
        writer.write_examples([ExampleRow("a"), ExampleRow("b")])
    with pytest.raises(ExampleValueError, match="id 'a' is given twice"):
        writer.write_examples([ExampleRow("a")] * 60)
    with pytest.raises(ExampleValueError, match="metadata 'x' mixes int, str"):
        writer.write_examples([ExampleRow(f"{i}", metadata={"x": i if i else "0"}) for i in range(60)])


def test_metadata_may_be_missing_and_widen_from_int_to_float(tmp_path):
    plan = make_plan(num_rows=3, num_classes=1)
    with IndexWriter.create(tmp_path / "small", plan) as writer:
        write_contents(writer, make_contents(plan, num_classes=1), num_queries=0)
        rows = [{}, {"x": 1, "flag": True}, {"x": 0.5, "none": None}]
        writer.write_examples([ExampleRow(f"{i}", 0, metadata=values) for i, values in enumerate(rows)])
        index = open_index(writer.publish())
    assert index.examples.metadata(0) == {"flag": None, "none": None, "x": None}
    assert index.examples.metadata(1) == {"flag": True, "none": None, "x": 1.0}
    assert index.examples.where({"flag": True}).tolist() == [1]
    values, places = index.examples.values("x")
    assert (values, places.tolist()) == ([0.5, 1.0], [-1, 1, 0])
    assert index.examples.values("none")[0] == []
    with pytest.raises(UnknownMetadataError, match="'y'"):
        index.examples.values("y")
    assert index.predicted_labels is None


def test_examples_are_written_in_small_row_groups(tmp_path):
    plan = make_plan(num_rows=2100, dim=2, block_rows=1024, shard_rows=4096)
    contents = make_contents(plan)
    with IndexWriter.create(tmp_path / "small", plan) as writer:
        write_contents(writer, contents)
        writer.write_examples(iter(train_rows(contents.labels)))
        index = open_index(writer.publish())
    assert pq.ParquetFile(index.path / "examples.parquet").num_row_groups == 3
    for row in (0, 1023, 1024, 2099):
        assert index.examples.preview(row) == ("image/png", png(row))


@pytest.mark.parametrize(
    ("rows", "targets"),
    [([6], [0]), ([-1], [0]), ([0], [-2]), ([0, 0], [1, 1])],
    ids=["row", "minus", "target", "twice"],
)
def test_queries_that_do_not_fit_are_refused(writer, rows, targets):
    sketches = np.ones((len(rows), 16), np.float32)
    with pytest.raises(SketchBlockError):
        writer.write_queries([], 6, {"own": (sketches, np.array(rows), np.array(targets))})


@pytest.mark.parametrize(
    ("block_rows", "dim", "dtype"),
    [(1024, 4096, "float16"), (1024, 4096, "float32"), (1024, 535_040, "float32"), (1, 1, "float16")],
)
def test_shards_hold_whole_blocks_and_at_most_a_gibibyte(block_rows, dim, dtype):
    rows = shard_rows_for(block_rows, dim, dtype)
    size = rows * dim * np.dtype(dtype).itemsize
    assert size <= MAX_SHARD_BYTES
    assert rows % block_rows == 0 or block_rows * dim * np.dtype(dtype).itemsize > MAX_SHARD_BYTES


def test_blocks_larger_than_shards_are_split(tmp_path):
    index = make_index(tmp_path, block_rows=40, shard_rows=7)
    assert len(index.manifest.views["own"].shards) == 9
    expected = make_contents(make_plan()).sketches["own"]
    assert np.array_equal(index.view("own").sketches(slice(None)).numpy(), expected)


def test_rounding_to_float16_is_to_nearest_with_ties_to_even():
    values = np.arange(65536, dtype=np.uint16).view(np.float16)
    values = values[np.isfinite(values)].astype(np.float32)
    between = (values[:-1] + values[1:]) / 2  # every tie, subnormal ones too
    for each in (values, between, np.nextafter(between, np.float32(0))):
        stored, _ = to_float16(each.astype(np.float32), 0, "all")
        assert np.array_equal(stored.view(np.uint16), each.astype(np.float32).astype(np.float16).view(np.uint16))


@pytest.mark.parametrize("exponent", [-140, -121, -120, 0, 120, 121])
def test_any_scale_is_exact(exponent):
    values = np.ldexp(np.array([1.0, 1.5, 2.0], np.float32), max(-149, min(126, exponent)))
    stored, _ = to_float16(values, exponent, "x")
    assert np.array_equal(np.ldexp(stored.astype(np.float64), exponent), values.astype(np.float64))
