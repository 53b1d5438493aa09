"""Real small index directories, an engine over them, and the app reached through httpx without a socket."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest

from service import logs
from service.app import create_app
from service.engine import Engine
from service.settings import Settings
from tests.index_factory import make_index

ROWS = 60
DIM = 16
QUERIES = 20


@pytest.fixture(autouse=True)
def json_logs() -> None:
    """The service's own log; structlog's default draws tracebacks for seconds."""
    logs.configure("error")


@pytest.fixture(scope="session")
def index_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("indexes")
    make_index(root, name="own", view="own", num_rows=ROWS, dim=DIM, num_queries=QUERIES, faiss="Flat")
    make_index(
        root, name="margin", view="margin", num_rows=ROWS, dim=DIM, num_queries=QUERIES, representations=5, faiss="Flat"
    )
    make_index(root, name="class", view="class", num_rows=ROWS, dim=DIM, default_relative_noise=0.5, faiss="Flat")
    return root


@pytest.fixture(scope="session")
def settings(index_root: Path) -> Settings:
    return Settings(index_root=index_root, max_budget=50, max_batch=8, max_ids=40, max_page=50)


@pytest.fixture(scope="session")
def engine(settings: Settings) -> Engine:
    return Engine.open(settings)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def http(settings: Settings, engine: Engine, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(settings.model_copy(update={"job_store": tmp_path / "jobs.sqlite3"}), engine)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service") as client,
    ):
        yield client


@pytest.fixture(scope="session")
def server(index_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A service process of its own on a loopback port."""
    from service.local_server import local_server

    store = str(tmp_path_factory.mktemp("jobs") / "jobs.sqlite3")
    options = ("--max-budget", "50", "--max-body-bytes", "100000", "--job-store", store)
    with local_server(index_root / "own", *options, start_seconds=300) as url:
        yield url
