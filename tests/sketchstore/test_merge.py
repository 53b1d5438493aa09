"""Merged rows are those of the parts, in their order; what cannot meet is refused by name."""

import json

import numpy as np
import pytest
import torch

from sketchstore.errors import IdCollisionError, IncompatibleSketchError, IndexExistsError, MergeMismatchError
from sketchstore.manifest import Build, Measurement, Recipe, Sketch, SourceDigests
from sketchstore.merge import merge_indexes
from sketchstore.reader import Index, open_index, verify_index
from sketchstore.remove import remove_rows
from sketchstore.writer import IndexWriter
from tests.index_factory import make_contents as contents_of
from tests.index_factory import make_index, make_plan, train_rows, write_contents


def part(
    tmp_path, name: str, *, prefix: str = "", scale: float = 1.0, metadata: dict | None = None, **options
) -> Index:
    """A small index whose ids begin with ``prefix`` and whose rows carry ``metadata`` of their own."""
    plan = make_plan(name=name, **options)
    contents = contents_of(plan, seed=len(name))
    for view in contents.sketches:
        contents.sketches[view] = (contents.sketches[view] * scale).astype(np.float32)
    rows = [
        type(row)(prefix + row.id, row.label, row.predicted_label, {**row.metadata, **(metadata or {})}, row.preview)
        for row in train_rows(contents.labels)
    ]
    with IndexWriter.create(tmp_path / name, plan) as writer:
        write_contents(writer, contents)
        writer.write_examples(rows)
        writer.write_columns({"one_minus_p": np.linspace(0.0, 0.9, plan.num_rows)})
        path = writer.publish()
    return open_index(path)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("view", ["own", "margin", "class"])
def test_a_merged_index_holds_the_rows_of_its_parts(tmp_path, view, dtype):
    parts = [
        part(tmp_path, "first", view=view, dtype=dtype),
        part(tmp_path, "second", prefix="b/", num_rows=23, view=view, dtype=dtype),
        part(tmp_path, "third", prefix="c/", num_rows=1, view=view, dtype=dtype),
    ]
    report = merge_indexes(parts, tmp_path / "all")
    merged = open_index(tmp_path / "all")
    assert verify_index(merged.path) == []
    assert (merged.name, merged.num_rows, report.rows, report.num_rows) == ("all", 84, [60, 23, 1], 84)
    assert torch.equal(merged.labels, torch.cat([each.labels for each in parts]))
    for name, ours in merged.views.items():
        assert torch.equal(ours.sketches(slice(None)), torch.cat([p.view(name).sketches(slice(None)) for p in parts]))
        assert torch.equal(ours.squared_norms, torch.cat([each.view(name).squared_norms for each in parts]))
        assert ours.mean_squared_norm() == pytest.approx(float(ours.squared_norms.mean()), rel=1e-12)
    assert [merged.examples.id(row) for row in (0, 59, 60, 82, 83)] == [
        "train:0", "train:59", "b/train:0", "b/train:22", "c/train:0",
    ]  # fmt: skip
    for row in (0, 59, 60, 83):
        index, old = next((p, row - s) for p, s in zip(parts[::-1], (83, 60, 0), strict=True) if row >= s)
        assert merged.examples.preview(row) == index.examples.preview(old)
        assert merged.examples.metadata(row) == index.examples.metadata(old)
    assert torch.equal(merged.column("one_minus_p"), torch.cat([each.column("one_minus_p") for each in parts]))
    assert len(merged.manifest.sources) == 3
    assert all(open_index(each.path).revision == each.revision for each in parts)  # the parts stay as they are


def test_rows_removed_from_a_part_stay_removed_and_no_bytes_are_copied(tmp_path):
    first, second = part(tmp_path, "first"), part(tmp_path, "second", prefix="b/", num_rows=40)
    remove_rows(first, ["train:58", "train:59"])
    remove_rows(second, ["b/train:0", "b/train:39"])
    first, second = open_index(first.path), open_index(second.path)
    merge_indexes([first, second], tmp_path / "all")
    merged = open_index(tmp_path / "all")
    assert merged.manifest.removed == ((58, 61), (99, 100))
    assert (merged.num_rows, merged.examples.id(58), merged.examples.id(95)) == (96, "b/train:1", "b/train:38")
    expected = torch.cat([each.view("own").sketches(slice(None)) for each in (first, second)])
    assert torch.equal(merged.view("own").sketches(slice(None)), expected)
    source = first.path / "sketches/own/00000.safetensors"
    assert (merged.path / "sketches/own/00000.safetensors").stat().st_ino == source.stat().st_ino
    assert verify_index(merged.path) == []


def test_shards_at_another_scale_are_written_at_the_first_ones(tmp_path):
    first = part(tmp_path, "first", dtype="float16")
    second = part(tmp_path, "second", prefix="b/", dtype="float16", scale=0.125)
    exponents = [each.manifest.views["own"].scale_exponent for each in (first, second)]
    assert exponents[0] != exponents[1]
    report = merge_indexes([first, second], tmp_path / "all")
    merged = open_index(tmp_path / "all")
    assert "scale of 'first'" in report.notes[0]
    assert merged.manifest.views["own"].scale_exponent == exponents[0]
    found = merged.view("own").sketches(slice(60, 120))
    # 2^-14 is the smallest normal number: what is smaller as stored is rounded to multiples of 2^-24.
    assert (found - second.view("own").sketches(slice(None))).abs().max() <= 2.0 ** (exponents[0] - 25)
    assert verify_index(merged.path) == []


@pytest.mark.parametrize("value", ["x", 3, 0.5, True])
@pytest.mark.parametrize("first", [True, False])
def test_metadata_without_any_value_have_the_type_of_the_others(tmp_path, value, first):
    found = {"site": value, "none": None}, {"site": None, "none": None}
    parts = [
        part(tmp_path, "first", metadata=found[0] if first else found[1]),
        part(tmp_path, "second", prefix="b/", metadata=found[1] if first else found[0]),
    ]
    merge_indexes(parts, tmp_path / "all")
    merged = open_index(tmp_path / "all")
    assert verify_index(merged.path) == []
    sites = [merged.examples.metadata(row)["site"] for row in (0, 60)]
    assert sites == ([value, None] if first else [None, value])
    assert type(sites[0 if first else 1]) is type(value)
    assert merged.examples.metadata(0)["none"] is None


def test_metadata_that_only_one_part_has_are_null_in_the_other(tmp_path):
    first, second = (
        part(tmp_path, "first"),
        part(tmp_path, "second", prefix="b/", metadata={"site": "x", "length": 0.5}),
    )
    merge_indexes([first, second], tmp_path / "all")
    merged = open_index(tmp_path / "all")
    assert merged.examples.metadata(3) == {"length": 3.0, "site": None, "source": "web", "weight": 0.75}
    assert merged.examples.metadata(61) == {"length": 0.5, "site": "x", "source": "web", "weight": 0.25}
    assert merged.examples.where({"site": "x"}).tolist() == list(range(60, 120))


SHORT = Build(
    block_rows=8, shard_rows=24, compute_rows=8, versions={"factory": "1"}, options={"compute_dtype": "bfloat16"}
)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        (
            {"sketch": Sketch(family="gaussian", seed=1, dim=16, num_parameters=100)},
            "seed 1, index 'first' with seed 0",
        ),
        ({"digests": SourceDigests(weights="c" * 64, data_order="b" * 64)}, "digest of the weights c"),
        ({"measurement": Measurement(name="custom")}, "measurement custom"),
        ({"dtype": "float16"}, "dtype float16"),
        ({"build": SHORT}, "compute_dtype bfloat16, index .*first has float32"),
        ({"label_names": {"0": "another"}}, "second: label 0 is called 'another', elsewhere 'class 0'"),
    ],
)
def test_indexes_whose_rows_do_not_compare_are_refused(tmp_path, changes, match):
    first, second = part(tmp_path, "first"), part(tmp_path, "second", prefix="b/", **changes)
    with pytest.raises((MergeMismatchError, IncompatibleSketchError), match=match):
        merge_indexes([first, second], tmp_path / "all")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "second"]


def test_what_to_do_about_another_sketch_is_said_with_both_paths(tmp_path):
    sketch = Sketch(family="gaussian", seed=1, dim=16, num_parameters=100)
    first, second = part(tmp_path, "first"), part(tmp_path, "second", prefix="b/", sketch=sketch)
    with pytest.raises(IncompatibleSketchError) as refused:
        merge_indexes([first, second], tmp_path / "all")
    assert f"Build {second.path} again" in str(refused.value)
    assert f"--sketch-like {first.path}" in str(refused.value)
    assert "query" not in str(refused.value)


def test_indexes_of_other_views_or_of_unknown_weights_are_refused(tmp_path):
    first, other = part(tmp_path, "first"), part(tmp_path, "second", prefix="b/", view="margin")
    with pytest.raises(MergeMismatchError, match="measurement margin"):
        merge_indexes([first, other], tmp_path / "all")
    unknown = [part(tmp_path, f"unknown{n}", prefix=f"{n}/", digests=SourceDigests()) for n in (1, 2)]
    with pytest.raises(MergeMismatchError, match="do not say what weights"):
        merge_indexes(unknown, tmp_path / "all")


def test_parts_that_another_recipe_file_measured_are_refused(tmp_path):
    recipes = [Recipe(name="mine", builtin=False, file_digest=digit * 64) for digit in "aab"]
    parts = [part(tmp_path, f"p{n}", prefix=f"{n}/", recipe=recipe) for n, recipe in enumerate(recipes)]
    merge_indexes(parts[:2], tmp_path / "alike")
    with pytest.raises(MergeMismatchError, match=r"mine\.py of digest bbb.*measurements of another recipe need not"):
        merge_indexes(parts, tmp_path / "all")


def test_parts_that_other_options_measured_are_refused_and_others_may_differ(tmp_path):
    def of(name: str, which: int, says: bool) -> Index:
        options = {"which": which, "source": name}
        measurement = Measurement(name="label_logit", options={"recipe": {"which": which}} if says else {})
        recipe = Recipe(name="mine", builtin=False, options=options)
        return part(tmp_path, name, prefix=f"{name}/", recipe=recipe, measurement=measurement)

    first, same, older = of("first", 0, True), of("same", 0, True), of("older", 0, False)
    merge_indexes([first, same, older], tmp_path / "alike")
    merge_indexes([older, first], tmp_path / "too")
    for parts in ([first, of("other", 1, True)], [first, of("old-other", 1, False)], [older, of("third", 1, True)]):
        with pytest.raises(MergeMismatchError, match=r"option which=1, index .* with which=0.*Give --option which=0"):
            merge_indexes(parts, tmp_path / "all")


def test_an_id_in_two_parts_is_refused_by_name_even_where_it_is_withdrawn(tmp_path):
    first, second = part(tmp_path, "first"), part(tmp_path, "second", num_rows=20)
    with pytest.raises(IdCollisionError, match=r"'train:0', 'train:1', .*20 in all.*already an id of") as refused:
        merge_indexes([first, second], tmp_path / "all")
    assert f"in index {second.path} is already an id of {first.path}" in str(refused.value)  # names may be the same
    remove_rows(first, [f"train:{row}" for row in range(20)])
    with pytest.raises(IdCollisionError, match="withdrawn or not"):
        merge_indexes([open_index(first.path), second], tmp_path / "all")
    remove_rows(open_index(first.path), [], purge=True)
    merge_indexes([open_index(first.path), second], tmp_path / "all")
    assert open_index(tmp_path / "all").num_rows == 60


def test_a_merge_never_replaces_what_is_there(tmp_path):
    first, second = part(tmp_path, "first"), part(tmp_path, "second", prefix="b/")
    make_index(tmp_path, name="all")
    with pytest.raises(IndexExistsError, match="Choose another --out"):
        merge_indexes([first, second], tmp_path / "all")
    assert json.loads((tmp_path / "all/manifest.json").read_text())["num_rows"] == 60
