"""A recipe whose code fails: its index refuses examples and says why, and answers every other question."""

import json
from pathlib import Path
from typing import Any

import pytest

from indexer.build import build_index
from indexer.build_settings import BuildSettings
from service import logs
from service.engine import Engine
from service.errors import ExampleUnsupportedError, InvalidExampleError
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


# parse() takes anything, and what comes after it does not.
TRUSTING = (
    POINTS.partition("def parse(")[0]
    + """
def parse(content):
    return torch.tensor(content["point"]) if content["point"] else None, content.get("label", -1)


def label(example):
    return example[1] if example[1] < 3 else example.no_such_attribute


def collate(examples):
    return torch.stack([point.float() for point, _ in examples]), torch.tensor([label for _, label in examples])


def call(model, inputs):
    return model(inputs) if inputs.shape[-1] == 2 else model(inputs.no_such_attribute)


def representation(model, inputs):
    assert inputs[0, 0] < 50, "too large"
    return model[:-1](inputs)
"""
)


@pytest.fixture(scope="module")
def trusting(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    folder = tmp_path_factory.mktemp("trusting")
    (folder / "trusting.py").write_text(TRUSTING)
    build_index(BuildSettings(recipe=str(folder / "trusting.py"), threads=1), folder / "trusting")
    recipe = f"trusting={folder / 'trusting.py'}"
    return Engine.open(Settings(index=(f"trusting={folder / 'trusting'}",), recipe=(recipe,)))


@pytest.mark.parametrize(
    ("content", "asked", "said"),
    [
        ({"point": []}, {}, "but collate() cannot take it: AttributeError: 'NoneType' object has no attribute 'float'"),
        ({"point": [1, 2, 3]}, {}, "but the model cannot take it: AttributeError: 'Tensor' object has no attribute"),
        ({"point": [1, 2], "label": None}, {}, "but collate() cannot take it"),
        ({"point": [1, 2], "label": 7}, {"target": {"label": "true"}}, "but label() cannot take it: AttributeError"),
        ({"point": [99, 2]}, {"method": "repsim"}, "but representation() cannot take it: AssertionError: too large"),
    ],
)
def test_content_that_a_recipe_s_code_cannot_take_is_refused_with_the_reason(
    trusting: Engine, content: dict[str, Any], asked: dict[str, Any], said: str
) -> None:
    with pytest.raises(InvalidExampleError) as caught:
        trusting.attribute({"query": {"type": "example", "content": content}, "budget": 2} | asked)
    assert said in str(caught.value)
    assert caught.value.pointer == "/query/content"


def test_content_that_the_same_recipe_can_take_is_answered(trusting: Engine) -> None:
    assert len(trusting.attribute(EXAMPLE | {"method": "repsim"}).hits) == 2


MEASURING = """
import torch

def model():
    torch.manual_seed(0)
    return torch.nn.Linear(2, 1).eval()

def train_set():
    return [(torch.tensor([1.0, row / 20]), 0.0) for row in range(20)]

def parse(content):
    return torch.tensor(content["point"]), 0.0

def measurement(outputs, label):
    if abs(float(outputs[0].detach())) > 1000:
        raise ArithmeticError("out of scale")
    return outputs[0]
"""


def test_content_that_cannot_be_measured_is_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "measuring.py").write_text(MEASURING)
    build_index(BuildSettings(recipe=str(tmp_path / "measuring.py"), threads=1), tmp_path / "measuring")
    recipe = f"measuring={tmp_path / 'measuring.py'}"
    engine = Engine.open(Settings(index=(f"measuring={tmp_path / 'measuring'}",), recipe=(recipe,)))
    fine, wrong = ({"query": {"type": "example", "content": {"point": [x, 0.0]}}, "budget": 2} for x in (1.0, 1e6))
    assert len(engine.attribute(fine).hits) == 2
    with pytest.raises(InvalidExampleError, match="cannot measure this example: ArithmeticError: out of scale"):
        engine.attribute(wrong)
