"""Keys, failures and deadlines: how the whole app answers when it must not, or cannot."""

from pathlib import Path

import httpx
import pytest

from service.app import create_app
from service.engine import Engine
from service.settings import Settings

pytestmark = pytest.mark.anyio

KEY = "a-key-of-sufficient-length"
ROW = {"type": "row", "split": "query", "row": 1}


def reach(settings: Settings, engine: Engine) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(create_app(settings, engine))
    return httpx.AsyncClient(transport=transport, base_url="http://service")


async def test_with_keys_only_health_and_documentation_are_open(tmp_path: Path, engine: Engine) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"{KEY}\n")
    keys.chmod(0o600)
    async with reach(Settings(api_keys_file=keys), engine) as http:
        for path in ("/livez", "/openapi.json", "/docs", "/docs/start.js"):
            assert (await http.get(path)).status_code == 200, path
        for path in ("/v1/info", "/v1/indexes", "/metrics", "/v1/indexes/own/examples/0/content", "/nothing"):
            refused = await http.get(path, headers={"Authorization": "Bearer wrong"})
            assert refused.status_code == 401, path
            assert refused.headers["www-authenticate"] == "Bearer"
            assert refused.json()["code"] == "unauthorized"
        known = {"Authorization": f"Bearer {KEY}"}
        assert (await http.get("/v1/info", headers=known)).status_code == 200
        answer = await http.post("/v1/indexes/own/attributions", json={"query": ROW}, headers=known)
        assert answer.status_code == 200


async def test_before_the_start_the_service_is_alive_and_not_ready(engine: Engine) -> None:
    async with reach(Settings(), engine) as http:  # ASGITransport runs no lifespan
        assert (await http.get("/livez")).status_code == 200
        waiting = await http.get("/readyz")
        assert waiting.status_code == 503
        assert waiting.json()["code"] == "not_ready"


async def test_a_failure_of_ours_is_a_500_without_its_cause(
    settings: Settings, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(index: str | None = None) -> None:
        raise RuntimeError("the secret cause")

    monkeypatch.setattr(engine, "card", fail)
    async with reach(settings, engine) as http:
        response = await http.get("/v1/indexes/own")
        assert response.status_code == 500
        assert response.headers["content-type"] == "application/problem+json"
        assert response.json()["code"] == "internal_error"
        assert response.json()["request_id"] == response.headers["x-request-id"]
        assert "secret" not in response.text
        assert (await http.get("/v1/info")).status_code == 200


async def test_what_takes_too_long_is_a_503(engine: Engine) -> None:
    async with reach(Settings(deadline_seconds=1e-6), engine) as http:
        response = await http.post("/v1/indexes/own/attributions", json={"query": ROW})
        assert response.status_code == 503
        assert response.json()["code"] == "deadline_exceeded"
        assert response.headers["retry-after"] == "1"


async def test_a_draining_service_lets_nothing_more_in(settings: Settings, engine: Engine) -> None:
    app = create_app(settings, engine)
    state = app.state.service
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service") as http,
    ):
        assert (await http.get("/readyz")).status_code == 200
        state.drain()
        for refused in (
            await http.get("/readyz"),
            await http.get("/v1/info"),
            await http.post("/v1/indexes/own/attributions", json={"query": ROW}),
        ):
            assert refused.status_code == 503
            assert refused.json()["code"] == "not_ready"
            assert refused.headers["retry-after"] == "1"
        assert (await http.get("/livez")).status_code == 200
        assert (await http.get("/metrics")).status_code == 200
        assert state.in_flight == 0


async def test_what_does_not_fit_the_queue_is_a_429(engine: Engine) -> None:
    settings = Settings(workers=1, queue=0)
    app = create_app(settings, engine)
    state = app.state.service
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service") as http:
        async with state.workplace.desk(state.deadline()):
            for accept in ("application/json", "text/event-stream"):
                response = await http.post(
                    "/v1/indexes/own/attributions", json={"query": ROW}, headers={"Accept": accept}
                )
                assert response.status_code == 429
                assert response.headers["retry-after"] == "1"
                assert response.json()["code"] == "queue_full"
            # What takes no worker is answered all the same: an operator may look, and reload.
            assert (await http.get("/v1/indexes/own")).status_code == 200
            assert (await http.post("/v1/indexes/own/reload", json={})).status_code == 200
        answer = await http.post("/v1/indexes/own/attributions", json={"query": ROW})
        assert answer.status_code == 200
        assert (state.workplace.busy, state.workplace.waiting) == (0, 0)


async def test_a_stream_gives_its_worker_back(settings: Settings, engine: Engine) -> None:
    app = create_app(settings, engine)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service") as http:
        for row in (1, 99):
            await http.post(
                "/v1/indexes/own/attributions",
                json={"query": ROW | {"row": row}},
                headers={"Accept": "text/event-stream"},
            )
            assert app.state.service.workplace.busy == 0
