"""A cache of weights of its own for every test run, so that no test depends on what an earlier run left behind."""

from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def weights_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """NATTRIBUTE_CACHE for the session."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NATTRIBUTE_CACHE", str(folder))
        yield folder
