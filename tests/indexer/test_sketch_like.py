"""Indexes built apart, of other rows, have one sketch by --sketch-like and merge; else kronecker ones do not."""

import pytest
import torch

from indexer.build import build_index
from indexer.build_settings import BuildSettings, BuildSettingsError
from indexer.plan import plan_build
from sketchstore.errors import IncompatibleSketchError, IndexNotFoundError
from sketchstore.merge import merge_indexes
from sketchstore.reader import open_index, verify_index
from tests.indexer.small_recipes import CLASSIFIER, write_recipe

# Rows of part 1 have long inputs, so that their gradients lie elsewhere than those of part 0.
TWO_PARTS = CLASSIFIER.replace(
    "def train_set(count=60):\n    return _points(count, 0)",
    "def train_set(count=60, part=0):\n    return [(x * 10**part, y) for x, y in _points(count, part)]\n\n\n"
    "def id(example, row, split, part=0):\n    return f'{split}:{part}:{row}'",
).replace("nn.Linear(5, width), nn.Tanh(), nn.Linear(width, 3)", "nn.Linear(5, 12), nn.Tanh(), nn.Linear(12, 3)")


def settings_of(folder, part: int, **choices) -> BuildSettings:
    folder.mkdir(exist_ok=True)
    recipe = write_recipe(folder, TWO_PARTS)
    return BuildSettings(str(recipe), options={"part": part}, num_queries=0, threads=1, **choices)


@pytest.fixture
def first(tmp_path, weights_cache):
    build_index(settings_of(tmp_path, 0, sketch="kronecker", dim=40, seed=3), tmp_path / "first")
    return open_index(tmp_path / "first")


def test_kronecker_indexes_built_apart_merge_if_one_took_the_others_sketch(first, tmp_path):
    build_index(settings_of(tmp_path, 1, sketch="kronecker", dim=40, seed=3), tmp_path / "apart")
    with pytest.raises(IncompatibleSketchError, match=r"options parts: .*--sketch-like"):
        merge_indexes([first, open_index(tmp_path / "apart")], tmp_path / "all")
    build_index(settings_of(tmp_path, 1, sketch_like=first.path), tmp_path / "like")
    like = open_index(tmp_path / "like")
    assert like.manifest.sketch == first.manifest.sketch
    assert like.manifest.sketch != open_index(tmp_path / "apart").manifest.sketch
    merge_indexes([first, like], tmp_path / "all")
    merged = open_index(tmp_path / "all")
    assert verify_index(merged.path) == []
    expected = torch.cat([each.view("own").sketches(slice(None)) for each in (first, like)])
    assert torch.equal(merged.view("own").sketches(slice(None)), expected)


def test_processes_take_the_same_sketch(first, tmp_path):
    build_index(settings_of(tmp_path, 1, sketch_like=first.path, block_rows=16), tmp_path / "one")
    build_index(settings_of(tmp_path, 1, sketch_like=first.path, block_rows=16, processes=2), tmp_path / "two")
    shards = [(tmp_path / name / "sketches/own/00000.safetensors").read_bytes() for name in ("one", "two")]
    assert shards[0] == shards[1]


def test_plan_shows_the_sketch_that_is_taken(first, tmp_path):
    report = plan_build(settings_of(tmp_path, 1, sketch_like=first.path))
    assert (report.family, report.sketch_dim) == ("kronecker", 40)
    assert report.parts == plan_build(settings_of(tmp_path, 0, sketch="kronecker", dim=40, seed=3)).parts


def test_a_sketch_of_other_parameters_is_refused_naming_the_first(first, tmp_path):
    with pytest.raises(BuildSettingsError, match=r"parameter 0 is '2\.weight' of shape \[3, 12\].*'0\.weight'"):
        build_index(settings_of(tmp_path, 1, sketch_like=first.path, include=("2",)), tmp_path / "like")
    with pytest.raises(BuildSettingsError, match=r"parameter 2 is missing here, '2\.weight' of shape"):
        build_index(settings_of(tmp_path, 1, sketch_like=first.path, include=("0",)), tmp_path / "like")
    with pytest.raises(BuildSettingsError, match="NTK scale 1 here"):
        build_index(settings_of(tmp_path, 1, sketch_like=first.path, ntk=False), tmp_path / "like")
    assert not (tmp_path / "like").exists()


@pytest.mark.parametrize("choice", [{"sketch": "sjlt"}, {"dim": 40}, {"seed": 3}, {"seed": 0}, {"buckets": 2}])
def test_a_sketch_is_chosen_once(first, tmp_path, choice):
    with pytest.raises(BuildSettingsError, match=f"leave out --{next(iter(choice))}"):
        build_index(settings_of(tmp_path, 1, sketch_like=first.path, **choice), tmp_path / "like")


def test_where_there_is_no_index_nothing_is_loaded(tmp_path):
    with pytest.raises(IndexNotFoundError, match="nowhere"):
        build_index(settings_of(tmp_path / "no-such-recipe", 1, sketch_like=tmp_path / "nowhere"), tmp_path / "like")
