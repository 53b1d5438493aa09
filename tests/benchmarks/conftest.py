"""One small index on which every benchmark program runs within seconds."""

import numpy as np
import pytest

from sketchstore.reader import Index
from tests.index_factory import make_index

ROWS, DIM = 300, 24


@pytest.fixture(scope="session")
def small_index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    """Margins, all comparable, in several shards, with duplicates, a zero row and a pair of opposite rows."""
    rng = np.random.default_rng(7)
    sketches = rng.standard_normal((ROWS, DIM)).astype(np.float32)
    sketches[200:220] = sketches[:20]
    sketches[220] = 0
    sketches[221] = -sketches[30]
    return make_index(
        tmp_path_factory.mktemp("benchmarks"),
        view="margin",
        sketches={"margin": sketches},
        num_queries=12,
        faiss="Flat",
        block_rows=64,
        shard_rows=64,
    )
