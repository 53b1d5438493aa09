import json
from pathlib import Path

import numpy as np
import torch

from benchmarks.measuring import FullScans, Report, markdown_table, median_ratio, quantile, stored_pieces
from sketchstore.reader import Index
from tests.index_factory import make_index


def test_quantile_is_by_rank_and_never_beyond_the_largest() -> None:
    values = [4.0, 1.0, 3.0, 2.0]
    assert [quantile(values, share) for share in (0.0, 0.5, 0.99, 1.0)] == [1.0, 3.0, 4.0, 4.0]


def test_ratios_are_taken_pair_by_pair() -> None:
    # A machine twice as slow during the second pair does not show.
    assert median_ratio([10.0, 20.0, 12.0], [5.0, 10.0, 6.0]) == 2.0


def test_full_scans_multiply_every_row_of_every_piece(small_index: Index) -> None:
    view = small_index.view("margin")
    pieces = stored_pieces(view)
    assert len(pieces) == view.num_shards > 1
    scans = FullScans(pieces)
    scans.product()
    expected = (view.sketches(slice(0, None), torch.float32) @ scans.residual).abs()
    # Two float32 products of 24 terms in other orders.
    np.testing.assert_allclose(scans.products.numpy(), expected.numpy(), rtol=0, atol=1e-4)
    assert (scans.num_rows, scans.float32_bytes) == (view.num_rows, 4 * view.num_rows * view.sketch_dim)
    assert min(scans.seconds()) > 0


def test_report_says_what_ran_where_and_can_be_json() -> None:
    report = Report("benchmarks.something", {"index": "small"}).finish({"figures": [1.5]})
    assert json.loads(json.dumps(report)) == report
    assert set(report) == {"program", "arguments", "measured_at", "machine", "load", "figures"}
    assert set(report["machine"]) == {"processor", "cores", "memory_bytes", "system", "versions", "threads"}
    assert {"torch", "numpy", "python"} <= set(report["machine"]["versions"])
    assert report["machine"]["threads"]["torch"] == torch.get_num_threads()


def test_markdown_table_has_a_line_under_its_head() -> None:
    assert markdown_table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"


def test_pieces_of_float16_are_widened(tmp_path: Path) -> None:
    view = make_index(tmp_path, view="margin", dtype="float16").view("margin")
    assert all(piece.dtype == torch.float32 for piece in stored_pieces(view))
