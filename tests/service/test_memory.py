"""benchmarks.memory reads the memory of the service it started, and the service holds no copy of the vectors."""

import sys
from pathlib import Path

import pytest

from tests.index_factory import make_index

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc"),
]


def test_mapped_vectors_are_not_copied_into_the_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.memory import measure

    # glibc gives blocks that were freed back to the system at once: else it keeps up to 85 MB of them, at random.
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", str(1 << 20))
    index = make_index(tmp_path, view="margin", num_rows=20_000, dim=1024, shard_rows=20_000, block_rows=4096)
    arguments = ["--engine", "brute_force"]
    figures = measure(
        index.path, method="infogain_approx", budget=3, available=False, questions=4, threads=2, arguments=arguments
    )
    start, first = figures["at_start"], figures["after_first_question"]
    assert figures["sketch_mb"] == pytest.approx(81.9, abs=0.1)
    assert first["file_mb"] - start["file_mb"] > 75  # the question read every vector through the map
    assert figures["peak"]["anonymous_mb"] >= first["anonymous_mb"] > start["anonymous_mb"] - 5
    # A copy would be 82 MB; 20,000 rows take 0.16 MB a vector, and what is kept between questions 15 to 17 MB in all.
    assert figures["at_end"]["anonymous_mb"] - start["anonymous_mb"] < 41
