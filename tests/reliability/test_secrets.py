"""Keys and inputs appear in no log line and no metric, keys in no answer: canaries are sent wherever anything can be.

A problem answers whoever sent the request and may quote their own input back to them. Nothing else may.
"""

import http.client
import itertools
import json
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from indexer.build import build_index
from indexer.build_settings import BuildSettings
from tests.reliability import secretive_recipe
from tests.reliability.lengths import rounds
from tests.reliability.restarted_service import RestartedService

ROUNDS = rounds(1, 100)
MAX_BODY = 20_000
RECIPE = str(Path(secretive_recipe.__file__))
STATUSES = {200, 202, 400, 401, 403, 404, 405, 413, 415, 421, 422, 500}


@dataclass
class Sent:
    """What was sent and what came back.

    Attributes:
        url: Where the service listens.
        keys: Every key that was sent, known or not.
        inputs: Every canary that was sent as input.
        statuses: Every status that came.
        answers: How many came.
        http: The client.
    """

    url: str
    keys: list[str]
    inputs: list[str] = field(default_factory=list)
    statuses: set[int] = field(default_factory=set)
    answers: int = 0
    http: httpx.Client = field(default_factory=lambda: httpx.Client(timeout=60))

    def canary(self) -> str:
        """A new input that nothing else holds."""
        self.inputs.append(f"canary-{secrets.token_hex(12)}")
        return self.inputs[-1]

    def send(self, method: str, path: str, key: str | None, **request: Any) -> httpx.Response:
        """Send a request; its answer must hold no key, in whatever part."""
        headers = {"Authorization": f"Bearer {key}"} if key is not None else {}
        headers |= request.pop("headers", {})
        answer = self.http.request(method, self.url + path, headers=headers, **request)
        self.check(answer)
        return answer

    def check(self, answer: httpx.Response) -> None:
        """Count an answer and look for keys in it."""
        self.statuses.add(answer.status_code)
        self.answers += 1
        shown = str(answer.headers) + answer.text
        for key in self.keys:
            assert key not in shown, (answer.request.url.path, answer.status_code)


def bodies(canary: str) -> list[tuple[str, Any]]:
    """Bodies by route with the canary in every place that takes text, most of them wrong."""
    row = {"type": "row", "row": 1}
    example = {"type": "example", "content": {"point": [0.1, 0.2], "label": 1}}
    failing = {"type": "example", "content": {"fail": canary}}
    unknown = {"type": "train_id", "id": canary}
    index = "/v1/indexes/points"
    return [
        (f"{index}/attributions", {"query": row, "budget": 2}),
        (f"{index}/attributions", {"query": example, "budget": 2}),
        (f"{index}/attributions", {"query": failing}),
        (f"{index}/attributions", {"query": {"type": "example", "content": {"text": canary, "point": canary}}}),
        (f"{index}/attributions", {"query": {"type": "example", "content": {"point": [1, canary]}}}),
        (f"{index}/attributions", {"query": unknown}),
        (f"{index}/attributions", {"query": {"type": canary}}),
        (f"{index}/attributions", {"query": row, canary: 1}),
        (f"{index}/attributions", {"query": row, "method": canary, "budget": canary}),
        (f"{index}/attributions", {"query": row, "filter": {"ids": [canary]}}),
        (f"{index}/attributions", {"query": row, "filter": {"where": {canary: canary}}}),
        (f"{index}/attributions/batch", {"requests": [{"query": unknown}, {"query": failing}, canary]}),
        (f"{index}/scores", {"query": row, "ids": [canary]}),
        (f"{index}/scores", {"query": failing, "ids": ["train:1"]}),
        (f"{index}/information", {"query": row, "groups": {canary: ["train:1"]}, "relative_noise": 1}),
        (f"{index}/information", {"query": row, "groups": {"by": canary}}),
        (f"{index}/sketches", {"queries": [failing]}),
        (f"{index}/sketches", {"queries": [canary, unknown]}),
        (f"/v1/indexes/{canary}/attributions", {"query": row}),
        ("/v1/jobs", {"type": "coreset", "index": canary, "budget": 2}),
        ("/v1/jobs", {"type": canary, "index": "points"}),
        ("/v1/jobs", {"type": "attributions", "index": "points", "requests": [{"query": failing}, {"query": unknown}]}),
        (
            "/v1/jobs",
            {"type": "evaluation", "index": "points", "queries": [row], "groups": {canary: ["train:1", "train:2"]}},
        ),
        (f"/v1/{canary}", {canary: canary}),
    ]


def ask_everything(sent: Sent, key: str, limited: str) -> None:
    """Send canaries to every route, right and wrong, with and without keys."""
    jobs = []
    for path, body in bodies(sent.canary()):
        once = {"Idempotency-Key": sent.canary()} if path == "/v1/jobs" else {}
        answer = sent.send("POST", path, key, json=body, headers=once)
        if answer.status_code == 202:
            jobs.append(answer.json()["id"])
            sent.send("POST", path, key, json=body | {"index": "points", "relative_noise": 3}, headers=once)
            sent.send("GET", f"/v1/jobs/{jobs[-1]}/result", key)
        for other in (limited, sent.keys[-1], None):
            sent.send("POST", path, other, json=body, headers=once)
    for job in jobs:
        for _ in range(600):
            if sent.send("GET", f"/v1/jobs/{job}", key).json()["state"] in ("done", "failed"):
                break
            time.sleep(0.05)
        else:
            raise TimeoutError(job)
        for rest in ("", "/result", "/events"):
            sent.send("GET", f"/v1/jobs/{job}{rest}", key)
            sent.send("GET", f"/v1/jobs/{job}{rest}", limited)
    stream = {"Accept": "text/event-stream"}
    broken = {"Content-Type": "application/json"}
    attributions = "/v1/indexes/points/attributions"
    sent.send("POST", attributions, key, json={"query": {"type": "row", "row": 1}}, headers=stream)
    sent.send("POST", attributions, key, json=bodies(sent.canary())[2][1], headers=stream)
    for content in (f'{{"query": "{sent.canary()}', f'["{sent.canary()}"]', f'"{sent.canary()}\udcff"'):
        sent.send("POST", attributions, key, content=content.encode("utf-8", "surrogateescape"), headers=broken)
    sent.send("POST", attributions, key, content=sent.canary() * MAX_BODY, headers=broken)
    sent.send("POST", attributions, key, content=sent.canary(), headers={"Content-Type": sent.canary()})
    sent.send("POST", "/v1/jobs", key, json={}, headers={"Idempotency-Key": sent.canary() * 20})
    for path in (
        f"/v1/indexes/{sent.canary()}",
        f"/v1/indexes/points/examples/{sent.canary()}",
        f"/v1/indexes/points/examples/1?split={sent.canary()}",
        f"/v1/indexes/points/examples?{sent.canary()}={sent.canary()}",
        f"/v1/indexes/points/examples/{sent.canary()}/content",
        f"/v1/info?api_key={key}",
        f"/v1/jobs?state={sent.canary()}",
        f"/v1/jobs/{sent.canary()}",
        f"/docs/assets/{sent.canary()}",
        f"/{sent.canary()}",
        "/v1/indexes",
        "/v1/info",
        "/metrics",
        "/livez",
        "/openapi.json",
    ):
        for other in (key, limited, sent.keys[-1], None):
            noise = {"Cookie": sent.canary(), "User-Agent": sent.canary(), "Referer": sent.canary(), "X-Other": key}
            sent.send("GET", path, other, headers=noise)
            sent.send("GET", path, other, headers={"Host": f"{sent.canary()}.example"})
        sent.send("PATCH", path, key)
        sent.send("DELETE", path, key)
    for scheme in ("Basic", "Token", ""):
        sent.send("GET", "/v1/info", None, headers={"Authorization": f"{scheme} {key}".strip()})
    raw(sent, key)


def raw(sent: Sent, key: str) -> None:
    """Send what no client library would: the server itself refuses it."""
    place = urlsplit(sent.url)
    for line in (f"GET /{sent.canary()} HTTP/9.9", f"{sent.canary()} {key}", f"GET / HTTP/1.1\r\n{key}\x00: x"):
        connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=30)
        connection.connect()
        connection.sock.sendall(f"{line}\r\n\r\n".encode())
        answer = connection.sock.recv(65536)
        connection.close()
        assert key.encode() not in answer
    connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=30)
    connection.request(f"X{sent.canary().replace('-', '')}", "/v1/info", headers={"Authorization": f"Bearer {key}"})
    assert key.encode() not in connection.getresponse().read()
    connection.close()
    sent.inputs.append(sent.inputs[-1].replace("-", ""))


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("secrets") / "points"
    build_index(BuildSettings(recipe=RECIPE, threads=1), directory)
    return directory


@pytest.fixture
def service(index: Path, tmp_path: Path) -> Iterator[tuple[RestartedService, Sent]]:
    keys = [secrets.token_urlsafe(32) for _ in range(3)]
    file = tmp_path / "keys"
    file.write_text(f"{keys[0]} admin name=operator\n{keys[1]} name=limited indexes=other\n")
    file.chmod(0o600)
    options = ["--api-keys-file", str(file), "--recipe", f"points={RECIPE}", "--max-body-bytes", str(MAX_BODY)]
    process = RestartedService(index, tmp_path, *options)
    sent = Sent(process.url, keys)
    try:
        process.start()
        yield process, sent
    finally:
        sent.http.close()
        process.stop()


def test_keys_and_inputs_are_in_no_log_line_and_no_metric(service: tuple[RestartedService, Sent]) -> None:
    process, sent = service
    key, limited, _ = sent.keys
    for _ in range(ROUNDS):
        ask_everything(sent, key, limited)
    metrics = sent.send("GET", "/metrics", key).text
    assert sent.statuses >= STATUSES, "a kind of answer was not provoked"
    process.stop()
    written = process.log.read_text(encoding="utf-8")
    lines = written.splitlines()
    events = [json.loads(line)["event"] for line in lines if line.startswith("{")]
    assert "request failed" in events, "no failure was logged, so this test says nothing about failures"
    assert events.count("request") > sent.answers / 2, "requests are missing from the log, so the search says little"
    assert next(line for line in lines if not line.startswith("{")).startswith("attribution-service listens")
    assert len(lines) - len(events) == 1, "a line is not of the service's own log"
    for secret in itertools.chain(sent.keys, sent.inputs):
        assert secret not in metrics
        assert secret not in written, next(line for line in lines if secret in line)
    print(
        f"{sent.answers} answers, {len(lines)} lines of the log, {len(metrics.splitlines())} of metrics, "
        f"{len(sent.inputs)} inputs and {len(sent.keys)} keys looked for"
    )
