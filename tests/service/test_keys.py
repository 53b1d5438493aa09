"""What a key may see and do over HTTP: its indexes and its jobs, and nothing that would tell of others."""

import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from fastapi import FastAPI

from service.app import create_app
from service.authentication import Admin
from service.engine import Engine
from service.settings import Settings

pytestmark = pytest.mark.anyio

KEYS = """
key-of-the-first-reader name=first
key-of-the-second-reader name=second
key-of-the-limited-reader name=limited indexes=own,gone
key-of-the-operator name=operator admin
key-of-the-limited-operator name=deputy admin indexes=own
"""
ROW = {"type": "row", "split": "query", "row": 1}
CORESET = {"type": "coreset", "index": "margin", "budget": 3, "relative_noise": 1.0}
JOBS = {
    "own": {"type": "attributions", "index": "own", "requests": [{"query": ROW, "budget": 2, "relative_noise": 1.0}]},
    "margin": CORESET,
}
HIDDEN = ("margin", "class", "nothing")


def key(of: str) -> dict[str, str]:
    return {"Authorization": f"Bearer key-of-the-{of}"}


@pytest.fixture
def app(settings: Settings, engine: Engine, tmp_path: Path) -> FastAPI:
    keys = tmp_path / "keys"
    keys.write_text(KEYS)
    keys.chmod(0o600)
    app = create_app(
        settings.model_copy(update={"api_keys_file": keys, "job_store": tmp_path / "jobs.sqlite3"}), engine
    )

    @app.post("/v1/change", dependencies=[Admin])
    async def change() -> dict[str, str]:
        return {}

    return app


@pytest.fixture
async def http(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service") as client,
    ):
        yield client


async def submit(http: httpx.AsyncClient, of: str, index: str, status: int = 202, **headers: str) -> Any:
    response = await http.post("/v1/jobs", json=JOBS[index], headers=key(of) | headers)
    assert response.status_code == status, response.text
    return response.json()


def without_request(problem: Any) -> Any:
    return {name: value for name, value in problem.items() if name != "request_id"}


async def test_a_limited_key_lists_its_indexes_only(http: httpx.AsyncClient) -> None:
    for of, seen in (("limited-reader", ["own"]), ("limited-operator", ["own"]), ("first-reader", None)):
        names = seen or ["class", "margin", "own"]
        assert (await http.get("/v1/info", headers=key(of))).json()["indexes"] == names
        cards = (await http.get("/v1/indexes", headers=key(of))).json()["indexes"]
        assert [card["name"] for card in cards] == names


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "", None),
        ("POST", "/attributions", {"query": ROW}),
        ("POST", "/attributions", {"query": "wrong", "budget": 10**9}),
        ("POST", "/attributions/batch", {"requests": [{"query": ROW}]}),
        ("POST", "/scores", {"query": ROW, "ids": ["train:1"]}),
        ("POST", "/information", {"query": ROW, "groups": {"by": "label"}}),
        ("POST", "/sketches", {"queries": [ROW]}),
        ("GET", "/examples", None),
        ("GET", "/examples/1", None),
        ("GET", "/examples/x", None),
        ("GET", "/examples/1/content", None),
    ],
)
async def test_an_index_of_others_is_refused_like_one_that_is_not_there(
    http: httpx.AsyncClient, method: str, path: str, body: Any
) -> None:
    told = []
    for index in HIDDEN:
        refused = await http.request(method, f"/v1/indexes/{index}{path}", json=body, headers=key("limited-reader"))
        assert refused.status_code == 404, (index, refused.text)
        told.append(without_request(refused.json()))
        assert told[-1]["errors"][0]["allowed"] == ["own"]
    assert [str(problem).replace(name, "margin") for name, problem in zip(HIDDEN, told, strict=True)] == [
        str(told[0])
    ] * len(HIDDEN)
    mine = await http.request(method, f"/v1/indexes/own{path}", json=body, headers=key("limited-reader"))
    assert mine.status_code == 200 or mine.json()["code"] != "unknown_index"


async def test_a_job_on_an_index_of_others_is_refused_like_one_on_none(http: httpx.AsyncClient) -> None:
    told = []
    for index in HIDDEN:
        refused = await http.post("/v1/jobs", json=CORESET | {"index": index}, headers=key("limited-reader"))
        assert refused.status_code == 404
        told.append(str(without_request(refused.json())).replace(index, "margin"))
    assert len(set(told)) == 1
    assert "class" not in told[0]


async def test_a_job_exists_for_its_key_and_for_admins(http: httpx.AsyncClient) -> None:
    job = await submit(http, "first-reader", "margin")
    mine = await submit(http, "second-reader", "own")
    limited = await submit(http, "limited-reader", "own")
    for path in ("", "/result", "/events"):
        for of in ("second-reader", "limited-reader", "limited-operator"):
            hidden = await http.get(f"/v1/jobs/{job['id']}{path}", headers=key(of))
            absent = await http.get(f"/v1/jobs/{'0' * 32}{path}", headers=key(of))
            assert hidden.status_code == absent.status_code == 404
            assert str(without_request(hidden.json())).replace(job["id"], "0" * 32) == str(
                without_request(absent.json())
            )
    assert (await http.delete(f"/v1/jobs/{job['id']}", headers=key("second-reader"))).status_code == 404
    with anyio.fail_after(60):
        while (await http.get(f"/v1/jobs/{job['id']}", headers=key("first-reader"))).json()["state"] != "done":
            await anyio.sleep(0.05)
    for of in ("first-reader", "operator"):
        assert (await http.get(f"/v1/jobs/{job['id']}/result", headers=key(of))).status_code == 200
    seen = {
        "first-reader": [job["id"]],
        "second-reader": [mine["id"]],
        "limited-reader": [limited["id"]],
        "operator": [limited["id"], mine["id"], job["id"]],
        "limited-operator": [limited["id"], mine["id"]],
    }
    for of, ids in seen.items():
        page = (await http.get("/v1/jobs", headers=key(of))).json()
        assert ([listed["id"] for listed in page["jobs"]], page["total"]) == (ids, len(ids)), of


async def test_two_keys_may_use_one_idempotency_key(http: httpx.AsyncClient) -> None:
    again = {"Idempotency-Key": "the-same"}
    first = await submit(http, "first-reader", "own", **again)
    assert (await submit(http, "first-reader", "own", **again))["id"] == first["id"]
    other = await submit(http, "second-reader", "margin", **again)
    assert other["id"] != first["id"]
    reused = await submit(http, "first-reader", "margin", 422, **again)
    assert first["id"] in reused["detail"]


async def test_what_changes_more_than_jobs_needs_an_admin_key(http: httpx.AsyncClient) -> None:
    assert (await http.post("/v1/change")).status_code == 401
    refused = await http.post("/v1/change", headers=key("first-reader"))
    assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
    assert (await http.post("/v1/change", headers=key("operator"))).status_code == 200


async def test_metrics_tell_of_all_indexes_so_a_limited_key_gets_none(http: httpx.AsyncClient) -> None:
    await http.post("/v1/indexes/margin/attributions", json={"query": ROW}, headers=key("first-reader"))
    for of, status in (("limited-reader", 403), ("limited-operator", 403), ("first-reader", 200), ("operator", 200)):
        answer = await http.get("/metrics", headers=key(of))
        assert answer.status_code == status
        assert ("margin" in answer.text) == (status == 200)


async def test_the_key_of_a_removed_index_tells_nothing_in_its_job(http: httpx.AsyncClient, app: FastAPI) -> None:
    job = await submit(http, "limited-reader", "own")
    service = app.state.service
    stored = service.jobs.store.get(job["id"])
    served, service.engine.names = service.engine.names, ("margin", "class")
    try:
        with pytest.raises(LookupError) as refused:
            service.jobs._begin(stored)
    finally:
        service.engine.names = served
    assert "margin" not in str(refused.value)


async def test_jobs_of_a_store_without_owners_are_kept_and_admins_see_them(
    http: httpx.AsyncClient, app: FastAPI, tmp_path: Path, settings: Settings, engine: Engine
) -> None:
    job = await submit(http, "first-reader", "own")
    app.state.service.jobs.stop()
    with sqlite3.connect(tmp_path / "jobs.sqlite3") as old:  # as the version before had it
        old.execute("ALTER TABLE jobs DROP COLUMN owner")
        old.execute("PRAGMA user_version = 1")
    app.state.service.jobs.start()
    assert (await http.get(f"/v1/jobs/{job['id']}", headers=key("first-reader"))).status_code == 404
    assert (await http.get(f"/v1/jobs/{job['id']}", headers=key("operator"))).status_code == 200
    assert (await submit(http, "first-reader", "own"))["id"] != job["id"]
