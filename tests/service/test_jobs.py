"""Jobs over HTTP: accepted once, done to the end, followed, cancelled, fetched in every form, refused where wrong."""

import io
import json
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import anyio
import httpx
import numpy as np
import pyarrow.parquet as pq
import pytest

from service.app import create_app
from service.engine import Engine
from service.errors import JobStoreError
from service.jobs.store import JobStore
from service.jobs.stored_job import NewJob
from service.schemas.jobs import AttributionsJob, CoresetJob
from service.settings import Settings
from tests.index_factory import make_index

pytestmark = pytest.mark.anyio
ROW = {"type": "row", "split": "query", "row": 1}
CORESET = {"type": "coreset", "index": "margin", "budget": 12, "relative_noise": 1.0}
MANY = {
    "type": "attributions",
    "index": "own",
    "requests": [{"query": {"type": "row", "row": row % 23}, "budget": 3, "relative_noise": 1.0} for row in range(40)],
}
EVALUATION = {
    "type": "evaluation",
    "index": "margin",
    "queries": [{"type": "row", "row": row} for row in (0, 1, 99, 2)],
    "groups": {"by": "source"},
    "relative_noise": 0.5,
}


async def submit(http: httpx.AsyncClient, job: dict[str, Any], status: int = 202, **headers: str) -> Any:
    response = await http.post("/v1/jobs", json=job, headers=headers)
    assert response.status_code == status, response.text
    return response.json()


async def over(http: httpx.AsyncClient, id: str) -> Any:
    for _ in range(600):
        job = (await http.get(f"/v1/jobs/{id}")).json()
        if job["state"] in ("done", "failed", "cancelled"):
            return job
        await anyio.sleep(0.05)
    raise TimeoutError(job)


async def result(http: httpx.AsyncClient, id: str) -> Any:
    response = await http.get(f"/v1/jobs/{id}/result")
    assert response.status_code == 200, response.text
    return response.json()


async def test_a_coreset_job_is_the_selection_of_the_library(http: httpx.AsyncClient, engine: Engine) -> None:
    from indexer.attributor.coreset import Coreset, CoresetQuestion

    accepted = await submit(http, CORESET)
    assert accepted["state"] in ("queued", "running")
    job = await over(http, accepted["id"])
    assert (job["state"], job["progress"]) == ("done", {"done": 12, "total": 12})
    assert job["created_at"] <= job["started_at"] <= job["finished_at"] < job["expires_at"]
    found = await result(http, job["id"])
    expected = Coreset(engine.served("margin").index, CoresetQuestion(budget=12, relative_noise=1.0))
    assert [(item["row"], item["score"]) for item in found["items"]] == [(p.row, p.score) for p in expected.picks()]
    assert found["facts"]["noise_variance"] == expected.noise.variance
    assert found["job"] == job


async def test_every_item_of_a_batch_is_the_answer_that_the_request_has_alone(http: httpx.AsyncClient) -> None:
    job = await over(http, (await submit(http, MANY))["id"])
    found = await result(http, job["id"])
    assert [item["position"] for item in found["items"]] == list(range(40))
    for item, asked in zip(found["items"], MANY["requests"], strict=True):
        alone = await http.post("/v1/indexes/own/attributions", json=asked)
        assert item["status"] == alone.status_code
        expected, body = alone.json(), item["body"]
        assert body.pop("timings_ms", {}) == {}
        expected.pop("timings_ms", None)
        if item["status"] != 200:
            assert body.pop("request_id") == job["id"]
            expected.pop("request_id")
        assert body == expected
    assert {item["status"] for item in found["items"]} == {200, 422}


async def test_an_evaluation_has_every_query_s_own_nats(http: httpx.AsyncClient) -> None:
    job = await over(http, (await submit(http, EVALUATION))["id"])
    items = (await result(http, job["id"]))["items"]
    assert [item["status"] for item in items] == [200, 200, 422, 200]
    assert items[2]["body"]["errors"][0]["pointer"] == "/queries/2/row"
    for item in (items[0], items[1], items[3]):
        query = EVALUATION["queries"][item["position"]]
        asked = {"query": query, "groups": {"by": "source"}, "relative_noise": 0.5}
        alone = (await http.post("/v1/indexes/margin/information", json=asked)).json()
        assert item["body"]["available_nats"] == pytest.approx(alone["available_nats"], rel=1e-12)
        for group, expected in zip(item["body"]["groups"], alone["groups"], strict=True):
            assert group["name"] == expected["name"]
            assert group["infogain_nats"] == pytest.approx(expected["infogain_nats"], rel=1e-10)
            assert group["infoloss_nats"] == pytest.approx(expected["infoloss_nats"], rel=1e-10)


@pytest.mark.parametrize(
    ("job", "rows"), [(CORESET, 12), (MANY, None), (EVALUATION, 7)], ids=["coreset", "attributions", "evaluation"]
)
async def test_the_three_forms_of_a_result_hold_the_same(
    http: httpx.AsyncClient, job: dict[str, Any], rows: int | None
) -> None:
    id = (await over(http, (await submit(http, job))["id"]))["id"]
    items = (await result(http, id))["items"]
    lines = await http.get(f"/v1/jobs/{id}/result", headers={"Accept": "application/x-ndjson"})
    assert lines.headers["content-type"] == "application/x-ndjson"
    assert [json.loads(line) for line in lines.text.splitlines()] == items
    parquet = await http.get(f"/v1/jobs/{id}/result", headers={"Accept": "application/vnd.apache.parquet"})
    table = pq.read_table(io.BytesIO(parquet.content))
    assert table.schema.metadata[b"job"].decode() == id
    found = table.to_pylist()
    if job is CORESET:
        assert [{key: item[key] for key in found[0]} for item in items] == found
    elif job is EVALUATION:
        told = [(row["position"], row["group"], row["infoloss_nats"]) for row in found if row["status"] == 200]
        assert told == [
            (item["position"], group["name"], group["infoloss_nats"])
            for item in items
            if item["status"] == 200
            for group in item["body"]["groups"]
        ]
        assert [row["problem_code"] for row in found if row["status"] == 422] == ["unknown_row"]
    else:
        hits = [
            (item["position"], hit["rank"], hit["id"], hit["step_nats"], hit["represents"]["count"])
            for item in items
            if item["status"] == 200
            for hit in item["body"]["hits"]
        ]
        keys = ("position", "rank", "id", "step_nats", "represents")
        assert [tuple(row[key] for key in keys) for row in found if row["status"] == 200] == hits
        rows = len(hits) + sum(item["status"] == 422 for item in items)
    assert table.num_rows == rows


async def test_a_form_that_there_is_none_of_is_refused(http: httpx.AsyncClient) -> None:
    id = (await over(http, (await submit(http, CORESET))["id"]))["id"]
    refused = await http.get(f"/v1/jobs/{id}/result", headers={"Accept": "text/csv"})
    assert (refused.status_code, refused.json()["code"]) == (406, "not_acceptable")
    assert "application/x-ndjson" in refused.json()["errors"][0]["allowed"]
    preferred = {"Accept": "application/x-ndjson;q=0.5, application/json;q=0.9, text/csv"}
    assert (await http.get(f"/v1/jobs/{id}/result", headers=preferred)).headers["content-type"] == "application/json"


async def test_the_same_key_is_the_same_job_and_no_other(http: httpx.AsyncClient) -> None:
    first = await submit(http, CORESET, **{"Idempotency-Key": "k-1"})
    again = await submit(http, dict(reversed(CORESET.items())), **{"Idempotency-Key": "k-1"})
    assert again["id"] == first["id"]
    await over(http, first["id"])
    assert (await submit(http, CORESET, **{"Idempotency-Key": "k-1"}))["state"] == "done"
    refused = await submit(http, CORESET | {"budget": 3}, 422, **{"Idempotency-Key": "k-1"})
    assert refused["code"] == "idempotency_key_reused"
    assert (await submit(http, CORESET))["id"] != first["id"]
    assert (await http.get("/v1/jobs")).json()["total"] == 2
    refused = await submit(http, CORESET, 422, **{"Idempotency-Key": "two words"})
    assert refused["errors"][0]["parameter"] == "Idempotency-Key"


async def test_events_tell_progress_from_where_the_client_was(http: httpx.AsyncClient) -> None:
    id = (await submit(http, MANY))["id"]
    stream = await http.get(f"/v1/jobs/{id}/events")
    assert stream.headers["content-type"].startswith("text/event-stream")
    events = [dict(line.split(": ", 1) for line in part.splitlines()) for part in stream.text.strip().split("\n\n")]
    assert [event["event"] for event in events[:-1]] == ["progress"] * (len(events) - 1)
    assert events[-1]["event"] == "over"
    ids = [int(event["id"]) for event in events]
    assert ids == sorted(set(ids))
    assert json.loads(events[-1]["data"])["progress"] == {"done": 40, "total": 40}
    later = await http.get(f"/v1/jobs/{id}/events", headers={"Last-Event-ID": events[-1]["id"]})
    assert later.status_code == 204
    earlier = await http.get(f"/v1/jobs/{id}/events", headers={"Last-Event-ID": str(ids[-1] - 1)})
    assert earlier.text.count("event: over") == earlier.text.count("event:") == 1
    wrong = await http.get(f"/v1/jobs/{id}/events", headers={"Last-Event-ID": "x"})
    assert (wrong.status_code, wrong.json()["errors"][0]["parameter"]) == (422, "Last-Event-ID")


async def test_what_cannot_be_a_job_is_refused_before_it_is_accepted(http: httpx.AsyncClient) -> None:
    for job, status, code, place in (
        ({"index": "own"}, 422, "missing_field", "/type"),
        ({"type": "corset", "index": "own"}, 422, "invalid_value", "/type"),
        ({"type": "coreset", "index": "margin"}, 422, "missing_field", "/budget"),
        ({"type": "coreset", "index": "none", "budget": 1}, 404, "unknown_index", "index"),
        ({"type": "coreset", "index": "margin", "budget": 61}, 422, "budget_too_large", "/budget"),
        ({"type": "coreset", "index": "own", "budget": 3}, 422, "label_mismatch", "/label"),
        ({"type": "coreset", "index": "margin", "budget": 3, "num_queries": 99}, 422, "unknown_row", "/num_queries"),
        ({"type": "coreset", "index": "margin", "budget": 3, "bugdet": 1}, 422, "unknown_field", "/bugdet"),
        (EVALUATION | {"groups": {"by": "colour"}}, 422, "unknown_metadata", "/groups/by"),
        (EVALUATION | {"queries": [{"type": "row", "row": -1}]}, 422, "out_of_range", "/queries/0/row"),
        (EVALUATION | {"exclude_ids": ["train:1", "train:x"]}, 422, "unknown_id", "/exclude_ids/1"),
        (EVALUATION | {"noise_variance": 1.0}, 422, "noise_conflict", "/relative_noise"),
        (MANY | {"requests": []}, 422, "wrong_length", "/requests"),
        (MANY | {"requests": [{}] * 10_001}, 422, "limit_exceeded", "/requests"),
    ):
        problem = await submit(http, job, status)
        (item,) = problem["errors"]
        assert (item["code"], item.get("pointer") or item.get("parameter")) == (code, place)
    assert (await http.get("/v1/jobs")).json() == {"jobs": [], "total": 0}


async def test_a_job_that_there_is_not_and_one_that_is_not_over(http: httpx.AsyncClient, settings: Settings) -> None:
    for method, resource in (("GET", ""), ("DELETE", ""), ("GET", "/result"), ("GET", "/events")):
        response = await http.request(method, f"/v1/jobs/nothing{resource}")
        assert (response.status_code, response.json()["code"]) == (404, "unknown_job")
    assert (await http.get("/v1/jobs", params={"state": "nothing"})).status_code == 422
    assert (await http.get("/v1/jobs", params={"limit": settings.max_page + 1})).status_code == 422


async def test_without_a_place_jobs_are_refused(settings: Settings, engine: Engine) -> None:
    app = create_app(settings, engine)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service") as client:
        for response in (await client.post("/v1/jobs", json=CORESET), await client.get("/v1/jobs")):
            assert (response.status_code, response.json()["code"]) == (503, "jobs_unavailable")
            assert "--job-store" in response.json()["detail"]


class Gate:
    """Holds attributions of an engine up until it is opened."""

    def __init__(self, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.answered = 0
        self.go = threading.Semaphore(0)
        served = engine.served("own")
        answer = served.attribute

        def attribute(asked: Any, check: Any) -> Any:
            while not self.go.acquire(timeout=0.01):
                check()
            self.answered += 1
            return answer(asked, check)

        monkeypatch.setattr(served, "attribute", attribute)


@pytest.fixture
def gate(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(engine, monkeypatch)


async def test_a_cancelled_job_keeps_what_it_has(http: httpx.AsyncClient, gate: Gate) -> None:
    first, second = (await submit(http, MANY))["id"], (await submit(http, MANY))["id"]
    assert (await http.get(f"/v1/jobs/{first}/result")).json()["code"] == "job_not_over"
    gate.go.release(5)
    while (await http.get(f"/v1/jobs/{first}")).json()["progress"]["done"] < 5:
        await anyio.sleep(0.02)
    assert (await http.get(f"/v1/jobs/{second}")).json()["state"] == "queued"
    metrics = (await http.get("/metrics")).text
    assert 'nattribute_jobs{state="queued"} 1.0' in metrics
    assert 'nattribute_jobs{state="running"} 1.0' in metrics
    waiting = (await http.delete(f"/v1/jobs/{second}")).json()
    assert (waiting["state"], waiting["cancel_requested"]) == ("cancelled", True)
    assert (await http.delete(f"/v1/jobs/{first}")).json()["cancel_requested"]
    job = await over(http, first)
    assert (job["state"], job["progress"], job["problem"]) == ("cancelled", {"done": 5, "total": 40}, None)
    assert len((await result(http, first))["items"]) == 5
    assert (await http.delete(f"/v1/jobs/{first}")).json() == job
    assert (await result(http, second))["items"] == []
    listed = (await http.get("/v1/jobs", params={"state": "cancelled", "limit": 1})).json()
    assert ([each["id"] for each in listed["jobs"]], listed["total"]) == ([second], 2)


async def test_a_stopped_service_goes_on_where_it_was(settings: Settings, engine: Engine, gate: Gate, tmp_path: Path):
    settings = settings.model_copy(update={"job_store": tmp_path / "jobs.sqlite3"})
    app = create_app(settings, engine)
    transport = httpx.ASGITransport(app)
    client = httpx.AsyncClient(transport=transport, base_url="http://service")
    async with client as http, app.router.lifespan_context(app):
        id = (await submit(http, MANY))["id"]
        gate.go.release(7)
        while (await http.get(f"/v1/jobs/{id}")).json()["progress"]["done"] < 7:
            await anyio.sleep(0.02)
    gate.go.release(1000)
    app = create_app(settings, engine)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service") as http,
    ):
        job = await over(http, id)
        items = (await result(http, id))["items"]
    assert job["state"] == "done"
    assert [item["position"] for item in items] == list(range(40))
    # Rows 20 to 22 do not exist: those requests are refused by the index, and all others are answered exactly once.
    assert gate.answered == 40


async def test_a_queue_of_jobs_has_an_end(settings: Settings, engine: Engine, gate: Gate, tmp_path: Path) -> None:
    changes = {"job_store": tmp_path / "jobs.sqlite3", "max_queued_jobs": 1}
    app = create_app(settings.model_copy(update=changes), engine)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service") as http,
    ):
        running = (await submit(http, MANY))["id"]
        while (await http.get(f"/v1/jobs/{running}")).json()["state"] == "queued":
            await anyio.sleep(0.02)
        await submit(http, MANY)
        refused = await http.post("/v1/jobs", json=MANY)
        assert (refused.status_code, refused.json()["code"]) == (429, "job_queue_full")
        assert int(refused.headers["Retry-After"]) > 0


async def test_a_new_revision_is_not_mixed_with_the_old_one(tmp_path: Path) -> None:
    index = make_index(tmp_path, name="small", view="margin", num_rows=40, dim=8)
    settings = Settings(index=(f"small={index.path}",), job_store=tmp_path / "jobs.sqlite3")
    job = {"type": "coreset", "index": "small", "budget": 6, "relative_noise": 1.0}
    store = JobStore(tmp_path / "jobs.sqlite3")
    new = NewJob("coreset", "small", index.revision, json.dumps(job), "d", 6)
    stored = store.create(new, None, 9)
    store.claim()
    store.add(stored, [(0, {"position": 0, "row": 39})])  # as a process that ended had picked it
    store.close()
    for folder in sorted(index.path.rglob("*"), reverse=True):
        folder.rmdir() if folder.is_dir() else folder.unlink()
    index.path.rmdir()
    fresh = make_index(tmp_path, name="small", view="margin", num_rows=30, dim=8, seed=3)
    app = create_app(settings, Engine.open(settings))
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service") as http,
    ):
        over_now = await over(http, stored.id)
        found = await result(http, stored.id)
        whole = await result(http, (await over(http, (await submit(http, job))["id"]))["id"])
    assert (over_now["state"], over_now["revision"]) == ("done", fresh.revision)
    assert any("begun anew" in warning for warning in over_now["warnings"])
    assert found["items"] == whole["items"]


async def test_a_job_on_an_index_that_is_gone_fails_and_says_so(settings: Settings, engine: Engine, tmp_path: Path):
    store = JobStore(tmp_path / "jobs.sqlite3")
    id = store.create(NewJob("coreset", "gone", "r", json.dumps(CORESET | {"index": "gone"}), "d", 6), None, 9).id
    store.close()
    app = create_app(settings.model_copy(update={"job_store": tmp_path / "jobs.sqlite3"}), engine)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service") as http,
    ):
        job = await over(http, id)
    assert (job["state"], job["problem"]["code"], job["problem"]["request_id"]) == ("failed", "unknown_index", id)


async def test_a_noise_that_is_too_small_fails_the_job_with_one_that_works(tmp_path: Path) -> None:
    rows = np.random.default_rng(5).standard_normal((10, 16)).astype(np.float32)
    index = make_index(tmp_path, name="twins", view="margin", sketches={"margin": np.concatenate([rows, rows[:4]])})
    settings = Settings(index=(f"twins={index.path}",), job_store=tmp_path / "jobs.sqlite3")
    app = create_app(settings, Engine.open(settings))
    asked = {"type": "coreset", "index": "twins", "budget": 3, "rule": "infoloss"}
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service") as http,
    ):
        job = await over(http, (await submit(http, asked | {"relative_noise": 1e-18}))["id"])
        assert (job["state"], job["problem"]["code"]) == ("failed", "noise_too_small")
        least = job["problem"]["errors"][0]["allowed"]["ge"]
        assert (await over(http, (await submit(http, asked | {"relative_noise": least}))["id"]))["state"] == "done"


async def test_jobs_are_forgotten_after_a_while(settings: Settings, engine: Engine, tmp_path: Path) -> None:
    changes = {"job_store": tmp_path / "jobs.sqlite3", "job_retention_seconds": 0.5}
    app = create_app(settings.model_copy(update=changes), engine)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service") as http,
    ):
        first = (await over(http, (await submit(http, CORESET))["id"]))["id"]
        await anyio.sleep(0.6)
        await over(http, (await submit(http, CORESET))["id"])
        assert (await http.get(f"/v1/jobs/{first}")).json()["code"] == "unknown_job"


def test_a_job_that_ends_the_process_every_time_fails(settings: Settings, engine: Engine, tmp_path: Path) -> None:
    settings = settings.model_copy(update={"job_store": tmp_path / "jobs.sqlite3"})
    store = JobStore(tmp_path / "jobs.sqlite3")
    id = store.create(NewJob("coreset", "margin", "r", json.dumps(CORESET), "d", 12), None, 9).id
    for _ in range(10):  # ten processes that took it up and were seen no more
        assert store.claim() is not None
        assert store.recover() == 1
    store.close()
    app = create_app(settings, engine)
    jobs = app.state.service.jobs
    jobs.start()
    while jobs.store.get(id).finished is None:
        time.sleep(0.02)
    job = jobs.describe(jobs.store.get(id))
    jobs.stop()
    assert (job.state, job.problem.code) == ("failed", "job_failed")


def test_a_full_disk_refuses_new_jobs_and_holds_up_the_accepted(settings: Settings, engine: Engine, tmp_path: Path):
    app = create_app(settings.model_copy(update={"job_store": tmp_path / "jobs.sqlite3"}), engine)
    jobs = app.state.service.jobs
    coreset = CoresetJob.model_validate(CORESET)
    accepted = jobs.submit(coreset, "first")
    # SQLite's own limit of a file: from here on every page more is SQLITE_FULL.
    pages = jobs.store._db.execute("PRAGMA page_count").fetchone()[0]
    jobs.store._db.execute(f"PRAGMA max_page_count = {pages}")
    fill = (jobs.submit(coreset, f"k{number}") for number in range(1000))
    with pytest.raises(JobStoreError, match="full"):
        list(fill)
    many = AttributionsJob.model_validate(MANY)
    with pytest.raises(JobStoreError, match="full"):
        jobs.submit(many, None)
    waiting = len(jobs.store.page("queued", 0, 1000)[0])
    jobs.start()
    time.sleep(1.5)
    assert any(job.finished is None for job in jobs.store.page(None, 0, 1000)[0])
    jobs.store._db.execute("PRAGMA max_page_count = 1000000")
    while any(job.finished is None for job in jobs.store.page(None, 0, 1000)[0]):
        time.sleep(0.02)
    assert jobs.store.page("done", 0, 1000)[1] == waiting
    assert [body["rank"] for _, body in jobs.store.items(accepted)] == list(range(1, 13))
    jobs.stop()


def test_a_job_cancelled_while_the_service_stopped_is_not_taken_up_again(tmp_path: Path) -> None:
    store = JobStore(tmp_path / "jobs.sqlite3")
    job = store.create(NewJob("coreset", "margin", "r", json.dumps(CORESET), "d", 12), None, 9)
    assert store.claim() is not None
    store.cancel(job.id)
    store.requeue(job)  # the runner had looked before
    store.close()
    again = JobStore(tmp_path / "jobs.sqlite3")
    assert again.recover() == 0
    assert again.get(job.id).state == "cancelled"
    assert again.claim() is None
    again.close()


def test_a_job_that_begins_has_a_new_version_only_where_followers_see_something_new(tmp_path: Path) -> None:
    store = JobStore(tmp_path / "jobs.sqlite3")
    store.create(NewJob("coreset", "margin", "r", json.dumps(CORESET), "d", 12), None, 9)
    job = store.claim()
    assert job is not None
    seen = [job.version]
    steps = [
        lambda: store.begin(job, "r", 12, {"noise": 1.0}, []),  # as it was accepted
        lambda: store.begin(job, "r", 12, {"noise": 1.0}, ["beware"]),
        lambda: store.begin(job, "r", 11, {"noise": 1.0}, ["beware"]),
        lambda: store.add(job, [(0, {})]),
        lambda: store.begin(job, "r", 11, {"noise": 1.0}, ["beware"]),
        lambda: store.begin(job, "r2", 11, {"noise": 1.0}, ["beware"]),  # and what it had is forgotten
    ]
    for step in steps:
        step()
        seen.append(store.get(job.id).version)
    assert [after - before for before, after in pairwise(seen)] == [0, 1, 1, 1, 0, 1]
    assert (store.get(job.id).revision, store.get(job.id).done) == ("r2", 0)
    assert store.versions[job.id] == seen[-1]
    store.close()


def test_a_store_belongs_to_one_process_and_one_version(tmp_path: Path) -> None:
    store = JobStore(tmp_path / "jobs.sqlite3")
    with pytest.raises(JobStoreError, match="another process"):
        JobStore(tmp_path / "jobs.sqlite3")
    store._db.execute("PRAGMA user_version = 99")
    store.close()
    with pytest.raises(JobStoreError, match="99, not 2"):
        JobStore(tmp_path / "jobs.sqlite3")
    (tmp_path / "text").write_text("no database " * 100)
    with pytest.raises(JobStoreError, match="cannot be opened"):
        JobStore(tmp_path / "text")
    with pytest.raises(JobStoreError, match="cannot be opened"):
        JobStore(tmp_path / "text" / "jobs.sqlite3")


def test_what_is_accepted_is_on_disk(tmp_path: Path) -> None:
    store = JobStore(tmp_path / "jobs.sqlite3")
    assert [path.stat().st_mode & 0o077 for path in tmp_path.glob("jobs.sqlite3*") if path.suffix != ".lock"] == [0] * 3
    assert store._db.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
    assert store._db.execute("PRAGMA synchronous").fetchone()[0] == 2  # FULL
    store.close()
