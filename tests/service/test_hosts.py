"""Requests for another host are refused before anything else is looked at."""

import http.client
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from fastapi import FastAPI
from pydantic import ValidationError

from service.app import create_app
from service.engine import Engine
from service.errors import UnknownHostError
from service.hosts import AllowedHosts
from service.settings import Settings

BODY: dict[str, Any] = {"query": {"type": "row", "split": "query", "row": 1}}


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST:8000",
        "localhost.",
        "127.0.0.1",
        "127.0.0.1:1",
        "[::1]:8000",
        "[::1]",
        "10.1.2.3:80",
        "Service.Example",
        "service.example:443",
        "bound-name:9",
        "[2001:db8::2]",
    ],
)
def test_known_hosts_are_let_in_whatever_the_port_and_the_size_of_letters(host: str):
    AllowedHosts(["service.example"], "bound-name").check([host], None)


@pytest.mark.parametrize(
    "given",
    [
        ["evil.example"],
        ["evil.example:8000"],
        ["localhost.evil.example"],
        ["127.0.0.1.evil.example"],
        ["evil-localhost"],
        ["service.example.evil.example:443"],
        ["sub.service.example"],
        ["localhost@evil.example"],
        ["localhost:80:80"],
        ["localhost:x"],
        ["[localhost"],
        ["::1"],
        ["http://localhost"],
        ["localhost/"],
        ["localhost, evil.example"],
        [""],
        [],
        ["localhost", "localhost"],
        ["*"],
    ],
)
def test_all_others_are_refused_and_the_setting_is_named(given: list[str]):
    with pytest.raises(UnknownHostError, match="allowed_hosts"):
        AllowedHosts(["service.example"], "127.0.0.1").check(given, "127.0.0.1")


@pytest.mark.parametrize("given", [["evil.example"], [], ["a", "b"]])
def test_a_star_turns_the_check_off(given: list[str]):
    AllowedHosts(["*"], "127.0.0.1").check(given, None)


def test_hosts_are_set_in_every_form_and_wrong_ones_refused(monkeypatch):
    monkeypatch.setenv("NATTRIBUTE_ALLOWED_HOSTS", "A.example [2001:DB8::1] 10.0.0.1")
    assert Settings().allowed_hosts == ("a.example", "2001:db8::1", "10.0.0.1")
    for host in ("http://a.example", "a.example:80", "*.example", "a b", "-", "a..b"):
        with pytest.raises(ValidationError, match="without scheme and port"):
            Settings(allowed_hosts=(host,))


@pytest.fixture
def app(settings: Settings, engine: Engine, tmp_path: Path) -> FastAPI:
    keys = tmp_path / "keys"
    keys.write_text("a-key-of-sufficient-length\n")
    keys.chmod(0o600)
    return create_app(settings.model_copy(update={"api_keys_file": keys, "max_body_bytes": 2000}), engine)


@pytest.mark.anyio
async def test_the_host_is_judged_before_key_and_body_and_probes_answer_by_any_name(app: FastAPI):
    transport = httpx.ASGITransport(app)
    known = {"Authorization": "Bearer a-key-of-sufficient-length"}
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        other = {"Host": "evil.example"}
        assert (await client.get("/livez", headers=other)).status_code == 200
        assert (await client.get("/readyz", headers=other)).status_code == 503  # not started, and not 421
        for path in ("/v1/info", "/metrics", "/docs", "/openapi.json", "/nothing"):
            for headers in (other, other | known):
                refused = await client.get(path, headers=headers)
                assert (refused.status_code, refused.json()["code"]) == (421, "unknown_host"), path
                assert "allowed_hosts" in refused.json()["detail"]
                assert refused.json()["errors"][0]["parameter"] == "Host"
        large = await client.post("/v1/indexes/own/attributions", content=b" " * 5000, headers=other | known)
        assert large.status_code == 421
        answer = await client.post("/v1/indexes/own/attributions", json=BODY, headers=known)
        assert answer.status_code == 200


@pytest.mark.slow
def test_the_process_answers_by_its_address_and_not_by_a_strange_name(server: str):
    port = urlsplit(server).port
    for host, status in (
        (f"127.0.0.1:{port}", 200),
        (f"localhost:{port}", 200),
        ("localhost:1", 200),
        (f"evil.example:{port}", 421),
    ):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("GET", "/v1/info", headers={"Host": host})
        assert connection.getresponse().status == status, host
        connection.close()
