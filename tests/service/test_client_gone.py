"""A client that goes away takes its work with it, over real sockets: queue, worker and scans are free again."""

import json
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from indexer.derive import derive
from service.local_server import local_server
from tests.index_factory import make_index

ROWS, DIM = 4000, 64
ROW = {"type": "row", "split": "query", "row": 1}
#: Minutes of work on any machine, in steps of milliseconds.
LONG = {"query": ROW, "method": "infogain_approx", "strategy": "literal", "budget": ROWS, "relative_noise": 1.0}
SHORT = {"query": ROW, "budget": 2, "relative_noise": 1.0}
GONE_WITHIN_SECONDS = 20.0
OPEN: list[socket.socket] = []


@pytest.fixture(autouse=True)
def sockets() -> Iterator[list[socket.socket]]:
    """What a failing test leaves open is closed."""
    yield OPEN
    while OPEN:
        OPEN.pop().close()


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("index")
    index = make_index(folder, name="long", view="margin", num_rows=ROWS, dim=DIM, num_queries=8, shard_rows=1024)
    derive(index)
    return index.path


@contextmanager
def served(index: Path, workers: int) -> Iterator[httpx.Client]:
    options = ("--workers", str(workers), "--queue", "2", "--max-budget", str(ROWS), "--deadline-seconds", "1000")
    with (
        local_server(index, *options, start_seconds=300) as url,
        httpx.Client(base_url=url, timeout=120) as client,
    ):
        yield client


def send(service: httpx.Client, resource: str, body: dict[str, Any], *headers: str) -> socket.socket:
    """Send a request and leave the connection open, without reading the answer."""
    address = urlsplit(str(service.base_url))
    content = json.dumps(body).encode()
    connection = socket.create_connection((address.hostname, address.port))
    OPEN.append(connection)
    lines = [
        f"POST /v1/indexes/long/{resource} HTTP/1.1",
        "Host: localhost",
        "Content-Type: application/json",
        f"Content-Length: {len(content)}",
        *headers,
    ]
    connection.sendall("\r\n".join([*lines, "", ""]).encode() + content)
    return connection


def shown(service: httpx.Client, name: str) -> float:
    """The value of a metric, summed over its labels."""
    text = service.get("/metrics").text
    return sum(float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE))


def wait_until(true: Callable[[], bool], seconds: float = GONE_WITHIN_SECONDS) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until
        time.sleep(0.02)


def is_idle(service: httpx.Client) -> bool:
    return not shown(service, "nattribute_workers_busy") and not shown(service, "nattribute_queue_waiting")


GROUPS = {f"g{number}": [f"train:{row}" for row in range(number, ROWS, 50)] for number in range(100)}
CASES = {
    "one answer": ("attributions", LONG, ()),
    "exact": ("attributions", LONG | {"method": "infogain"}, ()),
    "a stream": ("attributions", LONG, ("Accept: text/event-stream",)),
    "a batch": ("attributions/batch", {"requests": [LONG] * 8}, ()),
    "scores": ("scores", {"query": ROW, "ids": [f"train:{row}" for row in range(2, ROWS)], "relative_noise": 1.0}, ()),
    "groups": ("information", {"query": ROW, "groups": GROUPS, "relative_noise": 1.0, "removal_order": 100}, ()),
}


@pytest.mark.slow
def test_what_a_client_asked_for_ends_when_it_leaves(index: Path) -> None:
    with served(index, 1) as service:
        for number, (name, (resource, body, headers)) in enumerate(CASES.items()):
            connection = send(service, resource, body, *headers)
            wait_until(lambda: shown(service, "nattribute_workers_busy") == 1)
            waiting = send(service, "attributions", SHORT)
            wait_until(lambda: shown(service, "nattribute_queue_waiting") == 1)
            waiting.close()  # its place in the queue is free at once, while the other goes on
            wait_until(lambda: shown(service, "nattribute_queue_waiting") == 0)
            assert shown(service, "nattribute_workers_busy") == 1, f"{name}: done too early to show anything"
            wait_until(lambda seen=2 * number + 1: shown(service, "nattribute_requests_cancelled_total") == seen)
            connection.close()
            wait_until(lambda: is_idle(service))
            wait_until(lambda seen=2 * number + 2: shown(service, "nattribute_requests_cancelled_total") == seen)
            assert shown(service, "nattribute_attributions_total") == number, f"{name}: what was left is not answered"
            answer = service.post("/v1/indexes/long/attributions", json=SHORT)
            assert answer.status_code == 200
        text = service.get("/metrics").text
        assert 'status="499"' in text
        assert 'status="500"' not in text


@pytest.mark.slow
def test_a_selection_that_is_left_holds_up_none_that_shares_its_scans(index: Path) -> None:
    certified = LONG | {"strategy": "certified"}
    with served(index, 2) as service:
        left, stays = (send(service, "attributions", certified | {"query": ROW | {"row": row}}) for row in (1, 2))
        wait_until(lambda: shown(service, "nattribute_workers_busy") == 2)
        left.close()
        wait_until(lambda: shown(service, "nattribute_workers_busy") == 1)
        answer = service.post("/v1/indexes/long/attributions", json=SHORT).json()
        assert (answer["search"]["strategy"], answer["search"]["exact"], len(answer["hits"])) == ("certified", True, 2)
        assert answer["search"]["bytes_read"] < 2 * 4 * ROWS * DIM  # by codes and heads, so in rounds
        assert shown(service, "nattribute_workers_busy") == 1, "done too early to show anything"
        stays.close()
        wait_until(lambda: is_idle(service))
        wait_until(lambda: shown(service, "nattribute_requests_cancelled_total") == 2)
