"""The whole line on real images: recipe → index → HTTP → answers that equal a dense float64 Gaussian process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.exactness import measure
from service.client import Client
from service.local_server import local_server

DATA = os.environ.get("NATTRIBUTE_DATA")
ROWS, DIM = 1500, 512

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(DATA is None, reason="NATTRIBUTE_DATA names no folder with fashion-mnist"),
]


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fashion")
    command = [
        *(sys.executable, "-m", "indexer.cli", "build", "fashion-mnist"),
        *("--data-dir", str(DATA), "--option", "train_fraction=0.05", "--option", "epochs=2"),
        *("--sketch", "rademacher", "--dim", str(DIM), "--dtype", "float16"),
        *("--limit", str(ROWS), "--num-queries", "40", "--out", str(folder / "fashion-mnist")),
    ]
    environment = os.environ | {"NATTRIBUTE_CACHE": str(folder / "cache")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return folder / "fashion-mnist"


def test_sketches_take_two_bytes_a_number(index: Path):
    size = sum(file.stat().st_size for file in (index / "sketches").rglob("*.safetensors"))
    # The headers of the shards: a few hundred bytes.
    assert size == pytest.approx(ROWS * DIM * 2, rel=0.05)


def test_served_picks_and_nats_equal_a_dense_gaussian_process(index: Path):
    with local_server(index) as url, Client(url) as client:
        result = measure(index, num_queries=4, budget=50, client=client)
    assert result["cells"] == 36
    assert result["cells_with_other_picks"] == 0, result["worst"]
    # Both sides are float64; at relative noise 0.01 their systems have condition numbers of about 1e5.
    assert result["largest_relative_difference_of_nats"] < 1e-8, result["worst"]
    assert result["all_exact"]
