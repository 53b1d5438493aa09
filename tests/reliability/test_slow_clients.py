"""Clients that send or read too slowly are cut at their deadline, and hold no worker and no place in the queue."""

import json
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from service.local_server import local_server
from tests.index_factory import make_index
from tests.reliability.lengths import rounds
from tests.reliability.load import load
from tests.reliability.raw_client import RawClient

SECONDS = rounds(2, 10)  # the deadline; 10 is the default
EACH = rounds(1, 20)  # clients of each kind at the same time
MARGIN = 10.0  # what a busy machine may add
ATTRIBUTIONS = "/v1/indexes/small/attributions"
QUESTION = {"query": {"type": "row", "row": 1}, "relative_noise": 1.0}
ASKED = json.dumps(QUESTION).encode()
ROWS, DIM = 3000, 16
PAGE = "/v1/indexes/small/examples?limit=3000"
LARGE = json.dumps(QUESTION | {"budget": 300, "method": "random", "filter": {"labels": [0, 1, 2]}}).encode()


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("slow")
    rng = np.random.default_rng(0)
    directions = rng.standard_normal((10, DIM))[rng.integers(0, 10, ROWS)]  # near-duplicates: each hit names twenty
    sketches = {"margin": (directions + 0.01 * rng.standard_normal((ROWS, DIM))).astype(np.float32)}
    index = make_index(folder, view="margin", sketches=sketches, num_queries=20, faiss="Flat").path
    # One worker and one place in the queue: two clients who held them would stop the service.
    options = ("--workers", "1", "--queue", "1", "--client-seconds", str(SECONDS), "--job-store", str(folder / "jobs"))
    with local_server(index, *options, "--max-connections", "300", "--max-page", "3000", start_seconds=300) as found:
        yield found


@pytest.fixture(scope="module")
def job(url: str) -> str:
    """The result of a job, most of a megabyte."""
    body = {"type": "attributions", "index": "small", "requests": [QUESTION | {"budget": 30, "method": "random"}] * 60}
    with httpx.Client(base_url=url, timeout=60) as http:
        path = "/v1/jobs/" + http.post("/v1/jobs", json=body).json()["id"]
        while http.get(path).json()["state"] != "done":
            time.sleep(0.1)
        assert len(http.get(f"{path}/result").content) > 2**19
    return f"{path}/result"


def silent(client: RawClient, job: str) -> bytes:
    """Connects and says nothing."""
    return client.read_all()


def trickled_head(client: RawClient, job: str) -> bytes:
    """Sends a header a byte at a time."""
    client.trickle(client.head("POST", ATTRIBUTIONS, X_Filler="x" * 2000), 0.1, SECONDS + MARGIN)
    return client.read_all()


def second_head(client: RawClient, job: str) -> bytes:
    """Asks once as it should, then sends half of another request."""
    client.send(client.head("GET", "/livez"))
    client.answer()
    client.send(client.head("GET", "/livez")[:20])
    return client.read_all()


def trickled_body(client: RawClient, job: str) -> bytes:
    """Sends a body a byte at a time."""
    client.send(client.head("POST", ATTRIBUTIONS, Content_Length="100000"))
    client.trickle(b" " * 100000, 0.1, SECONDS + MARGIN)
    return client.read_all()


def trickled_chunks(client: RawClient, job: str) -> bytes:
    """Sends a body of no stated length a byte at a time."""
    client.send(client.head("POST", ATTRIBUTIONS, Transfer_Encoding="chunked"))
    client.trickle(b"1\r\n \r\n" * 10000, 0.05, SECONDS + MARGIN)
    return client.read_all()


def no_body(client: RawClient, job: str) -> bytes:
    """Waits to be told to go on, and does not."""
    client.send(client.head("POST", ATTRIBUTIONS, Content_Length="100000", Expect="100-continue"))
    return client.read_all().removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")


def unread_body(client: RawClient, job: str) -> bytes:
    """Sends a body a byte at a time to a path that reads none."""
    client.send(client.head("POST", "/nothing", Content_Length="100000"))
    client.answer()
    client.trickle(b" " * 100000, 0.1, SECONDS + MARGIN)
    return client.read_all()


def stalled(client: RawClient) -> bytes:
    """Reads the first part of an answer, then nothing until long after all of it was made."""
    first = client.socket.recv(200)
    client.answered.set()
    assert client.made.wait(120)
    client.begun = time.monotonic()
    time.sleep(SECONDS + 1)
    return first


def unread_events(client: RawClient, job: str) -> bytes:
    """Stops reading server-sent events."""
    client.post(ATTRIBUTIONS, LARGE, Accept="text/event-stream")
    return stalled(client)


def unread_answer(client: RawClient, job: str) -> bytes:
    """Stops reading an answer that was sent as a whole."""
    client.send(client.head("GET", PAGE))
    return stalled(client)


def unread_result(client: RawClient, job: str) -> bytes:
    """Stops reading the items of a job."""
    client.send(client.head("GET", job, Accept="application/x-ndjson"))
    return stalled(client)


SENDERS = {trickled_head: 408, second_head: 408, trickled_body: 408, trickled_chunks: 408, no_body: 408}
MUTE = (silent, unread_body)  # closed without an answer, or behind one
READERS = (unread_events, unread_answer, unread_result)
Kind = Callable[[RawClient, str], bytes]


def count(kind: Kind) -> int:
    """How many of a kind there are: a stream is first worked on, one after another."""
    return min(EACH, 3) if kind is unread_events else EACH


class Slow(threading.Thread):
    """A slow client.

    Attributes:
        got: What it read at last.
        seconds: When the service closed the connection, since it opened, or since the answer was made.
    """

    def __init__(self, url: str, kind: Kind, job: str) -> None:
        super().__init__(daemon=True)
        self.kind, self._url, self._job = kind, url, job
        self.got, self.seconds = b"", 0.0
        self.answered, self.made = threading.Event(), threading.Event()

    def run(self) -> None:
        with RawClient(self._url, receive_bytes=4096 if self.kind in READERS else None) as client:
            client.answered, client.made = self.answered, self.made
            self.got = self.kind(client, self._job)
            self.seconds = time.monotonic() - client.begun
            if self.kind in READERS:
                self.got += client.read_all()  # what is left in this side's buffer, then the end


def metric(http: httpx.Client, name: str) -> float:
    """One number of /metrics, 0 where it is not there yet."""
    lines = [line for line in http.get("/metrics").text.splitlines() if line.startswith(name + " ")]
    return float(lines[0].split()[-1]) if lines else 0.0


def latencies(http: httpx.Client, until: Callable[[int], bool]) -> list[float]:
    """Seconds of ordinary requests, each of which must be answered."""
    taken: list[float] = []
    while not until(len(taken)):
        begun = time.perf_counter()
        answer = http.post(ATTRIBUTIONS, content=ASKED, headers={"Content-Type": "application/json"})
        assert answer.status_code == 200, answer.text
        taken.append(time.perf_counter() - begun)
        time.sleep(0.02)
    return taken


@pytest.mark.slow
def test_slow_clients_are_cut_at_their_deadline_and_hold_nothing(url: str, job: str) -> None:
    with httpx.Client(base_url=url, timeout=60) as http:
        before = latencies(http, lambda count: count >= 20)
        clients = [Slow(url, kind, job) for kind in (*SENDERS, *MUTE, *READERS) for _ in range(count(kind))]
        for client in clients:
            client.start()
            if client.kind in READERS:  # each is worked on before the next comes
                assert client.answered.wait(60)
                while metric(http, "nattribute_workers_busy") > 0:
                    time.sleep(0.01)
                client.made.set()
        during = latencies(http, lambda _: not any(client.is_alive() for client in clients))
        for client in clients:
            client.join(60)
        cut = {
            owed: metric(http, f'nattribute_connections_cut_total{{owed="{owed}"}}')
            for owed in ("head", "body", "answer")
        }
        assert metric(http, "nattribute_workers_busy") == metric(http, "nattribute_queue_waiting") == 0
    for client in clients:
        name = client.kind.__name__
        assert client.seconds < SECONDS + MARGIN, (name, client.seconds)
        if client.kind in SENDERS:
            assert client.seconds > SECONDS * 0.9, name
            assert client.got.startswith(b"HTTP/1.1 408"), (name, client.got)
            assert b'"code": "request_too_slow"' in client.got, (name, client.got)
            assert b"connection: close" in client.got.lower(), name
        elif client.kind in MUTE:
            assert client.got == b"", (name, client.got)
        else:
            assert client.got.startswith(b"HTTP/1.1 200"), (name, client.got[:200])
            assert len(client.got) < 130_000, (name, len(client.got))  # of 140,000 and more
    assert cut == {"head": 2 * EACH, "body": 4 * EACH, "answer": sum(map(count, READERS))}
    late = max(client.seconds - SECONDS for client in clients if client.kind in SENDERS)
    ratio = statistics.median(during) / statistics.median(before)
    print(
        f"{len(clients)} slow clients of {len(SENDERS) + len(MUTE) + len(READERS)} kinds, deadline {SECONDS} s: all "
        f"cut, the latest {late:.2f} s after it; an ordinary request {statistics.median(before) * 1000:.1f} ms before, "
        f"{statistics.median(during) * 1000:.1f} ms meanwhile ({len(during)} of them, ratio {ratio:.2f}); "
        f"load {load():.1f}"
    )
    assert ratio < 5  # held by a slow client, one would wait seconds


@pytest.mark.slow
def test_connections_beyond_the_limit_are_told_so_and_come_in_again_later(tmp_path: Path) -> None:
    index = make_index(tmp_path, num_rows=60, dim=16).path
    with local_server(index, "--max-connections", "5", "--client-seconds", "3", start_seconds=300) as url:
        clients = [RawClient(url) for _ in range(5)]
        for client in clients:
            client.send(client.head("GET", "/livez"))
            assert client.answer().status == 200
        with RawClient(url) as refused:
            answer = refused.answer()
            assert answer.status == 503
            assert answer.problem["code"] == "too_many_connections"
            assert answer.headers["retry-after"] == "1"
            assert refused.read_all() == b""
        for client in clients:
            client.socket.close()
        time.sleep(0.5)
        assert httpx.get(f"{url}/livez").status_code == 200
