"""architecture() with the weights of model() is the same function, or a build says so before its first row."""

from pathlib import Path

import pytest

from indexer.build import build_index
from indexer.build_settings import BuildSettings
from indexer.check import check_recipe
from indexer.recipe import RecipeError
from tests.indexer.small_recipes import ATTACHED_LATE, CLASSIFIER, FROZEN_TRUNK, write_recipe

SOURCE = CLASSIFIER.replace(
    "def representation",
    """def architecture(width=6):
    return nn.Sequential(nn.Linear(5, width), nn.Tanh(), nn.Linear(width, 3)).eval()


def representation""",
)
MADE = "    return nn.Sequential(nn.Linear(5, width), nn.Tanh(), nn.Linear(width, 3)).eval()\n\n\ndef representation"
OTHERS = {
    "an activation": (
        "nn.Tanh(), nn.Linear(width, 3)).eval()",
        "nn.ReLU(), nn.Linear(width, 3)).eval()",
        "is no weight",
    ),
    "a type": (".eval()\n\n\ndef representation", ".double().eval()\n\n\ndef representation", "weights of other types"),
    "a layer": ("nn.Linear(width, 3)).eval()", "nn.Linear(width, 3), nn.Linear(3, 3)).eval()", "has other modules"),
    "a shape": ("nn.Linear(width, 3)).eval()", "nn.Linear(width, 3), nn.Flatten(0)).eval()", "outputs of shape"),
}


def failures(path: Path) -> list[str]:
    return [found.check for found in check_recipe(BuildSettings(str(path), sketch="sjlt", dim=64)) if not found.ok]


@pytest.mark.parametrize(("there", "here", "said"), OTHERS.values(), ids=OTHERS)
def test_another_function_is_refused_and_leaves_nothing(tmp_path, there, here, said):
    assert SOURCE.count(MADE) == 1
    path = write_recipe(tmp_path, SOURCE.replace(MADE, MADE.replace(there, here)))
    with pytest.raises(RecipeError, match=f"architecture.*{said}.*let it build what model"):
        build_index(BuildSettings(str(path), sketch="sjlt", dim=64), tmp_path / "index")
    assert not list(tmp_path.glob("index*"))
    assert failures(path) == ["architecture() is the model without its weights"]


@pytest.mark.parametrize("source", [CLASSIFIER, SOURCE, FROZEN_TRUNK, ATTACHED_LATE])
def test_the_same_function_passes_whatever_is_frozen_or_comes_first(tmp_path, source):
    assert failures(write_recipe(tmp_path, source)) == []
