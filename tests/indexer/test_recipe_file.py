"""A user's file becomes a recipe, and what is wrong with it is said before anything is trained."""

from pathlib import Path

import pytest
import torch

from indexer.recipe import RecipeError, RecipeInputError, RecipeNotFoundError, RecipeOptionError
from indexer.recipe_file import CONSTANTS, PARTS, load_recipe
from tests.indexer.small_recipes import CLASSIFIER, REGRESSION, write_recipe

MINIMAL = """
import torch
def train_set():
    return [(torch.ones(2), 0)]
def model():
    return torch.nn.Linear(2, 3).eval()
"""


def test_two_functions_make_a_recipe(tmp_path):
    recipe = load_recipe(write_recipe(tmp_path, MINIMAL, "two.py"))
    assert (recipe.name, recipe.builtin, recipe.options) == ("two", False, {})
    example = recipe.train_set()[0]
    inputs, labels = recipe.collate([example, example])
    assert inputs.shape == (2, 2)
    assert labels.tolist() == [0, 0]
    assert recipe.id(example, 7, "train") == "train:7"
    assert recipe.metadata(example) == {}
    assert recipe.preview(example) is None
    assert recipe.query_set() is None
    model = recipe.model()
    assert not model.training
    assert recipe.outputs(recipe.call(model, inputs)).shape == (2, 3)
    assert recipe.representation(model, inputs) is None
    assert float(recipe.loss(torch.tensor([0.0, 0.0]), torch.tensor(0))) == pytest.approx(0.6931, abs=1e-4)


def test_a_recipe_without_parse_says_which_queries_it_can_take(tmp_path):
    recipe = load_recipe(write_recipe(tmp_path, MINIMAL))
    with pytest.raises(RecipeInputError, match="defines no parse") as caught:
        recipe.parse({"image": ""})
    assert caught.value.allowed == "a query by row, train_id or sketch"


def test_options_are_the_keyword_arguments_of_the_functions(tmp_path):
    path = write_recipe(tmp_path)
    assert load_recipe(path).options == {"count": 60, "width": 6, "seed": 0}
    recipe = load_recipe(path, options={"count": "7", "width": 3})
    assert len(recipe.train_set()) == 7
    assert recipe.model()[0].out_features == 3
    assert recipe.options == {"count": 7, "width": 3, "seed": 0}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cuont": "7"}, "has no option 'cuont'; its options: count, seed, width"),
        ({"count": "many"}, "option 'count': 'many' is not a whole number"),
        ({"count": "7.5"}, "not a whole number"),
        ({"count": True}, "not a whole number"),
    ],
)
def test_a_wrong_option_is_an_error_that_lists_the_right_ones(tmp_path, options, message):
    with pytest.raises(RecipeOptionError, match=message):
        load_recipe(write_recipe(tmp_path), options=options)


def test_an_option_without_a_default_must_be_given(tmp_path):
    source = MINIMAL.replace("def model():", "def model(width: int):")
    with pytest.raises(RecipeOptionError, match="--option width=VALUE"):
        load_recipe(write_recipe(tmp_path, source))


def test_one_option_has_one_default(tmp_path):
    source = MINIMAL.replace("train_set()", "train_set(seed=1)").replace("model()", "model(seed=2)")
    with pytest.raises(RecipeError, match="one option has one default"):
        load_recipe(write_recipe(tmp_path, source))


def test_data_dir_goes_to_the_functions_that_ask_for_it(tmp_path):
    source = MINIMAL.replace("train_set()", "train_set(data_dir)").replace("torch.ones(2), 0", "str(data_dir), 0")
    assert load_recipe(write_recipe(tmp_path, source), data_dir="/some/where").train_set()[0][0] == "/some/where"


@pytest.mark.parametrize(("default", "seen"), [("", "None"), ("=None", "None"), ("='here'", "here")])
def test_without_data_dir_its_default_stands(tmp_path, default, seen):
    source = MINIMAL.replace("train_set()", f"train_set(data_dir{default})").replace(
        "torch.ones(2), 0", "str(data_dir), 0"
    )
    assert load_recipe(write_recipe(tmp_path, source)).train_set()[0][0] == seen


def test_data_dir_that_no_part_asks_for_is_said(tmp_path, caplog):
    load_recipe(write_recipe(tmp_path, MINIMAL), data_dir="/some/where")
    assert "no part has an argument data_dir" in caplog.text
    caplog.clear()
    load_recipe(write_recipe(tmp_path, MINIMAL.replace("train_set()", "train_set(data_dir)")), data_dir="/some/where")
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("hint", "text", "value"), [("int | None", "3", 3), ("Optional[float]", "0.5", 0.5), ("str | int", "3", "3")]
)
def test_an_option_that_may_be_none_has_the_type_of_its_annotation(tmp_path, hint, text, value):
    source = "from typing import Optional\n" + MINIMAL.replace("train_set()", f"train_set(most: {hint} = None)")
    assert load_recipe(write_recipe(tmp_path, source), options={"most": text}).options == {"most": value}
    assert load_recipe(write_recipe(tmp_path, source)).options == {}


@pytest.mark.parametrize("name", ["trainset", "train_sets", "label_name", "metadat", "ntk_gian", "previews"])
def test_a_misspelt_part_is_an_error_that_says_what_was_meant(tmp_path, name):
    with pytest.raises(RecipeError, match=f"{name!r} is not a part of a recipe; did you mean"):
        load_recipe(write_recipe(tmp_path, MINIMAL + f"\n{name} = 1\n"))


def test_helpers_and_imports_are_left_alone(tmp_path):
    extra = "\nfrom json import dumps as labels\n_trainset = 1\nimport math as models\ndef tokenise(): pass\n"
    assert load_recipe(write_recipe(tmp_path, MINIMAL + extra)).name == "points"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (MINIMAL.replace("def model", "def build"), r"must define model\(\).*It returns the trained torch.nn.Module"),
        (
            MINIMAL.replace("def train_set", "def build"),
            r"train_set\(\).*It returns a sequence of pairs \(inputs, label\)",
        ),
        ("import missing_module_of_mine", "cannot be imported: ModuleNotFoundError"),
        ("def model(:", "cannot be imported: SyntaxError"),
        (MINIMAL + "\nlabel = 3\n", "label must be a function label"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path, source, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe(write_recipe(tmp_path, source))


def test_parts_of_the_wrong_type_are_refused_when_used(tmp_path):
    source = MINIMAL.replace("torch.nn.Linear(2, 3).eval()", "42").replace("[(torch.ones(2), 0)]", "iter([1])")
    recipe = load_recipe(write_recipe(tmp_path, source))
    with pytest.raises(RecipeError, match=r"not a torch\.nn\.Module"):
        recipe.model()
    with pytest.raises(RecipeError, match="must be map-style"):
        recipe.train_set()


def test_a_model_in_training_mode_is_refused_with_the_modules_that_are(tmp_path):
    trained = "torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Dropout(), torch.nn.Linear(4, 3))"
    recipe = load_recipe(write_recipe(tmp_path, MINIMAL.replace("torch.nn.Linear(2, 3).eval()", trained)))
    with pytest.raises(RecipeError, match=r"the model \(Sequential\), 0 \(Linear\), 1 \(Dropout\).*model\.eval\(\)"):
        recipe.model()
    partly = "(lambda model: (model.eval(), model[1].train(), model)[2])(" + trained + ")"
    recipe = load_recipe(write_recipe(tmp_path, MINIMAL.replace("torch.nn.Linear(2, 3).eval()", partly), "partly.py"))
    with pytest.raises(RecipeError, match=r"training mode: 1 \(Dropout\)\."):
        recipe.model()


def test_a_label_that_is_no_whole_number_is_refused(tmp_path):
    source = MINIMAL + "\ndef label(example):\n    return example[1]\n"
    recipe = load_recipe(write_recipe(tmp_path, source))
    assert [recipe.label((None, value)) for value in (2, 2.0, -1, torch.tensor(1))] == [2, 2, -1, 1]
    with pytest.raises(RecipeError, match=r"label\(example\) returned 1\.5, which is no class"):
        recipe.label((None, 1.5))


def test_a_label_that_is_text_says_what_labels_are(tmp_path):
    recipe = load_recipe(write_recipe(tmp_path, MINIMAL))
    for label in ("horizontal", None, [1, 2]):
        with pytest.raises(
            RecipeError, match=r"is no whole number\. Number the classes from 0 and name them in label_"
        ):
            recipe.label((None, label))


def test_unknown_names_list_the_builtin_recipes():
    with pytest.raises(RecipeNotFoundError, match=r"cifar10, digits, fashion-mnist.* did you mean 'digits'"):
        load_recipe("digit")
    with pytest.raises(FileNotFoundError):
        load_recipe("no/such/recipe.py")


def test_targets_of_a_regression_are_not_labels(tmp_path):
    recipe = load_recipe(write_recipe(tmp_path, REGRESSION))
    assert recipe.measurement is not None
    assert recipe.collate([recipe.train_set()[0]])[1].tolist() == [-1]


def test_a_file_can_import_its_neighbours(tmp_path):
    (tmp_path / "neighbour_of_mine.py").write_text("WIDTH = 4\n", encoding="utf-8")
    source = "from neighbour_of_mine import WIDTH\n" + MINIMAL.replace("2, 3", "2, WIDTH")
    assert load_recipe(write_recipe(tmp_path, source)).model().out_features == 4


def test_the_file_digest_follows_the_file(tmp_path):
    before = load_recipe(write_recipe(tmp_path, CLASSIFIER)).file_digest
    after = load_recipe(write_recipe(tmp_path, CLASSIFIER + "\n# changed\n")).file_digest
    assert before != after


@pytest.mark.parametrize("name", ["wine.py", "diabetes.py"])
def test_the_example_in_the_readme_is_the_example_that_is_tested(name):
    root = Path(__file__).resolve().parents[2]
    assert (root / "examples" / name).read_text(encoding="utf-8") in (root / "README.md").read_text(encoding="utf-8")


def test_bringing_a_model_takes_a_recipe_of_twenty_lines():
    root = Path(__file__).resolve().parents[2]
    section = (root / "README.md").read_text(encoding="utf-8").partition("\n## Bring your own model\n")[2]
    recipe = section.partition("```python\n")[2].partition("```")[0]
    assert recipe == (root / "examples" / "wine.py").read_text(encoding="utf-8")
    assert len([line for line in recipe.splitlines() if line]) <= 20  # all but the empty ones between its parts


def test_every_part_of_a_recipe_is_documented():
    page = (Path(__file__).resolve().parents[2] / "docs" / "recipes.md").read_text(encoding="utf-8")
    for part, arguments in PARTS.items():
        assert f"| `{part}({', '.join(arguments)})` |" in page
    assert all(f"`{name}`" in page for name in CONSTANTS)
