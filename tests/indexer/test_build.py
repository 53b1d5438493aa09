"""What a build writes is what the recipe, the featuriser and the measurement say, whatever interrupts it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from indexer.build import BuildInterruptedError, build_index
from indexer.build_settings import BuildSettings, BuildSettingsError
from indexer.featurise import Featuriser
from indexer.preparation import prepare
from indexer.progress import Silent
from indexer.reading import ExampleError, UnstableDataError
from indexer.recipe import RecipeError
from indexer.recipe_file import load_recipe
from sketchstore.errors import (
    FaissFactoryError,
    IndexExistsError,
    ResumeMismatchError,
    UnfinishedBuildError,
)
from sketchstore.reader import open_index, verify_index
from tests.indexer.small_recipes import CLASSIFIER, REGRESSION, write_recipe

#: Whole builds and dense oracles: left out of `make check`.
pytestmark = pytest.mark.slow

SMALL = {"sketch": "rademacher", "dim": 32, "block_rows": 16}


def build(tmp_path: Path, source: str = CLASSIFIER, out: str = "points", *, resume=False, overwrite=False, **choices):
    path = write_recipe(tmp_path, source)
    settings = BuildSettings(str(path), **{**SMALL, **choices})
    return build_index(settings, tmp_path / out, resume=resume, overwrite=overwrite)


def contents(path: Path) -> dict[str, bytes]:
    """Every file that a digest covers, and the manifests that hold the digests."""
    files = (file for file in path.rglob("*") if file.is_file() and file.name not in ("build-log.jsonl", ".lock"))
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


def test_rows_queries_and_columns_are_those_of_the_recipe(tmp_path):
    report = build(tmp_path)
    index = open_index(tmp_path / "points")
    assert verify_index(tmp_path / "points") == []
    assert (report.num_rows, report.num_queries, report.num_parameters, report.sketch_dim) == (60, 12, 57, 32)
    recipe = load_recipe(tmp_path / "points.py")
    model = recipe.model()
    train = recipe.train_set()
    inputs, labels = recipe.collate(train)
    featuriser = prepare(BuildSettings(str(tmp_path / "points.py"), **SMALL)).featuriser
    expected = featuriser.sketch(train)
    stored = index.view("own").sketches(slice(0, 60))
    # float32 sums in other batch sizes: a few units in the last place of the largest entry
    assert torch.allclose(stored, expected.double(), rtol=0, atol=1e-5 * float(expected.abs().max()))
    with torch.no_grad():
        logits = model(inputs)
    assert torch.equal(index.labels, labels)
    assert torch.equal(index.predicted_labels, logits.argmax(1))
    p = logits.double().softmax(1).gather(1, labels[:, None]).squeeze(1)
    assert torch.allclose(index.column("one_minus_p"), 1 - p, rtol=1e-6)
    assert torch.allclose(index.column("representations"), model[:-1](inputs).detach(), atol=1e-6)
    norms = index.column("squared_norms.own")
    assert torch.allclose(norms, stored.square().sum(1))
    assert index.examples.id(17) == "train:17"
    assert index.examples.metadata(17)["first"] == pytest.approx(float(train[17][0][0]))
    assert index.examples.preview(17)[1].decode().startswith("point ")
    assert index.examples.predicted_label(17) == int(logits[17].argmax())


def test_queries_are_sketched_at_the_predicted_and_where_different_at_the_true_label(tmp_path):
    build(tmp_path)
    index = open_index(tmp_path / "points")
    recipe = load_recipe(tmp_path / "points.py")
    queries, model = recipe.query_set(), recipe.model()
    inputs, labels = recipe.collate(queries)
    predicted = model(inputs).argmax(1)
    assert bool((labels != predicted).any())
    featuriser = Featuriser.from_manifest(index.manifest, recipe, model)
    for row in range(len(queries)):
        wanted = list(dict.fromkeys([int(predicted[row]), int(labels[row])]))
        assert index.queries.targets(row, "own") == wanted
        assert (index.queries.predicted_label(row), index.queries.label(row)) == (int(predicted[row]), int(labels[row]))
        for target in wanted:
            expected = featuriser.sketch([queries[row]], torch.tensor([target]))[0].double()
            found = index.queries.sketch(row, "own", target)
            assert torch.allclose(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_the_manifest_holds_every_choice_with_its_value_in_force(tmp_path):
    build(tmp_path, limit=50, num_queries=3, exclude=("*.bias",), dtype="float16", previews=False, weights=False)
    manifest = open_index(tmp_path / "points").manifest
    assert manifest.recipe.options == {"count": 60, "width": 6, "seed": 0}
    assert manifest.recipe.file_digest is not None
    assert manifest.build.block_rows == 16
    options = manifest.build.options
    assert (options["limit"], options["num_queries"], options["exclude"]) == (50, 3, ["*.bias"])
    assert options["ntk_gain"] == 1.0
    assert [parameter.name for parameter in manifest.sketch.parameters] == ["0.weight", "2.weight"]
    assert [parameter.ntk_scale for parameter in manifest.sketch.parameters] == pytest.approx([5**-0.5, 6**-0.5])
    assert manifest.labels.names == {"0": "red", "1": "green", "2": "blue"}
    assert (manifest.num_rows, manifest.queries.count) == (50, 3)
    assert "model.safetensors" not in manifest.files
    assert open_index(tmp_path / "points").examples.preview(3) is None
    assert set(manifest.distortion) >= {"view", "kernel", "nats"}
    assert [nats["relative_noise"] for nats in manifest.distortion["nats"]] == [0.01, 1.0, 100.0]


def test_float16_has_one_power_of_two_a_view_and_is_close(tmp_path):
    build(tmp_path)
    build(tmp_path, out="half", dtype="float16")
    whole, half = open_index(tmp_path / "points"), open_index(tmp_path / "half")
    exact, rounded = (index.view("own").sketches(slice(0, 60)) for index in (whole, half))
    assert half.manifest.views["own"].scale_exponent != 0
    assert float((exact - rounded).abs().max()) <= 2**-11 * float(exact.abs().max())


def test_class_logit_has_one_view_per_class_with_all_rows_at_that_class(tmp_path):
    build(tmp_path, measurement="class_logit", views=(0, 2))
    index = open_index(tmp_path / "points")
    assert list(index.views) == ["0", "2"]
    recipe = load_recipe(tmp_path / "points.py")
    featuriser = Featuriser.from_manifest(index.manifest, recipe, recipe.model())
    expected = featuriser.sketch(recipe.train_set()[:4], torch.full((4,), 2), "2").double()
    assert torch.allclose(index.view("2").sketches(slice(0, 4)), expected, atol=1e-5)
    assert index.queries.targets(0, "2") == [2]


def test_a_regression_has_one_view_of_its_own_scalar(tmp_path):
    build(tmp_path, REGRESSION)
    index = open_index(tmp_path / "points")
    assert (list(index.views), index.manifest.measurement.name) == (["custom"], "custom")
    assert index.queries.targets(0, "custom") == [-1]
    assert index.predicted_labels is None
    assert index.manifest.labels.counts == {}


def test_a_margin_index_compares_all_rows(tmp_path):
    build(tmp_path, measurement="margin", sketch="sjlt", ntk=False)
    manifest = open_index(tmp_path / "points").manifest
    assert manifest.views["margin"].comparable == "all"
    assert {parameter.ntk_scale for parameter in manifest.sketch.parameters} == {1.0}


class StopAfter(Silent):
    """Asks to stop once some units of work are done."""

    def __init__(self, units: int) -> None:
        self.left = units

    def advance(self, units: int) -> None:
        self.left -= units

    def stop_requested(self) -> bool:
        return self.left <= 0


@pytest.mark.parametrize("units", [80, 130, 200])  # reading takes 72, then blocks, tables and queries
def test_a_build_stopped_anywhere_and_resumed_has_the_bytes_of_one_never_stopped(tmp_path, units):
    build(tmp_path, dtype="float16")
    settings = BuildSettings(str(tmp_path / "points.py"), **SMALL, dtype="float16")
    other = tmp_path / "stopped" / "points"
    other.parent.mkdir()
    with pytest.raises(BuildInterruptedError, match="--resume"):
        build_index(settings, other, progress=StopAfter(units))
    assert not other.exists()
    with pytest.raises(UnfinishedBuildError):
        build_index(settings, other)
    report = build_index(settings, other, resume=True)
    assert report.built_rows < 60 or units == 80
    assert contents(other) == contents(tmp_path / "points")


def test_resuming_what_is_published_already_restores_what_is_derived(tmp_path):
    build(tmp_path)
    before = contents(tmp_path / "points")
    (tmp_path / "points" / "derived" / "manifest.json").unlink()
    report = build(tmp_path, resume=True)
    assert report.built_rows == 0
    assert contents(tmp_path / "points") == before


@pytest.mark.parametrize(
    ("change", "source", "named"),
    [
        ({"options": {"seed": 1}}, CLASSIFIER, "digests.weights"),
        (
            {"options": {"count": 60}},
            CLASSIFIER.replace("_points(count, 0)", "_points(count, 2)"),
            "digests.data_order",
        ),
        ({}, CLASSIFIER.replace("_points(12, 1)", "_points(12, 3)"), "build.options.queries_digest"),
        ({"seed": 1}, CLASSIFIER, "sketch.seed"),
        ({"sketch": "gaussian"}, CLASSIFIER, "sketch.family"),
        ({"measurement": "margin"}, CLASSIFIER, "measurement.name"),
        ({"block_rows": 20}, CLASSIFIER, "build.block_rows"),
        ({"dtype": "float16"}, CLASSIFIER, "dtype"),
        ({"limit": 59}, CLASSIFIER, "num_rows"),
        ({"threads": 3}, CLASSIFIER, "build.num_threads"),
        ({"id_prefix": "b/"}, CLASSIFIER, "build.options.id_prefix was None, now 'b/'"),
    ],
)
def test_resuming_with_anything_else_is_refused_and_says_what_differs(tmp_path, change, source, named):
    settings = BuildSettings(str(write_recipe(tmp_path)), **SMALL)
    with pytest.raises(BuildInterruptedError):
        build_index(settings, tmp_path / "points", progress=StopAfter(100))
    with pytest.raises(ResumeMismatchError, match=named):
        build(tmp_path, source, resume=True, **change)


def test_nothing_is_overwritten_unless_asked(tmp_path):
    first = build(tmp_path).revision
    with pytest.raises(IndexExistsError):
        build(tmp_path, seed=1)
    assert build(tmp_path, seed=1, overwrite=True).revision != first


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ("return [(x, int", "return [(x * float('nan') if seed == 0 and not i - 37 else x, int"),
            "train row 37: .*NaN",
        ),
        (
            ("int(x[:3].argmax())) for x in inputs", "9 if i == 41 else 0) for i, x in enumerate(inputs)"),
            "train row 41: label 9",
        ),
    ],
)
def test_an_error_in_one_example_names_its_row(tmp_path, change, message):
    source = CLASSIFIER.replace(*change).replace("for x in inputs", "for i, x in enumerate(inputs)")
    with pytest.raises(ExampleError, match=message):
        build(tmp_path, source)


def test_an_output_that_is_not_finite_names_its_row_where_gradients_are(tmp_path):
    # row 37's own logit and its gradient are finite; that of another class is not
    source = CLASSIFIER.replace("nn.Sequential(", "_Third(").replace("_points(count, 0)", "_far(count)")
    source = source.replace("return model[:-1](inputs)", "return inputs") + THIRD
    with pytest.raises(ExampleError, match=r"train row 37: the model's outputs hold NaN"):
        build(tmp_path, source)


THIRD = """
class _Third(nn.Sequential):
    def forward(self, x):
        logits = super().forward(x)
        return logits + torch.tensor([0.0, 0.0, 1.0]) * torch.where(x[:, :1] > 1e5, torch.inf, 0.0)


def _far(count):
    rows = _points(count, 0)
    rows[37] = (torch.full((5,), 1e6), 0)
    return rows
"""
ROOT = """
class _Root(nn.Module):
    def forward(self, x):
        return x.abs().sqrt()


def _with_zero(count):
    rows = _points(count, 0)
    rows[23] = (torch.zeros(5), 0)
    return rows
"""


def test_a_gradient_that_is_not_finite_names_its_row(tmp_path):
    # sqrt has an infinite slope at 0, and only row 23 gets there: its outputs are finite, its gradient is not
    source = CLASSIFIER.replace("nn.Tanh()", "_Root()").replace("_points(count, 0)", "_with_zero(count)")
    source = source.replace("nn.Linear(5, width)", "nn.Linear(5, width, bias=False)") + ROOT
    with pytest.raises(ExampleError, match=r"train row 23: .*not finite"):
        build(tmp_path, source)


def test_a_data_set_that_changes_between_readings_is_refused(tmp_path):
    source = CLASSIFIER.replace("return _points(count, 0)", "return _Rows(_points(count, 0))") + (
        "\nclass _Rows(list):\n    def __getitem__(self, row):\n        x, y = list.__getitem__(self, row)\n"
        "        return x + torch.rand(5), y\n"
    )
    with pytest.raises(UnstableDataError, match="Switch augmentation off"):
        build(tmp_path, source)


@pytest.mark.parametrize(
    "change",
    [
        {"dim": 0},
        {"block_rows": 0},
        {"limit": 0},
        {"device": "tpu"},
        {"threads": 0},
        {"num_queries": -1},
        {"measurement": "custom"},
    ],
)
def test_impossible_choices_are_refused(tmp_path, change):
    with pytest.raises(BuildSettingsError):
        build(tmp_path, **change)


def test_a_factory_that_faiss_refuses_is_refused_before_the_first_row(tmp_path):
    settings = BuildSettings(str(write_recipe(tmp_path)), **SMALL)
    with pytest.raises(FaissFactoryError):
        build_index(settings, tmp_path / "points", faiss="Nonsense7")
    assert not (tmp_path / "points.partial").exists()


def test_an_empty_training_set_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="training set is empty"):
        build(tmp_path, CLASSIFIER.replace("return _points(count, 0)", "return []"))


def test_a_model_that_cannot_take_the_rows_is_refused_with_what_it_got(tmp_path):
    with pytest.raises(RecipeError, match=r"Float and Double.*float32 \[2, 5\], and its parameters are float64"):
        build(tmp_path, CLASSIFIER.replace(").eval()", ").double().eval()"))


def test_the_build_log_says_when_where_and_how_fast(tmp_path):
    report = build(tmp_path)
    events = [json.loads(line) for line in (tmp_path / "points" / "build-log.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events] == ["start", "block", "block", "block", "block", "finish"]
    assert events[0]["versions"]["torch"] == torch.__version__
    assert events[-1]["examples_per_second"] == pytest.approx(report.examples_per_second)
    assert 0 < events[-1]["sketch_share"] < 1
    assert events[-1]["query_sketch_seconds"] > 0


def test_the_report_and_the_log_say_how_often_the_model_is_right(tmp_path):
    report = build(tmp_path)
    index = open_index(tmp_path / "points")
    right = [index.queries.predicted_label(row) == index.queries.label(row) for row in range(12)]
    learned = [index.examples.predicted_label(row) == index.examples.label(row) for row in range(60)]
    assert report.accuracy == pytest.approx({"train": np.mean(learned), "query": np.mean(right)})
    events = [json.loads(line) for line in (tmp_path / "points" / "build-log.jsonl").read_text().splitlines()]
    assert events[-1]["accuracy"] == report.accuracy
    assert build(tmp_path, REGRESSION, "numbers").accuracy == {}


def test_the_example_recipe_of_the_readme_builds(tmp_path):
    root = Path(__file__).resolve().parents[2]
    report = build_index(BuildSettings(str(root / "examples" / "wine.py")), tmp_path / "wine")
    index = open_index(tmp_path / "wine")
    assert (report.num_rows, index.manifest.sketch.family) == (142, "identity")
    assert index.manifest.distortion["exact"] is True
    accuracy = np.mean([index.queries.predicted_label(row) == index.queries.label(row) for row in range(36)])
    assert accuracy > 0.9
