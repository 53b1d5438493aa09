"""Appended rows are those that one build of everything would have written; until then the old index is whole."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from indexer.append import AppendError, append_rows
from indexer.attributor import Attributor, Question
from indexer.build import BuildInterruptedError, build_index
from indexer.build_settings import BuildSettings
from indexer.featurise import Featuriser
from indexer.index_recipe import load_model, recipe_of
from indexer.progress import Silent
from indexer.reading import ExampleReader
from indexer.recipe import RecipeError
from indexer.recipe_file import load_recipe
from indexer.rows_of_recipe import ChosenRows, RowsOfRecipe
from indexer.workers import Workers
from sketchstore.errors import IdCollisionError, IncompatibleSketchError, IndexExistsError, MergeMismatchError
from sketchstore.reader import Index, open_index, verify_index
from sketchstore.remove import remove_rows
from tests.index_factory import resign
from tests.indexer.small_recipes import CLASSIFIER, FROZEN_TRUNK, write_recipe

#: Whole builds: left out of `make check`.
pytestmark = pytest.mark.slow

SOURCE = CLASSIFIER.replace(
    "def train_set(count=60):\n    return _points(count, 0)",
    "def train_set(data_dir, seed_of_data=0):\n"
    "    count = int((data_dir / 'count').read_text())\n"
    "    return _points(100, seed_of_data)[:count]",
)
SMALL = {"sketch": "rademacher", "dim": 32, "block_rows": 16}


@pytest.fixture
def recipe(tmp_path) -> Path:
    (tmp_path / "count").write_text("60")
    return write_recipe(tmp_path, SOURCE)


def build(recipe: Path, out: str = "points", **choices) -> Index:
    settings = BuildSettings(str(recipe), data_dir=recipe.parent, **{**SMALL, **choices})
    build_index(settings, recipe.parent / out)
    return open_index(recipe.parent / out)


def append(index: Index, recipe: Path, **choices):
    return append_rows(index.path, recipe=str(recipe), data_dir=recipe.parent, **choices)


@pytest.mark.parametrize("sketch", ["rademacher", "kronecker"])
def test_coordinates_are_those_of_the_index_whatever_is_frozen_in_the_architecture(tmp_path, sketch):
    (tmp_path / "count").write_text("40")
    recipe = write_recipe(tmp_path, FROZEN_TRUNK)
    index = build(recipe, sketch=sketch, num_queries=0)
    (tmp_path / "count").write_text("64")
    append(index, recipe)
    whole = build(recipe, "whole", sketch=None, dim=None, sketch_like=index.path, num_queries=0)
    # float32 sums in batches of other sizes
    assert_same_rows(open_index(index.path), whole, tolerance=1e-5)


def assert_same_rows(ours: Index, theirs: Index, tolerance: float = 0.0) -> None:
    assert ours.num_rows == theirs.num_rows
    for name, view in theirs.views.items():
        expected = view.sketches(slice(None))
        atol = tolerance * float(expected.abs().max())
        assert torch.allclose(ours.view(name).sketches(slice(None)), expected, rtol=0, atol=atol)
        assert ours.view(name).mean_squared_norm() == pytest.approx(view.mean_squared_norm(), rel=tolerance)
    assert set(ours.manifest.columns) == set(theirs.manifest.columns)
    for name in theirs.manifest.columns:
        assert torch.allclose(ours.column(name), theirs.column(name), rtol=tolerance, atol=tolerance), name
    assert ours.manifest.labels == theirs.manifest.labels
    for row in range(theirs.num_rows):
        for what in ("id", "label", "predicted_label", "metadata", "preview"):
            assert getattr(ours.examples, what)(row) == getattr(theirs.examples, what)(row)


@pytest.mark.parametrize(
    "choices",
    [
        {},
        {"measurement": "margin", "ntk": False},
        {"measurement": "class_logit", "views": (2, 0)},
        {"sketch": "sjlt", "buckets": 2, "layers": "linear", "exclude": ("0",)},
        {"sketch": "identity", "dim": None},
        {"compute_dtype": "bfloat16", "batch_rows": 8, "memory_budget_mib": 64},
    ],
    ids=["own", "margin", "class", "sjlt of one layer", "identity", "bfloat16, batches of 8"],
)
def test_appending_gives_the_rows_of_one_build_bit_for_bit(recipe, choices):
    whole, index = build(recipe, "whole", **choices), build(recipe, limit=32, **choices)
    report = append(index, recipe)
    assert (report.first_row, report.appended_rows, report.num_rows) == (32, 28, 60)
    found = open_index(index.path)
    assert found.revision == report.revision != index.revision
    assert verify_index(found.path) == []
    assert_same_rows(found, whole)
    assert found.queries.count == whole.queries.count
    assert [(source.first_row, source.rows) for source in found.manifest.sources] == [(0, 32), (32, 28)]
    assert sorted(path.name for path in recipe.parent.iterdir() if path.is_dir() and "points" in path.name) == [
        "points"
    ]


def test_processes_share_the_blocks_of_an_append_and_write_the_same_rows(recipe, monkeypatch):
    started = []

    class Counted(Workers):
        def __init__(self, job, count, **others):
            started.append(count)
            super().__init__(job, count, **others)

    monkeypatch.setattr("indexer.build.Workers", Counted)
    one, two = (build(recipe, name, limit=16, threads=1) for name in ("one", "two"))
    (recipe.parent / "count").write_text("75")
    append(one, recipe, threads=1, id_prefix="new/")
    append(two, recipe, threads=1, id_prefix="new/", processes=2)
    assert started == [2]
    assert_same_rows(open_index(two.path), open_index(one.path))


def test_appended_rows_are_put_together_by_length_as_the_recipe_says(recipe):
    text = recipe.read_text(encoding="utf-8") + "\n\ndef length(example):\n    return 1 + example[1]\n"
    recipe.write_text(text, encoding="utf-8")
    whole = load_recipe(recipe, data_dir=recipe.parent)
    part = RowsOfRecipe(whole, whole.train_set(), None, ChosenRows(32, 28, ""))
    reader = ExampleReader(part, part.train_set(), "train")
    assert reader.lengths(reader.collate(0, 28)) == [whole.length(whole.train_set()[row]) for row in range(32, 60)]


def test_an_index_built_behind_a_prefix_goes_on_behind_it(recipe):
    whole, index = build(recipe, "whole", id_prefix="b/"), build(recipe, limit=32, id_prefix="b/")
    assert [whole.examples.id(row) for row in (0, 59)] == ["b/train:0", "b/train:59"]
    assert whole.queries.examples.id(0) == "query:0"
    assert append(index, recipe).first_row == 32
    found = open_index(index.path)
    assert_same_rows(found, whole)
    assert [source.id_prefix for source in found.manifest.sources] == ["b/", "b/"]
    assert append(index, recipe, id_prefix="").first_row == 0  # unless another is asked for


def test_a_kronecker_sketch_stays_divided_as_in_the_index(recipe):
    # A build of all rows would divide its numbers by the gradients of other rows.
    index = build(recipe, limit=32, sketch="kronecker", dim=40)
    append(index, recipe)
    found = open_index(index.path)
    assert found.manifest.sketch == index.manifest.sketch
    loaded = recipe_of(found, str(recipe), data_dir=recipe.parent)
    featuriser = Featuriser.from_manifest(found.manifest, loaded, load_model(found, loaded))
    train_set = loaded.train_set()
    expected = featuriser.sketch([train_set[row] for row in range(60)])
    # Batches of other sizes round their products differently.
    assert found.view("own").sketches(slice(None)).numpy() == pytest.approx(
        expected.numpy(), abs=1e-5 * float(expected.abs().max())
    )


def test_a_training_set_that_grew_is_taken_from_where_the_index_left_it(recipe):
    index = build(recipe)
    for count in (70, 75):
        (recipe.parent / "count").write_text(str(count))
        assert append(index, recipe).num_rows == count
    with pytest.raises(AppendError, match="has read all 75 rows"):
        append(index, recipe)
    # The rows fell into other blocks than those of one build, so float32 sums have other orders.
    assert_same_rows(open_index(index.path), build(recipe, "whole"), tolerance=1e-5)


def test_rows_of_float16_join_at_the_scale_of_the_index(recipe):
    whole, index = build(recipe, "whole", dtype="float16"), build(recipe, limit=16, dtype="float16")
    append(index, recipe)
    found = open_index(index.path)
    exponent = found.manifest.views["own"].scale_exponent
    assert exponent == whole.manifest.views["own"].scale_exponent  # of block 0 in both
    difference = (found.view("own").sketches(slice(None)) - whole.view("own").sketches(slice(None))).abs().max()
    assert difference <= 2.0 ** (exponent - 25)  # half a step of what lies below float16's normal range


def test_what_was_derived_is_derived_again_and_a_query_finds_the_new_rows(recipe):
    index = build(recipe, limit=32)
    before = set(index.derived.entries())
    report = append(index, recipe)
    found = open_index(index.path)
    assert set(found.derived.entries()) == before == set(report.derived)
    attributor = Attributor(found, engine="faiss")
    query = attributor.resolve_train_id("train:50")
    answer = attributor.answer(Question(query=query, budget=10))
    whole = Attributor(build(recipe, "whole"), engine="faiss")
    expected = whole.answer(Question(query=whole.resolve_train_id("train:50"), budget=10))
    assert [hit.id for hit in answer.hits] == [hit.id for hit in expected.hits]
    assert answer.information == expected.information
    assert any(hit.row >= 32 for hit in answer.hits)
    bare = build(recipe, "bare", limit=32)
    assert append(bare, recipe, derived=False).derived == []
    assert open_index(bare.path).derived.entries() == {}


def test_another_data_source_of_the_recipe_needs_ids_of_its_own(recipe):
    index = build(recipe)
    with pytest.raises(IdCollisionError, match=r"'train:0', 'train:1', .*--id-prefix"):
        append(index, recipe, options={"seed_of_data": 5})
    append(index, recipe, options={"seed_of_data": 5}, id_prefix="five/", rows=(10, 30))
    found = open_index(index.path)
    assert (found.num_rows, found.examples.id(60), found.examples.id(79)) == (80, "five/train:10", "five/train:29")
    assert append(index, recipe, options={"seed_of_data": 5}, id_prefix="five/").first_row == 30
    other = build(recipe, "other", options={"seed_of_data": 5})
    sketches = open_index(index.path).view("own").sketches(slice(60, 110))
    # other blocks, so float32 sums in another order: a few units in the last place of the largest entry
    assert torch.allclose(
        sketches, other.view("own").sketches(slice(10, 60)), rtol=0, atol=1e-5 * float(sketches.max())
    )


def test_withdrawn_rows_do_not_come_back(recipe):
    index = build(recipe, limit=32)
    remove_rows(index, ["train:3", "train:31"])
    assert append(index, recipe).num_rows == 58
    with pytest.raises(IdCollisionError, match=r"'train:3'.*withdrawn or not"):
        append(index, recipe, rows=(3, 4))
    remove_rows(open_index(index.path), [], purge=True)
    with pytest.raises(AppendError, match="nothing to append"):
        append(index, recipe)
    found = open_index(index.path)
    assert found.num_rows == 58
    assert "train:3" not in found.examples.column("id").to_pylist()


def test_rows_that_would_not_compare_are_refused_before_any_is_sketched(recipe, tmp_path):
    index = build(recipe, limit=32)
    with pytest.raises(IncompatibleSketchError, match="weights in index 'points' do not fit"):
        append(index, recipe, options={"width": 7})
    with pytest.raises(RecipeError, match="--recipe FILE"):
        append_rows(index.path, data_dir=tmp_path)
    recipe.write_text(SOURCE + "\n# edited\n")
    with pytest.raises(RecipeError, match="is another file than the recipe 'points'"):
        append(index, recipe)
    recipe.write_text(SOURCE)
    with pytest.raises(AppendError, match=r"--rows 50:61 must be FIRST:STOP with 0 <= FIRST < STOP <= 60"):
        append(index, recipe, rows=(50, 61))
    (tmp_path / "count").write_text("20")
    with pytest.raises(
        AppendError, match="rows 0 to 31 of this training set are not those that index 'points' has read"
    ):
        append(index, recipe)
    assert open_index(index.path).revision == index.revision
    assert verify_index(index.path) == []


MEASURED = (
    SOURCE
    + """

def measurement(outputs, label, which: int = 0):
    return outputs[which]
"""
)


@pytest.mark.parametrize("older", [False, True], ids=["", "of an older program"])
def test_rows_measured_with_other_options_are_refused_before_any_is_sketched(recipe, older, monkeypatch):
    recipe.write_text(MEASURED)
    index = build(recipe, limit=32)
    assert index.manifest.measurement.options == {"recipe": {"which": 0}}
    if older:
        resign(index.path, {"measurement": {"name": index.manifest.measurement.name, "options": {}}})
    monkeypatch.setattr("indexer.append.merge_indexes", pytest.fail)
    with pytest.raises(
        MergeMismatchError, match=r"the new rows: measured with .* option which=1, index 'points' with which=0"
    ):
        append(index, recipe, options={"which": 1}, rows=(0, 10), id_prefix="w/")
    monkeypatch.undo()
    append(index, recipe, options={"seed_of_data": 3}, rows=(0, 10), id_prefix="w/")  # another source, measured alike
    assert open_index(index.path).num_rows == 42


def test_labels_that_mean_something_else_are_refused_before_any_row_is_sketched(recipe, monkeypatch):
    index = build(recipe, limit=32)
    counts = index.manifest.labels.counts
    resign(index.path, {"labels": {"counts": counts, "names": {"0": "red", "1": "blue", "2": "green"}}})
    monkeypatch.setattr("indexer.append.merge_indexes", pytest.fail)
    with pytest.raises(MergeMismatchError, match="the new rows: label 1 is called 'green', elsewhere 'blue'"):
        append(index, recipe)


def test_metadata_that_no_new_row_has_a_value_of_join_those_of_the_index(recipe):
    source = SOURCE.partition("def metadata(example):")[0]
    recipe.write_text(
        source + "def metadata(example, data_dir):"
        "\n    return {'kind': 'early' if (data_dir / 'count').read_text() == '60' else None}\n"
    )
    index = build(recipe)
    (recipe.parent / "count").write_text("75")
    append(index, recipe)
    found = open_index(index.path)
    assert [found.examples.metadata(row) for row in (0, 74)] == [{"kind": "early"}, {"kind": None}]


def test_an_index_that_was_appended_to_is_not_what_its_first_build_would_publish(recipe):
    index = build(recipe, limit=32)
    append(index, recipe)
    settings = BuildSettings(str(recipe), data_dir=recipe.parent, **SMALL, limit=32)
    with pytest.raises(IndexExistsError, match="is not what this build would publish"):
        build_index(settings, index.path, resume=True)


def test_an_index_without_its_weights_cannot_be_appended_to(recipe):
    index = build(recipe, limit=32, weights=False)
    with pytest.raises(IncompatibleSketchError, match="--no-weights"):
        append(index, recipe)


class Stop(Silent):
    """Asks to stop when the second block of new rows is about to be sketched."""

    def __init__(self):
        self.phases, self.asked = [], 0

    def phase(self, name, total, **options):
        self.phases.append(name)

    def stop_requested(self):
        self.asked += self.phases[-1] == "sketching examples"
        return self.asked > 1


def test_interrupted_the_old_index_is_whole_and_resuming_gives_the_same_bytes(recipe):
    index, twin = build(recipe, limit=16), build(recipe, "twin", limit=16)
    with pytest.raises(BuildInterruptedError):
        append(index, recipe, progress=Stop())
    assert open_index(index.path).revision == index.revision
    assert verify_index(index.path) == []
    append(index, recipe, resume=True)
    append(twin, recipe)
    for file in open_index(index.path).manifest.files:
        assert (index.path / file).read_bytes() == (twin.path / file).read_bytes(), file
    assert not list(recipe.parent.glob("*.partial"))


def test_killed_before_publication_the_old_index_is_whole_and_the_sketches_are_kept(recipe):
    index = build(recipe, limit=32)
    program = f"""
import os
from pathlib import Path
from indexer.append import append_rows
from sketchstore import revising
revising.take_name = lambda *arguments: os._exit(9)
append_rows(Path({str(index.path)!r}), recipe={str(recipe)!r}, data_dir=Path({str(recipe.parent)!r}))
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 9
    assert open_index(index.path).revision == index.revision
    assert verify_index(index.path) == []
    progress = Stop()
    append(index, recipe, resume=True, progress=progress)
    assert "sketching examples" not in progress.phases  # it was all there
    found = open_index(index.path)
    assert found.num_rows == 60
    assert np.all(np.isfinite(found.view("own").squared_norms.numpy()))


def test_killed_right_after_publication_no_copy_of_the_rows_outlives_their_purge(recipe):
    index = build(recipe, limit=32)
    program = f"""
import os
from pathlib import Path
from indexer import append
publish = append.merge_indexes
append.merge_indexes = lambda *arguments, **options: (publish(*arguments, **options), os._exit(9))
append.append_rows(Path({str(index.path)!r}), recipe={str(recipe)!r}, data_dir=Path({str(recipe.parent)!r}))
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 9
    found = open_index(index.path)
    assert found.num_rows == 60
    # As stored: two numbers of a row of float32 are found wherever they are.
    sketch = np.asarray(found.view("own").shard(1))[20, :4].tobytes()
    kept = [file for file in recipe.parent.rglob("*") if file.is_file() and sketch in file.read_bytes()]
    assert len({file.relative_to(recipe.parent).parts[0] for file in kept}) == 2, "in the index and beside it"
    remove_rows(found, [found.examples.id(52)], purge=True)
    assert not [file for file in recipe.parent.rglob("*") if file.is_file() and sketch in file.read_bytes()]
    assert not list(recipe.parent.glob("*.partial"))
