import json

import pytest
import torch

from indexer.distortion import DistortionError, measure_distortion, sample_rows
from indexer.featurise import Featuriser
from indexer.kernel_errors import random_pairs
from indexer.parameters import select_parameters
from indexer.sketches import sketch_spec
from tests.indexer.cases import CASES, PairsRecipe
from tests.indexer.test_featurise import examples_of


def measured(family: str, dim: int | None, view: str = "own") -> dict:
    case = CASES["mlp"]
    model, _, _ = case.build()
    parameters = select_parameters(model)
    spec = sketch_spec(family, dim, parameters.num_parameters)
    featuriser = Featuriser(PairsRecipe(), model, spec, case.measurement, parameters)
    labels = torch.arange(120) % 3
    inputs = torch.randn(120, 5, generator=torch.Generator().manual_seed(0))
    sample = sample_rows(labels, "label", pool_rows=25, queries=10)
    return measure_distortion(featuriser, examples_of(inputs, labels), sample, view, picks=5)


def test_an_identity_sketch_has_no_distortion() -> None:
    report = measured("identity", None)
    assert report["kernel"]["relative_spread"] < 1e-6
    for entry in report["nats"]:
        assert entry["pool_ratio"] == pytest.approx(1.0, abs=1e-5)
        assert entry["set_ratio"] == pytest.approx(1.0, abs=1e-5)
        assert entry["shared_picks_fraction"] == 1.0


@pytest.mark.parametrize("family", ["rademacher", "gaussian", "sjlt"])
def test_a_random_sketch_reports_what_theory_expects(family: str) -> None:
    report = measured(family, 512)
    assert abs(report["kernel"]["bias_in_standard_errors"]) < 4
    assert 0.3 < report["kernel"]["spread_over_theory"] < 2.0
    assert report["kernel"]["pairs"] == 25 * 24 / 2
    assert [entry["relative_noise"] for entry in report["nats"]] == [0.01, 1.0, 100.0]
    for entry in report["nats"]:
        assert len(entry["by_query"]) == 10
        assert entry["pool_ratio"] == pytest.approx(1.0, abs=0.25)


def test_a_report_is_json_and_the_same_every_time() -> None:
    report = measured("rademacher", 64)
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert measured("rademacher", 64) == report


def test_a_sample_keeps_to_one_label_where_only_a_labels_rows_compare() -> None:
    labels = torch.tensor([2] * 40 + [1] * 60 + [-1] * 80)
    sample = sample_rows(labels, "label", pool_rows=30, queries=10)
    assert sample.label == 1
    assert len(sample.pool) == 30
    assert len(sample.queries) == 10
    assert len({*sample.pool, *sample.queries}) == 40
    assert all(labels[row] == 1 for row in (*sample.pool, *sample.queries))
    assert sample == sample_rows(labels, "label", pool_rows=30, queries=10)


def test_a_sample_takes_every_row_where_all_compare() -> None:
    sample = sample_rows(torch.full((30,), -1), "all", pool_rows=300, queries=10)
    assert sample.label is None
    assert sorted((*sample.pool, *sample.queries)) == list(range(30))


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(DistortionError, match="needs 12 comparable rows, there are 11"):
        sample_rows(torch.zeros(11, dtype=torch.int64), "label")


def test_pairs_differ_and_never_pair_a_row_with_itself() -> None:
    pairs = random_pairs(20, 50)
    assert len(set(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True))) == 50
    assert bool((pairs.first < pairs.second).all())
    assert len(random_pairs(5, 1000).first) == 10


def test_stored_sketches_are_measured_as_they_are() -> None:
    case = CASES["mlp"]
    model, _, _ = case.build()
    parameters = select_parameters(model)
    spec = sketch_spec("rademacher", 64, parameters.num_parameters)
    featuriser = Featuriser(PairsRecipe(), model, spec, case.measurement, parameters)
    labels = torch.zeros(40, dtype=torch.int64)
    examples = examples_of(torch.randn(40, 5, generator=torch.Generator().manual_seed(0)), labels)
    sample = sample_rows(labels, "label", queries=2)
    stored = featuriser.sketch([examples[row] for row in (*sample.pool, *sample.queries)])
    fresh = measure_distortion(featuriser, examples, sample, "own")
    assert measure_distortion(featuriser, examples, sample, "own", sketches=stored) == fresh
    with pytest.raises(DistortionError, match=r"shape \[40, 64\], got \[39, 64\]"):
        measure_distortion(featuriser, examples, sample, "own", sketches=stored[1:])
