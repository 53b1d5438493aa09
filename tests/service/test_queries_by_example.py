"""Queries by content: sketched by the code that sketched the training set, refused where they cannot be."""

from pathlib import Path
from typing import Any

import pytest

from indexer.build import build_index
from indexer.build_settings import BuildSettings
from service.engine import Engine, open_engine
from service.errors import ExampleUnsupportedError, InvalidExampleError
from sketchstore.errors import IncompatibleSketchError
from tests.service import points_recipe

RECIPE = str(Path(points_recipe.__file__))


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("points")
    for measurement in ("label_logit", "class_logit", "margin"):
        settings = BuildSettings(recipe=RECIPE, measurement=measurement, threads=1)
        build_index(settings, root / measurement)
    build_index(BuildSettings(recipe=RECIPE, weights=False, threads=1), root / "weightless")
    return {path.name: path for path in root.iterdir()}


@pytest.fixture(scope="module")
def engines(directories: dict[str, Path]) -> dict[str, Engine]:
    return {name: open_engine(path, recipe=RECIPE) for name, path in directories.items()}


def stored_point(row: int) -> dict[str, Any]:
    return {"point": points_recipe.query_set()[row][0].tolist(), "label": points_recipe.query_set()[row][1]}


@pytest.mark.parametrize("measurement", ["label_logit", "class_logit", "margin"])
@pytest.mark.parametrize("target", ["predicted", "true"])
def test_an_example_is_answered_as_its_stored_row(engines: dict[str, Engine], measurement: str, target: str) -> None:
    engine = engines[measurement]
    fields = {"target": {"label": target}, "budget": 5, "relative_noise": 1.0}
    for row in range(4):
        by_row = engine.attribute({"query": {"type": "row", "row": row}} | fields)
        by_example = engine.attribute({"query": {"type": "example", "content": stored_point(row)}} | fields)
        assert [hit.row for hit in by_example.hits] == [hit.row for hit in by_row.hits]
        assert by_example.query.label == by_row.query.label
        assert by_example.query.predicted_label == by_row.query.predicted_label
        # The stored sketch was computed in a larger float32 batch.
        assert by_example.information.infogain_nats == pytest.approx(by_row.information.infogain_nats, rel=1e-4)
        assert by_example.timings_ms["sketch"] > 0


def test_the_sketches_endpoint_sketches_examples(engines: dict[str, Engine]) -> None:
    queries = [{"type": "row", "row": 1}, {"type": "example", "content": stored_point(1)}]
    row, example = engines["margin"].sketch({"queries": queries}).sketches
    assert example.values == pytest.approx(row.values, rel=1e-4, abs=1e-5)
    assert example.label == row.label


@pytest.mark.parametrize(
    ("content", "target", "pointer"),
    [
        ({}, "predicted", "/query/content/point"),
        ({"point": [1, 2, 3]}, "predicted", "/query/content/point"),
        ({"bug": 1}, "predicted", "/query/content"),
        ({"unchecked": [1.0, 2.0, 3.0]}, "predicted", "/query/content"),
        ({"unchecked": [1, 2]}, "predicted", "/query/content"),  # integers: torch makes int64 of them
        ({"point": [1e300, 0]}, "predicted", "/query/content"),
        ({"point": [1, 2]}, "true", "/target/label"),
        ({"point": [1, 2]}, 3, "/target/label"),
    ],
)
def test_content_that_is_no_example_is_refused(
    engines: dict[str, Engine], content: dict[str, Any], target: str | int, pointer: str
) -> None:
    with pytest.raises(InvalidExampleError) as caught:
        engines["margin"].attribute({"query": {"type": "example", "content": content}, "target": {"label": target}})
    assert caught.value.pointer == pointer


def test_the_card_says_that_examples_are_taken(engines: dict[str, Engine]) -> None:
    card = engines["margin"].card()
    assert "example" in card.query_types
    assert card.recipe.loaded
    engines["margin"].attribute({"query": {"type": "example", "content": stored_point(0)}})
    assert engines["margin"].card().query_sketch_seconds


def test_without_the_recipe_or_the_weights_examples_are_refused_and_rows_answered(
    directories: dict[str, Path], engines: dict[str, Engine]
) -> None:
    for engine, reason in ((open_engine(directories["margin"]), "--recipe"), (engines["weightless"], "--no-weights")):
        with pytest.raises(ExampleUnsupportedError, match=reason):
            engine.attribute({"query": {"type": "example", "content": stored_point(0)}})
        assert len(engine.attribute({"query": {"type": "row", "row": 0}, "budget": 3}).hits) == 3


def test_another_recipe_than_the_index_s_is_refused_at_the_start(directories: dict[str, Path], tmp_path: Path) -> None:
    other = tmp_path / "wider.py"
    other.write_text(Path(RECIPE).read_text().replace("8", "9"))
    with pytest.raises(IncompatibleSketchError, match="do not fit"):
        open_engine(directories["margin"], recipe=str(other))
