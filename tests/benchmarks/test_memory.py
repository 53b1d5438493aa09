import os
from pathlib import Path

import numpy as np
import pytest

from benchmarks import memory


def test_pages_of_the_index_are_told_from_those_of_libraries(tmp_path: Path) -> None:
    folder = tmp_path / "index"
    folder.mkdir()
    np.save(folder / "rows.npy", np.ones(1_000_000))
    before = memory.mapped(os.getpid(), folder)
    rows = np.load(folder / "rows.npy", mmap_mode="r")
    assert float(rows.sum()) == 1e6  # reads every page
    after = memory.mapped(os.getpid(), folder)
    assert before["index_mb"] == 0
    assert after["index_mb"] == pytest.approx(8.0, abs=0.1)
    assert after["library_mb"] > 10  # torch alone is more
    # Both are what the kernel counts as pages of files, but for what was mapped meanwhile.
    assert sum(after.values()) == pytest.approx(memory.resident(os.getpid())["file_mb"], rel=0.05, abs=2)
