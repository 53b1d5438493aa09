"""FORMAT.md is enough to read an index, names everything the code knows, and version 1 stays readable."""

import json
import re
from pathlib import Path

import blake3
import numpy as np
import pytest
import torch

import sketchstore.manifest
from sketchstore.codes_build import build_codes
from sketchstore.derived_manifest import Entry
from sketchstore.examples import FIXED_COLUMNS, PREVIEW_COLUMNS
from sketchstore.heads_build import build_heads
from sketchstore.manifest import Manifest
from sketchstore.reader import open_index, verify_index
from tests.index_factory import make_index

FORMAT = Path(sketchstore.manifest.__file__).with_name("FORMAT.md").read_text("utf-8")
FIXTURE = Path(__file__).parent / "fixtures" / "format-1"


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


def test_built_from_of_derived_entries_follows_from_format_md_alone(tmp_path):
    index = make_index(tmp_path, faiss="Flat")
    manifest = json.loads((index.path / "manifest.json").read_text("utf-8"))
    derived = json.loads((index.path / "derived/manifest.json").read_text("utf-8"))
    entry = derived["entries"]["faiss/own/label-1.faiss"]
    view = manifest["views"]["own"]
    value = {key: entry[key] for key in ("kind", "view", "partition", "options")} | {
        "sketches": [manifest["files"][shard["file"]]["blake3"] for shard in view["shards"]],
        "scale_exponent": view["scale_exponent"],
        "labels": manifest["files"]["columns/labels.npy"]["blake3"],
    }
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
    assert Manifest.model_fields["format_version"].annotation.__args__ == (int(version),)
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
