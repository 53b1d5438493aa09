"""Whatever is wrong with one example, the message names its row."""

import pytest
import torch

from indexer.reading import ExampleError, ExampleReader
from indexer.recipe_file import load_recipe
from tests.indexer.small_recipes import CLASSIFIER, write_recipe


@pytest.fixture
def recipe(tmp_path):
    return load_recipe(write_recipe(tmp_path))


class Failing:
    """A data set whose row 5 is replaced."""

    def __init__(self, dataset, replacement):
        self.dataset, self.replacement = dataset, replacement

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, row):
        if row == 5 and isinstance(self.replacement, Exception):
            raise self.replacement
        return self.replacement if row == 5 else self.dataset[row]


@pytest.mark.parametrize(
    ("replacement", "message"),
    [
        (OSError("disk gone"), "the data set raised OSError: disk gone"),
        ((torch.zeros(7), 0), "rows 0 to 9 can be collated one by one, not together"),
        ((torch.zeros(5), "red"), "cannot be collated: .*the label 'red' is no whole number"),
        ((torch.zeros(5), -2), "label -2; a label is an integer from 0, or -1"),
        (None, "cannot be collated"),
        ({"x": torch.zeros(5), "y": 0}, r"The example is a dict; by default .* defines collate\(examples\) and label"),
    ],
)
def test_a_bad_example_is_named_by_its_row(recipe, replacement, message):
    reader = ExampleReader(recipe, Failing(recipe.train_set(), replacement), "train")
    with pytest.raises(ExampleError, match=message) as caught:
        reader.collate(0, 10)
    assert caught.value.row == (0 if "together" in message else 5)
    assert caught.value.split == "train"


def test_a_number_that_is_missing_is_none(tmp_path):
    source = CLASSIFIER.replace("float(example[0][0])", 'float("nan") if example[1] else 0.5')
    recipe = load_recipe(write_recipe(tmp_path, source))
    rows = recipe.train_set()
    reader = ExampleReader(recipe, rows, "train")
    assert {reader.metadata(example, row)["first"] for row, example in enumerate(rows)} == {None, 0.5}


def test_two_rows_with_one_id_are_refused(tmp_path):
    source = CLASSIFIER + "\ndef id(example, row, split):\n    return f'{split}/{row % 50}'\n"
    recipe = load_recipe(write_recipe(tmp_path, source))
    with pytest.raises(ExampleError, match=r"train row 50: has the id 'train/0' of row 0"):
        ExampleReader(recipe, recipe.train_set(), "train").read_once(16)


def test_the_digest_follows_inputs_labels_ids_and_order(recipe):
    rows = recipe.train_set()
    digest = ExampleReader(recipe, rows, "train").read_once(16).digest
    assert ExampleReader(recipe, list(rows), "train").read_once(16).digest == digest
    for changed in (
        [rows[1], rows[0], *rows[2:]],
        [(rows[0][0] + 1e-6, rows[0][1]), *rows[1:]],
        [(rows[0][0], (rows[0][1] + 1) % 3), *rows[1:]],
        rows[:-1],
    ):
        assert ExampleReader(recipe, changed, "train").read_once(16).digest != digest
    assert ExampleReader(recipe, rows, "query").read_once(16).digest != digest  # ids begin with the split


def test_a_limit_keeps_the_first_rows(recipe):
    reader = ExampleReader(recipe, recipe.train_set(), "train", limit=7)
    found = reader.read_once(4)
    assert found.ids == [f"train:{row}" for row in range(7)]
    assert len(found.block_digests) == 2
