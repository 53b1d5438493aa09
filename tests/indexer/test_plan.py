"""plan's figures are those of the build, and its advice follows from them."""

import pytest

from indexer import plan as plan_module
from indexer.build import build_index
from indexer.build_settings import BuildSettings
from indexer.plan import plan_build
from tests.indexer.small_recipes import CLASSIFIER, write_recipe


def test_the_bytes_planned_are_the_bytes_built(tmp_path):
    settings = BuildSettings(str(write_recipe(tmp_path)), sketch="rademacher", dim=32, dtype="float16", block_rows=16)
    planned = plan_build(settings)
    built = build_index(settings, tmp_path / "points")
    assert planned.sketch_bytes == 60 * 32 * 2
    assert built.sketch_bytes == pytest.approx(planned.sketch_bytes, rel=0.05)
    assert (planned.num_rows, planned.num_queries, planned.num_parameters) == (60, 12, 57)
    assert (planned.num_blocks, planned.block_rows) == (4, 16)
    assert planned.faiss_bytes == 60 * 32 * 4
    assert planned.codes_bytes == 0  # 20 rows a label, fewer than 32
    assert planned.build_seconds > 0
    assert planned.query_sketch_seconds > 0
    assert planned.as_json()["total_bytes"] == planned.total_bytes


def test_codes_are_planned_where_a_label_has_more_rows_than_numbers_in_a_sketch(tmp_path):
    settings = BuildSettings(str(write_recipe(tmp_path)), sketch="rademacher", dim=16)
    planned = plan_build(settings)
    build_index(settings, tmp_path / "points")
    written = (tmp_path / "points/derived/codes/own/all.safetensors").stat().st_size
    assert planned.codes_bytes == 60 * (16 + 16)
    assert planned.codes_bytes < written < planned.codes_bytes + 512  # the header


def test_heads_are_planned_with_the_codes_where_they_have_eight_directions(tmp_path):
    path = str(write_recipe(tmp_path))
    for dim, planned_bytes in ((127, 0), (128, 8 * 8 * 128 + 400 * (8 + 24))):
        planned = plan_build(BuildSettings(path, sketch="rademacher", dim=dim, options={"count": 400}))
        assert planned.codes_bytes == 400 * (dim + 16)
        assert planned.heads_bytes == planned_bytes


def test_identity_is_the_default_where_it_is_no_larger_and_advised_where_it_is_not_chosen(tmp_path):
    path = str(write_recipe(tmp_path))
    assert (plan_build(BuildSettings(path)).family, plan_build(BuildSettings(path)).sketch_dim) == ("identity", 57)
    advice = plan_build(BuildSettings(path, sketch="gaussian", dim=64)).advice
    assert any(line.startswith("--sketch identity") for line in advice)
    assert plan_build(BuildSettings(path, sketch="gaussian", dim=16)).advice == []
    assert plan_build(BuildSettings(path, dim=16)).family == "rademacher"


def test_a_query_above_one_second_brings_advice_with_the_measured_alternative(tmp_path, monkeypatch):
    monkeypatch.setattr(plan_module, "SLOW_QUERY_SECONDS", 0.0)
    report = plan_build(BuildSettings(str(write_recipe(tmp_path)), sketch="rademacher", dim=16))
    (line,) = report.advice
    assert line.startswith("--sketch sjlt")
    assert report.sjlt_query_sketch_seconds is not None


def test_the_plan_says_where_the_model_came_from_and_how_long_it_took(tmp_path, monkeypatch):
    slow = CLASSIFIER.replace(
        "    torch.manual_seed(seed)\n", "    import time\n    time.sleep(0.3)\n    torch.manual_seed(seed)\n"
    )
    own = plan_build(BuildSettings(str(write_recipe(tmp_path, slow)), sketch="identity"))
    assert own.model_source == "recipe"
    assert own.model_seconds > 0.3
    assert own.build_seconds > own.model_seconds  # a build calls model() again
    monkeypatch.setenv("NATTRIBUTE_CACHE", str(tmp_path / "cache"))
    digits = BuildSettings("digits", options={"epochs": 1}, limit=20, num_queries=0, sketch="sjlt", dim=8)
    assert [plan_build(digits).model_source for _ in range(2)] == ["training", "cache"]
