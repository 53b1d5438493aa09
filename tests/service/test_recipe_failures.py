"""A recipe whose code fails: its index refuses examples and says why, and answers every other question."""

import json
from pathlib import Path
from typing import Any

import pytest

from indexer.build import build_index
from indexer.build_settings import BuildSettings
from service import logs
from service.engine import Engine
from service.errors import ExampleUnsupportedError
from service.settings import Settings
from tests.service import points_recipe

POINTS = Path(points_recipe.__file__).read_text(encoding="utf-8")
# No architecture(), so the model is asked for, which reads its seed from the folder of data.
READS_DATA = (
    POINTS.replace("def architecture", "def _architecture")
    .replace("= architecture()", "= _architecture()")
    .replace("def model()", "def model(data_dir)")
    .replace("manual_seed(1)", "manual_seed(int((data_dir / 'seed').read_text()))")
)
EXAMPLE: dict[str, Any] = {"query": {"type": "example", "content": {"point": [0.1, 0.2]}}, "budget": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reads")
    (folder / "seed").write_text("1")
    (folder / "points.py").write_text(READS_DATA)
    build_index(BuildSettings(recipe=str(folder / "points.py"), data_dir=folder, threads=1), folder / "points")
    return folder


def served(folder: Path, data_dir: Path | None) -> Engine:
    recipe = f"points={folder / 'points.py'}"
    return Engine.open(Settings(index=(f"points={folder / 'points'}",), recipe=(recipe,), data_dir=data_dir))


def test_a_model_that_needs_a_data_dir_is_missed_at_the_start(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("error")
    engine = served(folder, None)
    card = engine.card()
    assert not card.recipe.loaded
    assert "example" not in card.query_types
    reason = card.recipe.reason
    assert reason is not None
    assert "points.py: model() raised TypeError: unsupported operand" in reason
    assert "in model)" in reason
    assert "model() takes data_dir and none was given: give --data-dir DIR" in reason
    with pytest.raises(ExampleUnsupportedError, match="give --data-dir DIR") as caught:
        engine.attribute(EXAMPLE)
    assert caught.value.pointer == "/query/type"
    assert len(engine.attribute({"query": {"type": "row", "row": 0}, "budget": 3}).hits) == 3
    (line,) = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert (line["event"], line["index"], line["reason"]) == ("no queries by example", "points", reason)


def test_a_model_that_fails_at_the_first_example_is_on_the_card_until_it_can_be_made(
    folder: Path, tmp_path: Path
) -> None:
    logs.configure("error")
    engine = served(folder, tmp_path)
    assert engine.card().recipe.loaded
    with pytest.raises(ExampleUnsupportedError, match=r"model\(\) raised FileNotFoundError"):
        engine.attribute(EXAMPLE)
    card = engine.card()
    assert (card.recipe.loaded, "example" in card.query_types) == (False, False)
    assert "FileNotFoundError" in str(card.recipe.reason)
    (tmp_path / "seed").write_text("1")
    assert len(engine.attribute(EXAMPLE).hits) == 2
    assert (engine.card().recipe.loaded, engine.card().recipe.reason) == (True, None)
