"""Every refusal that may pass, 429 and 503, says when to come back; no other one does, but the job that is not over."""

import inspect
from pathlib import Path

import httpx
import pytest
from starlette.exceptions import HTTPException

from service import errors
from service.app import create_app
from service.engine import Engine
from service.errors import ServiceError
from service.problems import problem_of, problem_response
from service.settings import Settings
from sketchstore import errors as store_errors
from sketchstore.errors import CorruptIndexError

PASSING = (429, 503)


def refusals() -> list[type[ServiceError]]:
    found = [value for _, value in inspect.getmembers(errors, inspect.isclass) if issubclass(value, ServiceError)]
    return sorted(found, key=lambda kind: kind.__name__)


def damages() -> list[type[CorruptIndexError]]:
    found = [value for _, value in inspect.getmembers(store_errors, inspect.isclass)]
    return [kind for kind in found if issubclass(kind, CorruptIndexError)]


def made(kind: type[ServiceError]) -> ServiceError:
    """One of a kind, whatever its constructor takes."""
    values = {"str": "text", "str | None": "text", "int": 7, "float": 2.5, "Sequence": ["a"]}
    parameters = list(inspect.signature(kind).parameters.values())
    wanted = [item for item in parameters if item.default is item.empty and item.kind is not item.VAR_KEYWORD]
    return kind(*[values[getattr(item.annotation, "__name__", str(item.annotation))] for item in wanted])


@pytest.mark.parametrize("kind", refusals(), ids=lambda kind: kind.code)
def test_a_refusal_that_may_pass_says_when_and_no_other_one(kind: type[ServiceError]) -> None:
    response = problem_response(problem_of(made(kind), "1"))
    assert response.status_code == kind.status
    if kind.status in PASSING:
        assert int(response.headers["retry-after"]) >= 1
    else:
        assert "retry-after" not in response.headers


@pytest.mark.parametrize("kind", damages(), ids=lambda kind: kind.kind)
def test_every_kind_of_damage_says_when(kind: type[CorruptIndexError]) -> None:
    response = problem_response(problem_of(kind("examples.parquet", "is damaged"), "1"))
    assert response.status_code == 503
    assert int(response.headers["retry-after"]) >= 1


@pytest.mark.parametrize("status", PASSING)
def test_what_the_frameworks_raise_says_when(status: int) -> None:
    assert problem_response(problem_of(HTTPException(status), "1")).headers["retry-after"] == "1"
    given = HTTPException(status, headers={"Retry-After": "7"})
    assert problem_response(problem_of(given, "1")).headers["retry-after"] == "7"


@pytest.mark.anyio
async def test_over_http(index_root: Path) -> None:
    settings = Settings(index_root=index_root, workers=1, queue=0, deadline_seconds=1e-6)
    app = create_app(settings, Engine.open(settings))
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service") as http,
    ):
        late = await http.post("/v1/indexes/own/attributions", json={"query": {"type": "row", "row": 1}})
        no_store = await http.get("/v1/jobs")
        app.state.service.drain()
        stopping = await http.get("/v1/indexes")
        unready = await http.get("/readyz")
    for answer, code in (
        (late, "deadline_exceeded"),
        (no_store, "jobs_unavailable"),
        (stopping, "not_ready"),
        (unready, "not_ready"),
    ):
        assert (answer.status_code, answer.json()["code"]) == (503, code)
        assert int(answer.headers["retry-after"]) >= 1
