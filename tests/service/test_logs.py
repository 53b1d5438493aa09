"""The service's log: every line is JSON, carries its request's id, and holds nothing that a client sent."""

import contextlib
import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from service import logs
from service.app import create_app
from service.engine import Engine
from service.settings import Settings

CANARY = "canary-4711"
KEY = "a-key-that-nobody-may-read"
ROW = {"type": "row", "split": "query", "row": 1}


def lines(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.anyio
async def test_every_request_has_a_line_with_its_id_and_none_holds_what_was_sent(
    settings: Settings, engine: Engine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"{KEY}\n")
    keys.chmod(0o600)
    logs.configure("info")
    app = create_app(
        settings.model_copy(update={"api_keys_file": keys, "job_store": tmp_path / "jobs.sqlite3"}), engine
    )
    headers = {"Authorization": f"Bearer {KEY}"}
    question = {"query": ROW, "method": "random", "budget": 2}
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service", headers=headers) as http,
    ):
        answers = [
            await http.post("/v1/indexes/own/attributions", json=question),
            await http.post("/v1/indexes/own/attributions", json=question | {CANARY: CANARY}),
            await http.post(f"/v1/indexes/{CANARY}/attributions", json=question),
            await http.get(f"/v1/indexes/own/examples?split={CANARY}"),
            await http.get(f"/{CANARY}"),
            await http.get("/v1/info", headers={"Authorization": f"Bearer {CANARY}"}),
            await http.get("/v1/info", headers={"X-Request-ID": f"{CANARY} {CANARY}"}),
            await http.request("CANARY", "/v1/info"),
            await http.post("/v1/jobs", json={"type": "attributions", "index": "own", "requests": [question]}),
        ]
    text = capsys.readouterr().err
    assert "canary" not in text.lower()
    assert KEY not in text
    found = lines(text)
    requests = {line["request_id"]: line for line in found if line["event"] == "request"}
    assert [requests[answer.headers["x-request-id"]]["status"] for answer in answers] == [
        answer.status_code for answer in answers
    ]
    first, wrong, unknown, *_ = [requests[answer.headers["x-request-id"]] for answer in answers]
    assert first["index"] == wrong["index"] == "own"
    assert first["route"] == unknown["route"] == "/v1/indexes/{index}/attributions"
    assert (wrong["code"], unknown["code"]) == ("unknown_field", "unknown_index")
    assert "index" not in unknown
    assert isinstance(first["queue_seconds"], float)
    accepted = next(line for line in found if line["event"] == "job accepted")
    assert accepted["request_id"] == answers[-1].headers["x-request-id"]
    assert accepted["job"] == answers[-1].json()["id"]
    assert [line["event"] for line in (found[0], found[-1])] == ["service begins", "service is over"]
    assert found[0]["indexes"] == {served.name: served.index.revision for served in engine.open_now()}


@pytest.mark.anyio
@pytest.mark.parametrize("level", ["error", "debug"])
async def test_a_failure_is_logged_by_type_and_place_and_its_message_at_debug_only(
    settings: Settings, engine: Engine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], level: str
) -> None:
    def fail(index: str | None = None) -> None:
        try:
            int(CANARY)
        except ValueError as error:
            raise RuntimeError(CANARY) from error

    monkeypatch.setattr(engine, "card", fail)
    logs.configure(level)
    app = create_app(settings, engine)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service") as http:
        response = await http.get("/v1/indexes/own")
    text = capsys.readouterr().err
    (line,) = [line for line in lines(text) if line["event"] == "request failed"]
    assert line["request_id"] == response.headers["x-request-id"]
    outer, cause = line["failure"]
    assert (outer["type"], cause["type"]) == ("RuntimeError", "ValueError")
    assert outer["at"][-1].startswith(f"{__name__}:")
    assert outer["at"][-1].endswith(" fail")
    assert (CANARY in text) == (level == "debug")


@pytest.mark.slow
def test_standard_error_of_the_process_is_json_whatever_writes_to_it(index_root: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "service", "--index", f"own={index_root / 'own'}", "--port", "0"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
    assert process.stdout is not None
    try:
        url = httpx.URL(process.stdout.readline().split()[-1])
        end = time.monotonic() + 120
        while time.monotonic() < end:  # it is bound when it says so, and listens a little later
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{url}/readyz").status_code == 200:
                    break
            time.sleep(0.1)
        with socket.create_connection((url.host, url.port or 0), timeout=120) as connection:
            connection.sendall(f"{CANARY}\r\n\r\n".encode())  # no HTTP at all: uvicorn itself answers and warns
            assert connection.recv(100).startswith(b"HTTP/1.1 400 ")
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    text = (tmp_path / "log").read_text()
    events = [line["event"] for line in lines(text)]
    assert "Invalid HTTP request received." in events
    assert events[-2:] == ["service drains", "service is over"]
    assert "canary" not in text
