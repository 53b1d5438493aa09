"""The tuned noise is the one of the most evidence, by dense Gaussian densities of the recast labels."""

import math
import xml.etree.ElementTree as ElementTree

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from indexer.curve_plot import curve_svg
from indexer.derive import derive
from indexer.targets import TargetError
from indexer.tune import log_grid, tune_noise
from sketchstore.default_noise import store_default_noise
from sketchstore.errors import UnknownMetadataError
from sketchstore.reader import Index, open_index, verify_index
from sketchstore.remove import remove_rows
from sketchstore.writer import IndexWriter
from tests.index_factory import make_contents as contents_of
from tests.index_factory import make_index, make_plan, resign, train_rows, write_contents

GRID = log_grid(1e-3, 1e3, 2)


def dense(index: Index, grid: list[float], amplitude: str, residual: bool = False) -> list[float]:
    """The log evidence by definition: for every set of comparable rows the density of its targets."""
    labels = index.labels
    hot = torch.nn.functional.one_hot(labels).double()
    hot = hot - hot.mean(0)
    totals = []
    for relative in grid:
        total = 0.0
        for name, view in index.views.items():
            for label in [None] if view.comparable == "all" else sorted(set(labels.tolist())):
                rows = torch.arange(len(labels)) if label is None else torch.nonzero(labels == label).squeeze(1)
                column = torch.full_like(rows, int(name)) if name.isdigit() else labels[rows]
                targets = hot[rows, column]
                if residual:
                    targets = index.column("one_minus_p")[rows] - index.column("one_minus_p")[rows].mean()
                sketches = view.sketches(rows)
                noise = relative * float(sketches.square().sum(1).mean())
                covariance = sketches @ sketches.T + noise * torch.eye(len(rows), dtype=torch.float64)
                if amplitude == "profiled":
                    covariance *= float(targets @ torch.linalg.solve(covariance, targets)) / len(rows)
                zeros = torch.zeros(len(rows), dtype=torch.float64)
                total += float(torch.distributions.MultivariateNormal(zeros, covariance).log_prob(targets))
        totals.append(total)
    return totals


@pytest.mark.parametrize("amplitude", ["profiled", "one"])
@pytest.mark.parametrize("dim", [8, 48], ids=["more rows than d", "fewer"])
@pytest.mark.parametrize(
    ("view", "targets"),
    [("own", "one-hot"), ("own", "residual"), ("margin", "one-hot"), ("margin", "residual"), ("class", "one-hot")],
)
def test_the_curve_is_that_of_dense_densities(tmp_path, view, targets, dim, amplitude):
    index = make_index(tmp_path, view=view, dim=dim)
    tuning = tune_noise(index, grid=GRID, amplitude=amplitude, targets=targets)
    expected = dense(index, GRID, amplitude, targets == "residual")
    # Both are float64; the dense one solves with K + σ²I of condition up to 1e5 at relative noise 1e-3.
    assert tuning.log_evidence == pytest.approx(expected, rel=1e-9)
    assert tuning.relative_noise == GRID[int(np.argmax(expected))]


@pytest.mark.parametrize(("view", "targets"), [("class", "one-hot"), ("margin", "one-hot"), ("own", "residual")])
def test_labels_are_mean_centred_one_hot_by_default_unless_rows_compare_within_a_label(tmp_path, view, targets):
    tuning = tune_noise(make_index(tmp_path, view=view, dim=8), grid=GRID)
    expected = dense(open_index(tmp_path / "small"), GRID, "profiled", residual=targets == "residual")
    assert tuning.targets == targets
    assert tuning.log_evidence == pytest.approx(expected, rel=1e-9)


def test_stored_spectra_and_computed_ones_say_the_same(tmp_path):
    index = make_index(tmp_path, view="margin", dim=8)
    computed = tune_noise(index, grid=GRID)
    derive(index, faiss=None)
    assert tune_noise(open_index(index.path), grid=GRID).log_evidence == pytest.approx(computed.log_evidence, rel=1e-12)


@pytest.mark.parametrize("purge", [False, True])
def test_removed_rows_have_no_part_in_it(tmp_path, purge):
    index = make_index(tmp_path, view="own", dim=8)
    remove_rows(index, ["train:4", "train:5", "train:33"], purge=purge)
    found = open_index(index.path)
    expected = dense(found, GRID, "profiled", residual=True)  # the default where rows compare within a label
    assert tune_noise(found, grid=GRID).log_evidence == pytest.approx(expected, rel=1e-9)


def test_targets_that_the_kernel_made_give_their_noise_back(tmp_path):
    # Regression on a metadata: y = Φw + ε with a known noise, in units a thousand times those of the measurement.
    rng = np.random.default_rng(0)
    sketches = rng.standard_normal((400, 24)).astype(np.float32)
    unit = float((sketches.astype(float) ** 2).sum(1).mean())
    values = 1000 * (sketches @ rng.standard_normal(24) + math.sqrt(0.1 * unit) * rng.standard_normal(400))
    index = index_with_metadata(tmp_path, sketches, [{"value": float(value)} for value in values])
    tuning = tune_noise(index, targets="metadata.value")
    assert tuning.targets == "metadata.value"
    assert 0.05 < tuning.relative_noise < 0.2


def index_with_metadata(tmp_path, sketches: np.ndarray, metadata: list[dict]) -> Index:
    plan = make_plan(view="custom", num_rows=len(sketches), dim=sketches.shape[1])
    contents = contents_of(plan)
    contents.sketches["custom"] = sketches
    rows = [
        type(row)(row.id, row.label, row.predicted_label, more, row.preview)
        for row, more in zip(train_rows(contents.labels), metadata, strict=True)
    ]
    with IndexWriter.create(tmp_path / "small", plan) as writer:
        write_contents(writer, contents)
        writer.write_examples(rows)
        return open_index(writer.publish())


def test_an_optimum_at_the_end_of_the_grid_is_said(tmp_path):
    index = make_index(tmp_path, view="margin")
    whole = tune_noise(index, grid=log_grid(1e-6, 1e6, 2))
    best = whole.relative_noise
    assert whole.at_edge is None
    assert tune_noise(index, grid=log_grid(best * 2, best * 100)).at_edge == "low"
    assert tune_noise(index, grid=log_grid(best / 100, best / 2)).at_edge == "high"


def test_indexes_without_targets_are_refused(tmp_path):
    labels = np.zeros(60, np.int64)
    labels[7] = -1
    index = make_index(tmp_path, view="margin", labels=labels)
    with pytest.raises(TargetError, match=r"1 of 60 rows .* have no label .*'train:7'"):
        tune_noise(index)
    index = make_index(tmp_path, name="one", view="own", labels=np.zeros(60, np.int64))
    with pytest.raises(TargetError, match="one label only"):
        tune_noise(index, targets="one-hot")
    index = make_index(tmp_path, name="class", view="class")
    with pytest.raises(TargetError, match="no residuals for view '0'"):
        tune_noise(index, targets="residual")
    index = make_index(tmp_path, name="custom", view="custom")
    with pytest.raises(TargetError, match=r"--targets metadata\.NAME"):
        tune_noise(index)
    with pytest.raises(TargetError, match=r"'hot' must be one-hot, residual or metadata\.NAME"):
        tune_noise(index, targets="hot")
    with pytest.raises(TargetError, match="'train:0' has 'book'; every row must have a number"):
        tune_noise(index, targets="metadata.source")
    with pytest.raises(UnknownMetadataError, match="length, source, weight"):
        tune_noise(index, targets="metadata.wieght")
    assert tune_noise(index, targets="metadata.weight").partitions[0].rows == 60


def test_a_target_that_an_older_program_stored_as_nan_is_refused(tmp_path):
    path = make_index(tmp_path, view="margin").path
    table = pq.read_table(path / "examples.parquet")
    place = table.schema.get_field_index("metadata.weight")
    values = table.column(place).to_pylist()
    values[4] = math.nan
    pq.write_table(table.set_column(place, table.schema.field(place), pa.array(values)), path / "examples.parquet")
    resign(path)
    with pytest.raises(TargetError, match="'train:4' has nan; every row must have a number"):
        tune_noise(open_index(path), targets="metadata.weight")


def test_the_grid_is_even_in_powers_of_ten():
    assert log_grid(0.01, 100.0, 1) == [0.01, 0.1, 1.0, 10.0, 100.0]
    assert len(log_grid()) == 65
    assert log_grid(1.0, 5.0, 2) == [1.0, 3.16228]
    for bad in ((0.0, 1.0, 1), (2.0, 1.0, 1), (1.0, 2.0, 0), (1.0, math.inf, 1)):
        with pytest.raises(TargetError, match="is none"):
            log_grid(*bad)


def test_the_noise_becomes_the_default_of_the_next_revision(tmp_path):
    index = make_index(tmp_path, faiss="Flat")
    tuning = tune_noise(index)
    before = {file: (index.path / file).read_bytes() for file in index.manifest.files}
    revision = store_default_noise(index, tuning.relative_noise, tuning.as_json())
    found = open_index(index.path)
    assert found.revision == revision != index.revision
    assert found.manifest.default_relative_noise == tuning.relative_noise
    assert found.manifest.noise_tuning["log_evidence"] == tuning.log_evidence
    assert {file: (index.path / file).read_bytes() for file in found.manifest.files} == before
    assert verify_index(index.path) == []  # derived entries are sound as they are
    assert not list(tmp_path.glob("*.partial"))


def test_the_plot_is_an_svg_with_every_point_and_the_chosen_one():
    text = curve_svg([0.1, 1.0, 10.0], [-3.0, -1.0, -2.0], title="a < b", x_label="x", y_label="y", marked=1)
    root = ElementTree.fromstring(text)
    space = "{http://www.w3.org/2000/svg}"
    points = root.find(f"{space}polyline").attrib["points"].split()
    heights = [float(point.split(",")[1]) for point in points]
    assert len(points) == 3
    assert heights[1] < heights[2] < heights[0]  # upwards is smaller
    circle = root.find(f"{space}circle").attrib
    assert points[1] == f"{circle['cx']},{circle['cy']}"
    assert root.find(f"{space}title").text == "a < b"
    assert {"0.1", "1", "10"} <= {each.text for each in root.iter(f"{space}text")}
