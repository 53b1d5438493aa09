"""`make demo` end to end: it trains, builds, serves, asks and draws, and leaves nothing behind but its folder."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


def test_demo_prints_and_draws_an_answer_whose_sentence_is_true(tmp_path):
    out = tmp_path / "out"
    environment = os.environ | {"NATTRIBUTE_CACHE": str(tmp_path / "cache"), "COLUMNS": "100"}
    result = subprocess.run(
        [sys.executable, "-m", "experiments.demo", "--out", str(out)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr

    answer = json.loads((out / "answer.json").read_text(encoding="utf-8"))
    manifest = json.loads((out / "digits" / "manifest.json").read_text(encoding="utf-8"))
    (view,) = manifest["views"].values()
    assert view["comparable"] == "all"  # else "what the training examples know" would be about one label's rows
    sentence = re.search(r"These (\d+) examples carry (\d+) % of what the ([\d,]+) training examples", result.stdout)
    assert sentence is not None, result.stdout
    assert int(sentence[1]) == len(answer["hits"]) == 10
    assert int(sentence[2]) == round(100 * answer["information"]["fraction"])
    assert int(sentence[3].replace(",", "")) == manifest["num_rows"] == 1437
    assert answer["search"]["engine"] == "faiss"
    assert answer["search"]["exact"] is True

    with Image.open(out / "answer.png") as picture:
        assert picture.size > (1000, 600)
        assert len(set(picture.convert("L").get_flattened_data())) > 50  # something is drawn
    assert {path.name for path in out.iterdir()} == {"digits", "answer.json", "answer.png", "service.log"}
