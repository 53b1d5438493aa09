"""What the interrupted publications start from, and the processes that they run in."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.reliability.commands import Commands
from tests.reliability.publications import prepare


@pytest.fixture(scope="session")
def memory() -> Iterator[Path]:
    """A folder in memory where there is one: what is tested is the order of calls, and a disk only makes it slow."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if os.access(shared, os.W_OK) else None) as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def base(memory: Path) -> Path:
    """The index directories of `publications.py`."""
    prepare(memory / "base")
    return memory / "base"


@pytest.fixture(scope="session")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    """Runs operations and commands, each in a process of its own."""
    with Commands(tmp_path_factory.mktemp("cache")) as running:
        yield running


@pytest.fixture
def work(memory: Path) -> Iterator[Path]:
    """An empty folder in memory."""
    folder = memory / "work"
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)
