"""A kronecker index from the command's settings to the answer: plan, check, build, resume, query by example."""

from pathlib import Path

import pytest
import torch

from indexer.build import BuildInterruptedError, build_index
from indexer.build_settings import BuildSettings, BuildSettingsError
from indexer.check import check_recipe
from indexer.featurise import Featuriser
from indexer.plan import plan_build
from indexer.progress import Silent
from indexer.recipe_file import load_recipe
from indexer.sketches import SketchSpecError
from service.engine import open_engine
from sketchstore.reader import open_index, verify_index
from tests.indexer.small_recipes import CLASSIFIER, write_recipe

CONVOLUTIONS = CLASSIFIER.replace(
    "nn.Sequential(nn.Linear(5, width), nn.Tanh(), nn.Linear(width, 3)).eval()",
    "nn.Sequential(nn.Unflatten(1, (1, 5)), nn.Conv1d(1, 8, 3, padding=1), nn.BatchNorm1d(8), nn.ReLU(inplace=True), "
    "nn.Conv1d(8, 8, 3), nn.Tanh(), nn.Flatten(), nn.Linear(24, 3)).eval()",
).replace("return model[:-1](inputs)", "return None")


def settings_of(tmp_path: Path, **choices) -> BuildSettings:
    path = write_recipe(tmp_path, CONVOLUTIONS)
    return BuildSettings(str(path), **{"sketch": "kronecker", "dim": 64, "block_rows": 16, "seed": 3, **choices})


def test_plan_says_what_the_numbers_are_made_of(tmp_path):
    report = plan_build(settings_of(tmp_path))
    assert report.family == "kronecker"
    assert [line.partition(":")[0] for line in report.parts[:4]] == [
        "1.weight", "4.weight", "7.weight", "5 vectors",
    ]  # fmt: skip
    taken = [int(line.rpartition(" ")[2]) for line in report.parts[:4]]
    assert sum(taken) <= 64 < sum(taken) + 8
    assert report.as_json()["parts"] == report.parts


def test_check_compares_the_sketch_with_that_of_the_gradient(tmp_path, monkeypatch):
    assert [found for found in check_recipe(settings_of(tmp_path)) if not found.ok] == []
    monkeypatch.setattr("indexer.sketches.kronecker_pass.KroneckerPass.done", lambda self: None)
    wrong = [found for found in check_recipe(settings_of(tmp_path)) if not found.ok]
    assert len(wrong) == 1
    assert "off the sketch of its gradient" in wrong[0].detail


@pytest.mark.slow
def test_an_index_holds_its_parts_and_rows_of_the_featuriser_they_make(tmp_path):
    report = build_index(settings_of(tmp_path), tmp_path / "points")
    assert verify_index(tmp_path / "points") == []
    index = open_index(tmp_path / "points")
    parts = index.manifest.sketch.options["parts"]
    assert sum(part.get("dim", 0) or part["blocks"] * part["row_dim"] * part["column_dim"] for part in parts) <= 64
    recipe = load_recipe(tmp_path / "points.py")
    featuriser = Featuriser.from_manifest(index.manifest, recipe, recipe.model())
    rows = featuriser.sketch([recipe.train_set()[row] for row in range(16)])
    assert torch.equal(rows, torch.tensor(index.view("own").shard(0)[:16]))
    kernel = report.distortion["kernel"]
    assert 0.0 < kernel["spread_over_theory"] < 1.2  # over an upper bound; one draw of the signs
    assert abs(kernel["bias_in_standard_errors"]) < 3


@pytest.mark.slow
def test_an_interrupted_build_continues_to_the_same_bytes(tmp_path):
    whole = build_index(settings_of(tmp_path), tmp_path / "whole")

    class StopAfterTwoBlocks(Silent):
        rows = 0

        def advance(self, rows: int) -> None:
            self.rows += rows

        def stop_requested(self) -> bool:
            return self.rows >= 60 + 12 + 32

    with pytest.raises(BuildInterruptedError):
        build_index(settings_of(tmp_path), tmp_path / "points", progress=StopAfterTwoBlocks())
    build_index(settings_of(tmp_path), tmp_path / "points", resume=True)
    first, second = (sorted((tmp_path / name / "sketches").rglob("*.safetensors")) for name in ("whole", "points"))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    assert whole.num_rows == 60


@pytest.mark.slow
def test_a_query_by_example_is_answered_as_its_stored_row(tmp_path):
    build_index(settings_of(tmp_path, threads=1), tmp_path / "points")
    recipe = load_recipe(tmp_path / "points.py")
    engine = open_engine(tmp_path / "points", recipe=str(tmp_path / "points.py"))
    fields = {"target": {"label": "predicted"}, "budget": 5, "relative_noise": 1.0}
    for row in range(3):
        content = {"point": recipe.query_set()[row][0].tolist()}
        by_row = engine.attribute({"query": {"type": "row", "row": row}} | fields)
        by_example = engine.attribute({"query": {"type": "example", "content": content}} | fields)
        assert [hit.row for hit in by_example.hits] == [hit.row for hit in by_row.hits]
        assert by_example.information.infogain_nats == pytest.approx(by_row.information.infogain_nats, rel=1e-4)


def test_dims_and_options_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(SketchSpecError, match="needs a dim of at least"):
        plan_build(settings_of(tmp_path, dim=3))
    with pytest.raises(BuildSettingsError, match="--buckets belongs to --sketch sjlt"):
        plan_build(settings_of(tmp_path, buckets=2))
