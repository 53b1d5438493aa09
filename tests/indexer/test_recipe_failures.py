"""A recipe whose own code raises: one clear error with the line of its file, from every command."""

import pickle

import pytest

from indexer.cli import main
from indexer.recipe import RecipeCodeError
from indexer.recipe_file import load_recipe
from indexer.workers import _sendable
from tests.indexer.small_recipes import CLASSIFIER, write_recipe

READS_DATA = CLASSIFIER.replace("def train_set(count=60):", "def train_set(data_dir, count=60):\n    data_dir / 'a'")
FAILS_LATE = CLASSIFIER.replace("return model[:-1](inputs)", "return [][0]")


def line_of(source: str, text: str) -> int:
    return next(number for number, line in enumerate(source.splitlines(), 1) if text in line)


def failed(*words: object) -> int:
    with pytest.raises(SystemExit) as stopped:
        main([str(word) for word in words])
    assert isinstance(stopped.value.code, int)
    return stopped.value.code


@pytest.mark.parametrize("command", ["build", "plan", "check"])
def test_a_part_that_raises_is_told_with_its_line_and_that_data_dir_is_missing(tmp_path, capsys, command):
    path = write_recipe(tmp_path, READS_DATA)
    words = (command, path, "--out", tmp_path / "index") if command == "build" else (command, path)
    assert failed(*words) == 1
    printed = capsys.readouterr()
    told = printed.out if command == "check" else printed.err
    assert "Traceback" not in printed.out + printed.err
    assert (
        "points.py: train_set() raised TypeError: unsupported operand type(s) for /: 'NoneType' and 'str' "
        f"(points.py, line {line_of(READS_DATA, 'data_dir / ')}, in train_set). train_set() takes data_dir and none "
        "was given: give --data-dir DIR"
    ) in " ".join(told.split())


def test_with_a_data_dir_nothing_is_said_of_it(tmp_path, capsys):
    source = READS_DATA.replace("data_dir / 'a'", "(data_dir / 'a').read_text()")
    assert failed("plan", write_recipe(tmp_path, source), "--data-dir", tmp_path) == 1
    told = capsys.readouterr().err
    assert "train_set() raised FileNotFoundError" in told
    assert "give --data-dir" not in told


@pytest.mark.parametrize(
    ("broken", "told"),
    [("\nrows = undefined_name\n", "NameError"), ("\ndef broken(:\n", "SyntaxError")],
)
def test_a_file_that_cannot_be_imported_is_told_with_its_line(tmp_path, capsys, broken, told):
    source = CLASSIFIER + broken
    assert failed("plan", write_recipe(tmp_path, source)) == 1
    said = capsys.readouterr().err
    assert f"points.py: cannot be imported: {told}: " in said
    assert f"points.py, line {len(source.splitlines())})" in said


def test_a_part_that_raises_amid_the_work_is_told_with_its_line(tmp_path, capsys):
    path = write_recipe(tmp_path, FAILS_LATE)
    assert failed("build", path, "--out", tmp_path / "index", "--num-queries", "0", "--dim", "8") == 1
    told = capsys.readouterr().err
    assert "IndexError: list index out of range" in told
    assert f"(points.py, line {line_of(FAILS_LATE, '[][0]')}, in representation)" in told


def test_an_example_that_cannot_be_collated_is_told_with_the_recipe_s_line(tmp_path, capsys):
    source = CLASSIFIER + "\n\ndef collate(examples):\n    return examples[0].lower()\n"
    assert failed("plan", write_recipe(tmp_path, source)) == 1
    told = capsys.readouterr().err
    assert "train row 0: cannot be collated: AttributeError" in told
    assert f"(points.py, line {line_of(source, 'lower()')}, in collate)" in told


def test_a_model_of_another_file_that_raises_amid_the_work_is_no_traceback(tmp_path, capsys):
    source = """
import torch

class Picky(torch.nn.Linear):
    def forward(self, inputs):
        if bool((inputs == 30).any()):
            raise KeyError("cannot take 30")
        return super().forward(inputs)
"""
    (tmp_path / "picky_model_of_mine.py").write_text(source, encoding="utf-8")
    recipe = """
from picky_model_of_mine import Picky, torch

def model():
    return Picky(1, 2).eval()

def train_set():
    return [(torch.tensor([float(row)]), row % 2) for row in range(40)]
"""
    path = write_recipe(tmp_path, recipe)
    assert failed("build", path, "--out", tmp_path / "index") == 1
    assert "error: the recipe's code or model raised KeyError: 'cannot take 30'" in capsys.readouterr().err


def test_what_a_worker_sends_still_says_where_the_recipe_raised(tmp_path):
    recipe = load_recipe(write_recipe(tmp_path, FAILS_LATE))
    with pytest.raises(IndexError) as caught:
        recipe.representation(recipe.model(), None)
    sent = pickle.loads(pickle.dumps(_sendable(caught.value)))
    assert isinstance(sent, RecipeCodeError)
    assert f"IndexError: list index out of range (points.py, line {line_of(FAILS_LATE, '[][0]')}, in" in str(sent)


def test_a_state_that_is_no_tensor_is_named(tmp_path, capsys):
    source = CLASSIFIER + (
        "\n\nclass _Counting(nn.Linear):\n    def get_extra_state(self):\n        return {'count': 3}\n\n"
        "    def set_extra_state(self, state):\n        pass\n"
    )
    source = source.replace("nn.Sequential(nn.Linear(5", "nn.Sequential(_Counting(5")
    assert failed("build", write_recipe(tmp_path, source), "--out", tmp_path / "index") == 2
    told = " ".join(capsys.readouterr().err.split())
    assert "the model's state has '0._extra_state', a dict" in told
    assert "Traceback" not in told
