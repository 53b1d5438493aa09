"""FORMAT.md is enough to read an index, names everything the code knows, and every version stays readable."""

import json
import re
import shutil
from pathlib import Path

import blake3
import numpy as np
import pytest
import torch

import sketchstore.manifest
from sketchstore.codes_build import build_codes
from sketchstore.derived_manifest import Entry
from sketchstore.errors import ManifestFieldError
from sketchstore.examples import FIXED_COLUMNS, PREVIEW_COLUMNS
from sketchstore.faiss_build import write_faiss
from sketchstore.heads_build import build_heads
from sketchstore.manifest import Manifest
from sketchstore.reader import open_index, verify_index
from sketchstore.remove import remove_rows
from tests.index_factory import make_index, resign

FORMAT = Path(sketchstore.manifest.__file__).with_name("FORMAT.md").read_text("utf-8")
FIXTURE = Path(__file__).parent / "fixtures" / "format-1"
FIXTURE_2 = Path(__file__).parent / "fixtures" / "format-2"


def numpy_reader(name: str = "read_sketches"):
    namespace: dict = {}
    for source in re.findall(r"```python\n(.*?)```", FORMAT, re.DOTALL):
        assert len([line for line in source.splitlines() if line.strip()]) <= 12  # ten lines, import and docstring
        exec(source, namespace)
    return namespace[name]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("view", ["own", "margin", "class", "custom"])
def test_the_numpy_reader_of_format_md_reads_what_the_library_reads(tmp_path, view, dtype):
    index = make_index(tmp_path, view=view, dtype=dtype)
    for name in index.views:
        found = numpy_reader()(index.path, name)
        assert np.array_equal(found, index.view(name).sketches(slice(None)).numpy())


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_numpy_reader_of_codes_reads_what_the_library_reads(tmp_path, dtype):
    index = make_index(tmp_path, dtype=dtype)
    build_codes(index, "own")
    ours = index.derived.codes("own")
    codes, scales, errors = numpy_reader("read_codes")(index.path, "own")
    assert np.array_equal(codes, ours.codes)
    assert np.array_equal(scales, ours.scales)
    assert np.array_equal(errors, ours.errors)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_numpy_reader_of_heads_reads_what_the_library_reads(tmp_path, dtype):
    index = make_index(tmp_path, dtype=dtype, dim=48)
    build_heads(index, "own")
    ours = index.derived.heads("own")
    found = numpy_reader("read_heads")(index.path, "own")
    for values, expected in zip(found, (ours.basis, ours.codes, ours.scales, ours.errors, ours.tails), strict=True):
        assert (values.dtype, values.shape) == (expected.dtype, expected.shape)
        assert np.array_equal(values, expected)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("purge", [False, True], ids=["listed", "purged"])
def test_the_numpy_readers_leave_out_what_is_removed(tmp_path, dtype, purge):
    index = make_index(tmp_path, dtype=dtype)
    before, labels = numpy_reader()(index.path, "own"), index.labels.numpy().copy()
    gone = [0, 1, 17, 31, 32, 59]
    remove_rows(index, [f"train:{row}" for row in gone], purge=purge)
    assert np.array_equal(numpy_reader()(index.path, "own"), np.delete(before, gone, 0))
    found = open_index(index.path)
    for label in range(3):
        pool = numpy_reader("read_pool")(index.path, label)
        assert np.array_equal(pool, np.flatnonzero(np.delete(labels, gone) == label))
        assert np.array_equal(pool, found.view("own").partition_rows(label).numpy())


def test_codes_and_heads_have_a_line_for_every_row_that_is_left(tmp_path):
    remove_rows(make_index(tmp_path, dim=48), ["train:0", "train:40"])
    index = open_index(tmp_path / "small")
    build_codes(index, "own")
    build_heads(index, "own")
    sketches = numpy_reader()(index.path, "own")
    codes, scales, errors = numpy_reader("read_codes")(index.path, "own")
    assert len(sketches) == len(codes) == 58
    assert np.all(np.linalg.norm(sketches - scales[:, None] * codes, axis=1) <= errors)
    basis, codes, scales, errors, _ = numpy_reader("read_heads")(index.path, "own")
    assert np.all(np.linalg.norm(sketches @ basis.T - scales[:, None] * codes, axis=1) <= errors)
    assert verify_index(index.path) == []


def test_revision_follows_from_format_md_alone(tmp_path):
    index = make_index(tmp_path)
    manifest = json.loads((index.path / "manifest.json").read_text("utf-8"))
    revision = manifest.pop("revision")
    text = json.dumps(manifest, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    assert blake3.blake3(text.encode()).hexdigest()[:32] == revision == index.revision


def test_norms_and_their_means_follow_from_format_md_alone(tmp_path):
    index = make_index(tmp_path, dtype="float16")
    manifest = json.loads((index.path / "manifest.json").read_text("utf-8"))
    sketches, labels = numpy_reader()(index.path, "own"), np.load(index.path / "columns/labels.npy")
    norms = np.load(index.path / "columns/squared_norms.own.npy")
    assert norms == pytest.approx((sketches**2).sum(axis=1), rel=1e-12)
    assert manifest["views"]["own"]["mean_squared_norm"] == pytest.approx(norms.mean(), rel=1e-12)
    for label, mean in manifest["views"]["own"]["mean_squared_norm_by_label"].items():
        assert mean == pytest.approx(norms[labels == int(label)].mean(), rel=1e-12)


@pytest.mark.parametrize("gone", [[], ["train:3", "train:4", "train:50"]], ids=["whole", "removed"])
def test_built_from_of_derived_entries_follows_from_format_md_alone(tmp_path, gone):
    index = make_index(tmp_path)
    if gone:
        remove_rows(index, gone)
        index = open_index(index.path)
    write_faiss(index, "own", 1)
    manifest = json.loads((index.path / "manifest.json").read_text("utf-8"))
    derived = json.loads((index.path / "derived/manifest.json").read_text("utf-8"))
    entry = derived["entries"]["faiss/own/label-1.faiss"]
    view = manifest["views"]["own"]
    value = {key: entry[key] for key in ("kind", "view", "partition", "options")} | {
        "sketches": [manifest["files"][shard["file"]]["blake3"] for shard in view["shards"]],
        "scale_exponent": view["scale_exponent"],
        "labels": manifest["files"]["columns/labels.npy"]["blake3"],
    }
    if gone:
        value["removed"] = [[3, 5], [50, 51]]
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    assert blake3.blake3(text.encode()).hexdigest() == entry["built_from"]


def test_format_md_names_every_field_and_column():
    models = [
        value
        for value in vars(sketchstore.manifest).values()
        if isinstance(value, type) and issubclass(value, sketchstore.manifest.Section)
    ]
    names = {field for model in [*models, Entry] for field in model.model_fields}
    names |= set(FIXED_COLUMNS) | set(PREVIEW_COLUMNS)
    words = set(re.findall(r"\w+", FORMAT))
    assert names <= words, sorted(names - words)


def test_format_md_has_every_released_version():
    (version,) = re.findall(r"format version (\d+)", FORMAT.splitlines()[0])
    assert int(version) == sketchstore.manifest.FORMAT_VERSION
    assert Manifest.model_fields["format_version"].annotation.__args__ == sketchstore.manifest.READABLE_VERSIONS
    assert tuple(range(1, int(version) + 1)) == sketchstore.manifest.READABLE_VERSIONS
    assert [path.name for path in sorted(FIXTURE.parent.iterdir())] == [f"format-{n + 1}" for n in range(int(version))]


def test_the_fixture_of_format_version_1_opens():
    assert verify_index(FIXTURE) == []
    index = open_index(FIXTURE)
    assert (index.name, index.num_rows, index.sketch_dim) == ("fixture", 7, 4)
    assert index.revision == (FIXTURE.parent / "format-1" / "manifest.json").read_text().split('"revision": "')[1][:32]
    own = index.view("own")
    assert own.comparable == "label"
    expected = torch.arange(28, dtype=torch.float64).reshape(7, 4) / 4 - 3
    assert torch.equal(own.sketches(slice(None)), expected)
    assert torch.equal(own.squared_norms, (expected**2).sum(dim=1))
    assert index.labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert index.examples.row("a/b c") == 1
    assert index.examples.preview(1) == ("text/plain; charset=utf-8", b"second")
    assert index.queries.sketch(0, "own", 2).tolist() == [1.0, 0.5, 0.25, 0.125]
    spectrum = index.derived.spectrum("own", 2)
    rows = own.sketches(own.partition_rows(2))
    assert torch.equal(spectrum.gram, rows @ rows.T)


def test_the_fixture_of_format_version_2_opens():
    assert verify_index(FIXTURE_2) == []
    index = open_index(FIXTURE_2)
    assert (index.name, index.num_rows, index.sketch_dim) == ("fixture", 8, 4)
    assert index.manifest.removed == ((1, 2), (5, 6))
    every = torch.arange(40, dtype=torch.float64).reshape(10, 4) / 4 - 3
    left = [0, 2, 3, 4, 6, 7, 8, 9]
    own = index.view("own")
    assert torch.equal(own.sketches(slice(None)), every[left])
    assert torch.equal(own.squared_norms, every[left].square().sum(dim=1))
    assert index.labels.tolist() == [0, 2, 0, 1, 0, 1, 2, 0]
    assert [index.examples.id(row) for row in range(8)] == ["train:0", "a/b c", "z", "y", "last", "2/0", "2/1", "2/2"]
    assert index.examples.preview(1) == ("text/plain; charset=utf-8", b"third")
    assert (index.manifest.default_relative_noise, index.manifest.noise_tuning["method"]) == (0.5, "gp_evidence")
    assert [(source.first_row, source.rows, source.id_prefix) for source in index.manifest.sources] == [
        (0, 7, ""),
        (3, 3, "2/"),
    ]
    spectrum = index.derived.spectrum("own", 0)
    rows = own.sketches(own.partition_rows(0))
    assert torch.equal(spectrum.gram, rows @ rows.T)


def test_a_manifest_of_version_1_has_none_of_what_version_2_added(tmp_path):
    path = Path(shutil.copytree(FIXTURE, tmp_path / "fixture"))
    resign(path, {"removed": [[0, 1]], "num_rows": 6})
    with pytest.raises(ManifestFieldError, match="came with format_version 2"):
        open_index(path)


@pytest.mark.parametrize("removed", [[[3, 3]], [[4, 6], [6, 7]], [[5, 6], [1, 2]], [[9, 11]], [[-1, 1]]])
def test_removed_ranges_have_one_spelling(tmp_path, removed):
    path = Path(shutil.copytree(FIXTURE_2, tmp_path / "fixture"))
    resign(path, {"removed": removed, "num_rows": 10 - sum(stop - first for first, stop in removed)})
    with pytest.raises(ManifestFieldError, match="must not be empty, must begin beyond"):
        open_index(path)
