"""Every experiment runs through on the bundled digits, writes its three files, and continues where it stopped."""

import csv
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from experiments.catalogue import experiments

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


def started(name: str, out: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "experiments", name, "--size", "smoke", "--out", str(out)],
        cwd=ROOT,
        env=os.environ | {"NATTRIBUTE_CACHE": str(out / "cache"), "COLUMNS": "160"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("name", sorted(experiments()))
def test_experiment_writes_finite_results_and_a_plot_and_continues(name, tmp_path):
    result = started(name, tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "seeds:" in result.stdout
    whole = json.loads((tmp_path / f"{name}.json").read_text(encoding="utf-8"))
    numbers = [value for row in whole["rows"] for value in row.values() if isinstance(value, float)]
    assert numbers
    assert all(math.isfinite(value) for value in numbers)
    with (tmp_path / f"{name}.csv").open(encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == len(whole["rows"])
    with Image.open(tmp_path / f"{name}.png") as picture:
        assert picture.width > 400
        assert len(picture.convert("RGB").getcolors(maxcolors=1 << 20)) > 20  # something is drawn

    again = started(name, tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr
    assert json.loads((tmp_path / f"{name}.json").read_text(encoding="utf-8")) == whole


@pytest.mark.parametrize("arguments", [["nonsense", "--size", "small"], ["brittleness", "--size", "huge"]])
def test_unknown_names_are_refused_with_the_known_ones(arguments, tmp_path):
    result = subprocess.run(
        [sys.executable, "-m", "experiments", *arguments, "--out", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2
    assert "brittleness" in result.stderr or "small" in result.stderr
