"""What a manifest has of its rows as they were is said to be of other rows, and holds no purged row's figures."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sketchstore.default_noise import store_default_noise
from sketchstore.earlier_rows import noise_of_other_rows
from sketchstore.manifest import Manifest
from sketchstore.merge import merge_indexes
from sketchstore.reader import Index, open_index, verify_index
from sketchstore.remove import remove_rows
from sketchstore.revising import sources_of
from tests.index_factory import make_index, resign

TUNING = {
    "method": "gp_evidence",
    "targets": "residual",
    "num_rows": 60,
    "grid": [1.0, 10.0, 100.0],
    "log_evidence": [-3.25, -1.5, -2.75],
    "relative_noise": 10.0,
    "at_edge": None,
    "partitions": [{"view": "own", "label": 0, "rows": 20, "relative_noise": 10.0, "at_edge": None}],
}
DISTORTION = {
    "view": "own",
    "pool_rows": 50,
    "compute": {"dtype": "bfloat16", "sketch_error_rms": 0.03, "sketch_error_max": 0.125},
    "kernel": {"pairs": 1000, "relative_spread": 0.02},
    "nats": [{"relative_noise": 1.0, "pool_ratio": 1.01, "by_query": [{"index_pool_nats": 0.4375}]}],
}


def tuned(folder: Path, **choices) -> Index:
    index = make_index(folder, **choices)
    resign(index.path, {"distortion": DISTORTION})
    store_default_noise(open_index(index.path), 10.0, TUNING)
    return open_index(index.path)


def manifest_of(index: Index) -> Manifest:
    assert verify_index(index.path) == []
    return open_index(index.path).manifest


def test_a_fresh_tuning_is_of_these_rows(tmp_path):
    manifest = tuned(tmp_path).manifest
    assert manifest.noise_tuning == {**TUNING, "of_other_rows": False}
    assert noise_of_other_rows(10.0, manifest.noise_tuning, 60) is None


def test_a_removal_keeps_the_noise_and_says_that_it_is_of_other_rows(tmp_path):
    index = tuned(tmp_path)
    report = remove_rows(index, ["train:3", "train:4"])
    assert report.notes == [
        "default_relative_noise 10 was tuned on 60 rows, the index now has 58: `indexer tune` again"
    ]
    manifest = manifest_of(index)
    assert manifest.default_relative_noise == 10.0
    assert manifest.noise_tuning == {**TUNING, "of_other_rows": True}
    assert manifest.distortion == {**DISTORTION, "of_other_rows": True}


@pytest.mark.parametrize("appended", [True, False], ids=["append", "merge"])
def test_rows_that_come_are_other_rows(tmp_path, appended):
    index, more = tuned(tmp_path), make_index(tmp_path, name="more", num_rows=20)
    remove_rows(more, [f"train:{row}" for row in range(19)])
    table = pq.read_table(more.path / "examples.parquet")
    ids = pa.array([f"more:{row}" for row in range(20)])
    pq.write_table(table.set_column(1, "id", ids), more.path / "examples.parquet")
    resign(more.path)
    source = sources_of(more.manifest)[0].model_copy(update={"first_row": 60}) if appended else None
    out = index.path if appended else tmp_path / "both"
    report = merge_indexes([index, open_index(more.path)], out, appended=source)
    assert "default_relative_noise 10 was tuned on 60 rows, the index now has 61: `indexer tune` again" in report.notes
    manifest = manifest_of(open_index(out))
    assert (manifest.default_relative_noise, manifest.noise_tuning) == (10.0, {**TUNING, "of_other_rows": True})
    assert manifest.distortion["of_other_rows"]


def test_as_many_rows_as_before_are_still_other_rows(tmp_path):
    index = tuned(tmp_path)
    remove_rows(index, ["train:3"])
    record = manifest_of(index).noise_tuning
    assert noise_of_other_rows(10.0, record, 60) == (
        "default_relative_noise 10 was tuned on 60 rows, the index now has other rows: `indexer tune` again"
    )


def test_a_record_of_before_that_says_nothing_is_judged_by_its_number(tmp_path):
    assert noise_of_other_rows(10.0, TUNING, 60) is None
    assert "now has 59" in noise_of_other_rows(10.0, TUNING, 59)
    assert noise_of_other_rows(10.0, None, 59) is None
    assert noise_of_other_rows(None, TUNING, 59) is None


@pytest.mark.parametrize("at_once", [True, False])
def test_a_purge_drops_the_curve_and_every_figure_of_a_single_row(tmp_path, at_once):
    index = tuned(tmp_path)
    report = remove_rows(index, ["train:3"], purge=at_once)
    if not at_once:
        report = remove_rows(open_index(index.path), [], purge=True)
    assert report.notes[0].startswith("default_relative_noise 10 was tuned on 60 rows, the index now has 59")
    assert report.notes[1] == (
        "computed with rows that are purged, and dropped: the curve that the default noise was tuned by, the "
        "distortion's figures of single rows"
    )
    manifest = manifest_of(index)
    assert manifest.default_relative_noise == 10.0
    kept = ("method", "targets", "num_rows", "grid", "relative_noise", "at_edge")
    assert manifest.noise_tuning == {**{name: TUNING[name] for name in kept}, "of_other_rows": True}
    text = (index.path / "manifest.json").read_text()
    assert not [figure for figure in ("-3.25", "-1.5", "-2.75", "partitions", "0.4375", "0.125") if figure in text]
    assert manifest.distortion["kernel"] == DISTORTION["kernel"]
    assert manifest.distortion["nats"] == [{"relative_noise": 1.0, "pool_ratio": 1.01}]


def test_a_noise_that_was_tuned_without_the_rows_keeps_its_curve(tmp_path):
    index = tuned(tmp_path)
    remove_rows(index, ["train:3"])
    store_default_noise(open_index(index.path), 1.0, {**TUNING, "num_rows": 59})
    report = remove_rows(open_index(index.path), [], purge=True)
    assert report.notes == ["computed with rows that are purged, and dropped: the distortion's figures of single rows"]
    assert manifest_of(index).noise_tuning == {**TUNING, "num_rows": 59, "of_other_rows": False}


def test_a_record_of_before_loses_its_curve_though_it_does_not_say_whose_it_is(tmp_path):
    index = tuned(tmp_path)
    remove_rows(open_index(index.path), ["train:3"])
    resign(index.path, {"noise_tuning": {**TUNING, "num_rows": 59}})  # as one row more, and one that came since
    remove_rows(open_index(index.path), [], purge=True)
    assert "log_evidence" not in manifest_of(index).noise_tuning


def test_figures_of_another_writer_go_whole_and_those_of_no_row_stay(tmp_path):
    index = tuned(tmp_path)
    resign(index.path, {"distortion": {"worst_row": "train:3"}, "noise_tuning": "by hand, on train:3"})
    remove_rows(open_index(index.path), ["train:3"], purge=True)
    manifest = manifest_of(index)
    assert (manifest.distortion, manifest.noise_tuning, manifest.default_relative_noise) == (None, None, 10.0)
    exact = {"exact": True, "reason": "identity keeps the gradients: the sketched kernel is the exact one"}
    resign(index.path, {"distortion": exact})
    report = remove_rows(open_index(index.path), ["train:4"], purge=True)
    assert (manifest_of(index).distortion, report.notes) == (exact, [])
