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

from experiments.__main__ import main
from experiments.catalogue import experiments

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


def words(name: str, out: Path) -> list[str]:
    return [name, "--size", "smoke", "--out", str(out)]


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs an experiment in this process, for another costs seconds of imports, and returns what it printed."""

    def run(name: str, out: Path) -> str:
        monkeypatch.setenv("NATTRIBUTE_CACHE", str(out / "cache"))
        monkeypatch.setenv("COLUMNS", "160")
        monkeypatch.setattr(sys, "argv", ["experiments", *words(name, out)])
        main()
        return str(capsys.readouterr().out)

    return run


@pytest.mark.filterwarnings("ignore:.*GradScaler:FutureWarning")  # kronfluence's
@pytest.mark.parametrize("name", sorted(experiments()))
def test_experiment_writes_finite_results_and_a_plot_and_continues(name, tmp_path, run):
    assert "seeds:" in run(name, tmp_path)
    whole = json.loads((tmp_path / f"{name}.json").read_text(encoding="utf-8"))
    numbers = [value for row in whole["rows"] for value in row.values() if isinstance(value, float)]
    assert numbers
    assert all(math.isfinite(value) for value in numbers)
    with (tmp_path / f"{name}.csv").open(encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == len(whole["rows"])
    with Image.open(tmp_path / f"{name}.png") as picture:
        assert picture.width > 400
        assert len(picture.convert("RGB").getcolors(maxcolors=1 << 20)) > 20  # something is drawn

    run(name, tmp_path)
    assert json.loads((tmp_path / f"{name}.json").read_text(encoding="utf-8")) == whole


def test_the_command_continues_in_another_process(tmp_path, run):
    run("mislabelled", tmp_path)
    first = (tmp_path / "mislabelled.json").read_bytes()
    again = subprocess.run(
        [sys.executable, "-m", "experiments", *words("mislabelled", tmp_path)],
        cwd=ROOT,
        env=os.environ | {"NATTRIBUTE_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert again.returncode == 0, again.stdout + again.stderr
    assert (tmp_path / "mislabelled.json").read_bytes() == first


def test_an_output_folder_that_is_a_file_is_refused(tmp_path, run, capsys):
    (tmp_path / "results").touch()
    for out in (tmp_path / "results", tmp_path / "results" / "below"):
        with pytest.raises(SystemExit) as ended:
            run("backdoor", out)
        assert ended.value.code == 2
        assert "is a file; give a folder" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nonsense", "--size", "small"], "brittleness"),
        (["brittleness", "--size", "huge"], "small"),
        (["backdoor", "--size", "small", "--queries", "101"], "101; allowed are 1 to 100"),
        (["backdoor", "--size", "small", "--seeds", "0"], "0; allowed are 1 to 1"),
    ],
)
def test_what_an_experiment_has_not_is_refused_with_what_it_has(arguments, said, tmp_path):
    result = subprocess.run(
        [sys.executable, "-m", "experiments", *arguments, "--out", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2
    assert said in " ".join(result.stderr.split())


@pytest.mark.filterwarnings("error::UserWarning")  # matplotlib's, of a plot without lines
def test_methods_without_a_noise_have_no_empty_plot(tmp_path, monkeypatch):
    widths = []
    for methods in ("random,infogain", "random"):
        monkeypatch.setenv("NATTRIBUTE_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(sys, "argv", ["experiments", *words("backdoor", tmp_path), "--methods", methods])
        main()
        with Image.open(tmp_path / "backdoor.png") as picture:
            widths.append(picture.width)
    assert widths[1] == widths[0] // 2
