"""An accepted job is neither lost nor doubled, and its result is that of an undisturbed run: kill -9, again and again.

Clients hand in jobs all the time and send a request again whenever its answer is lost, while the process is killed at
random moments and in the middle of jobs.
"""

import json
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.client import Client
from tests.index_factory import make_index
from tests.reliability.lengths import rounds
from tests.reliability.restarted_service import RestartedService

KILLS = rounds(2, 100)
CLIENTS = 2
LONGEST_DELAY_SECONDS = 0.8


def variants() -> list[dict[str, Any]]:
    """Jobs of every type, some of whose items are problems."""
    rows = [{"type": "row", "row": row} for row in range(21)]  # the last does not exist
    methods = ("infogain_approx", "infogain", "infoloss", "random")
    requests = [
        {"query": rows[number % 21], "method": methods[number % 4], "budget": 1 + number % 7, "relative_noise": 1.0}
        for number in range(120)
    ]
    named = {"a": ["train:1", "train:2"], "b": [f"train:{row}" for row in range(10, 40)]}
    return [
        {"type": "attributions", "index": "small", "requests": requests},
        {"type": "coreset", "index": "small", "budget": 40, "relative_noise": 1.0},
        {"type": "evaluation", "index": "small", "queries": rows, "groups": named, "relative_noise": 0.1},
        {"type": "coreset", "index": "small", "budget": 30, "rule": "infoloss", "relative_noise": 1.0},
        {"type": "attributions", "index": "small", "requests": requests[::-1]},
        {"type": "coreset", "index": "small", "budget": 25, "rule": "infogain_approx", "quota_per_label": 9},
    ]


def items_of(client: Client, id: str) -> list[dict[str, Any]]:
    """The items of a job; the request that a problem answers is the job, whose id is another in every run."""
    return [json.loads(json.dumps(item).replace(id, "JOB")) for item in client.job(id).items()]


class Submitter(threading.Thread):
    """A client that hands in one job after the other and gives up on none."""

    def __init__(self, url: str, number: int, over: threading.Event) -> None:
        super().__init__(daemon=True)
        self.accepted: dict[str, str] = {}  # id by key
        self.sent_again = 0
        self.error: BaseException | None = None
        self._url, self._number, self._over = url, number, over

    def run(self) -> None:
        try:
            with Client(self._url, timeout=20) as client:
                count = 0
                while not self._over.is_set():
                    key, job = f"{self._number}-{count}", variants()[count % len(variants())]
                    id = self._submit(client, key, job)
                    if count % 3 == 0:  # as if the answer had been lost
                        self.sent_again += 1
                        assert self._submit(client, key, job) == id
                    self.accepted[key] = id
                    count += 1
                    time.sleep(0.3)
        except BaseException as error:
            self.error = error

    def _submit(self, client: Client, key: str, job: dict[str, Any]) -> str:
        while True:
            try:
                return client.submit(job, idempotency_key=key).id
            except httpx.TransportError:
                self.sent_again += 1


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_index(tmp_path_factory.mktemp("index"), view="margin", num_rows=60, num_queries=20, faiss="Flat").path


@pytest.fixture(scope="module")
def undisturbed(index: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[list[dict[str, Any]]]]:
    service = RestartedService(index, tmp_path_factory.mktemp("undisturbed"))
    service.start()
    try:
        with Client(service.url) as client:
            jobs = [client.submit(job) for job in variants()]
            assert {job.wait(timeout=120).state for job in jobs} == {"done"}
            yield [items_of(client, job.id) for job in jobs]
    finally:
        service.stop()


def wait_for_the_middle_of_a_job(url: str, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        running = httpx.get(f"{url}/v1/jobs?state=running", timeout=10).json()["jobs"]
        if any(0 < job["progress"]["done"] < job["progress"]["total"] for job in running):
            return True
    return False


@pytest.mark.slow
def test_no_kill_loses_or_doubles_a_job(index: Path, undisturbed: list[list[dict[str, Any]]], tmp_path: Path) -> None:
    service = RestartedService(index, tmp_path)
    chance = random.Random(20261125)
    over = threading.Event()
    clients = [Submitter(service.url, number, over) for number in range(CLIENTS)]
    in_the_middle = 0
    service.start()
    try:
        for client in clients:
            client.start()
        for number in range(KILLS):
            if number % 2:
                in_the_middle += wait_for_the_middle_of_a_job(service.url, 10.0)
            else:
                time.sleep(chance.uniform(0.0, LONGEST_DELAY_SECONDS))
            service.kill()
            service.start()
        over.set()
        for client in clients:
            client.join(60)
            assert client.error is None
        accepted = {key: id for client in clients for key, id in client.accepted.items()}
        with Client(service.url) as client:
            for id in accepted.values():
                client.job(id).wait(timeout=240)
            listed = client.jobs(limit=1).total
            assert len(set(accepted.values())) == len(accepted) == listed  # none doubled, none lost
            assert client.jobs(state="done", limit=1).total == listed
            for key, id in accepted.items():
                expected = undisturbed[int(key.partition("-")[2]) % len(undisturbed)]
                assert items_of(client, id) == expected, f"job {key} differs from an undisturbed run"
    finally:
        over.set()
        service.stop()
    resumed = service.log.read_text().count("jobs resumed")
    print(
        f"{KILLS} kills, {in_the_middle} of them in the middle of a job; {len(accepted)} jobs accepted, "
        f"{sum(client.sent_again for client in clients)} requests sent again, {resumed} starts found unfinished work: "
        "0 lost, 0 doubled, every result as of the undisturbed run"
    )
    assert in_the_middle
    assert resumed
