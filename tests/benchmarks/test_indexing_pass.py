"""The programs on index passes run from command line to JSON; no time is judged."""

import json
import os
from pathlib import Path

import pytest

from benchmarks import indexing_pass, kernel_ranks

DATA = os.environ.get("NATTRIBUTE_DATA")


@pytest.mark.slow
@pytest.mark.skipif(DATA is None, reason="needs the folder of data sets, NATTRIBUTE_DATA")
def test_the_pass_is_compared_with_the_epoch_and_its_memory_measured(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--data-dir", str(DATA), "--rows", "8", "--batch-rows", "4", "--dim", "512", "--turns", "1"]
    indexing_pass.main([*arguments, "--families", "kronecker", "--memory", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["num_parameters"] == 6_573_120
    assert found["num_rows"] == 8
    assert set(found["seconds_per_row"]) == {"epoch", "kronecker"}
    assert found["ratio_to_epoch"]["kronecker"] == pytest.approx(
        found["seconds_per_row"]["kronecker"] / found["seconds_per_row"]["epoch"]
    )
    assert set(found["peak_growth_bytes"]) == {"step", "kronecker"}
    assert found["peak_growth_bytes"]["step"] > 6_573_120 * 4  # gradients and momentum at least


def test_ranks_of_a_small_model_agree(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NATTRIBUTE_CACHE", str(tmp_path))
    arguments = ["digits", "--option", "epochs=2", "--dims", "512", "--rows", "30", "--queries", "3", "--json"]
    kernel_ranks.main([*arguments, "--families", "kronecker", "identity"])
    kronecker, identity = json.loads(capsys.readouterr().out)["found"]
    assert 0.5 < kronecker["mean"] <= 1.0
    assert identity["mean"] == pytest.approx(1.0, abs=1e-3)
