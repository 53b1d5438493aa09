"""SIGTERM under load: every accepted request gets its full answer, the rest a 503, and the process ends with 0."""

import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest

from service.local_server import LISTENS
from tests.index_factory import make_index
from tests.reliability.lengths import rounds

STOPS = rounds(1, 30)
CLIENTS = 6
HITS = 20


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("index")
    return make_index(folder, view="margin", num_rows=600, dim=64, num_queries=20, faiss="Flat").path


class Asker(threading.Thread):
    """A client on a kept-alive connection that asks until the service is gone."""

    def __init__(self, url: str, number: int) -> None:
        super().__init__(daemon=True)
        self.complete: set[str] = set()  # request ids whose answer was read to its end
        self.refused: list[httpx.Response] = []
        self.odd: list[str] = []
        self._url, self._number = url, number

    def run(self) -> None:
        question = {"query": {"type": "row", "row": self._number}, "method": "infogain", "budget": HITS}
        question |= {"relative_noise": 1.0}
        body = {"requests": [question] * 8}
        with httpx.Client(base_url=self._url, timeout=120) as http:
            count = 0
            while True:
                id = f"client{self._number}-{count}"
                count += 1
                try:
                    answer = http.post("/v1/indexes/small/attributions/batch", json=body, headers={"X-Request-ID": id})
                except httpx.TransportError:
                    return  # whether this one was accepted is in the service's log
                if answer.status_code == 503:
                    self.refused.append(answer)
                    time.sleep(0.02)
                elif answer.status_code == 200 and all(
                    len(item["body"].get("hits", ())) == HITS for item in answer.json()["results"]
                ):
                    self.complete.add(id)
                else:
                    self.odd.append(answer.text[:500])


def stop_once(index: Path, folder: Path) -> tuple[int, int, int]:
    """Stop one service under load; return how many answers were complete, in flight at the signal, and refused."""
    log = folder / "service.log"
    command = [sys.executable, "-m", "service.cli", "--index", str(index), "--port", "0", "--workers", "2"]
    command += ["--queue", "50", "--job-store", str(folder / "jobs.sqlite3")]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        while (printed := LISTENS.search(log.read_text())) is None:
            assert process.poll() is None, log.read_text()
            time.sleep(0.05)
        url = printed[1]
        askers = [Asker(url, number) for number in range(CLIENTS)]
        with httpx.Client(base_url=url, timeout=60) as probe:
            for asker in askers:
                asker.start()
            while sum(len(asker.complete) for asker in askers) < CLIENTS // 2:
                assert process.poll() is None, log.read_text()
                time.sleep(0.02)
            assert probe.get("/readyz").status_code == 200
            before = sum(len(asker.complete) for asker in askers)
            process.send_signal(signal.SIGTERM)
            stopping = probe.get("/readyz")
            assert stopping.status_code == 503
            assert stopping.json()["code"] == "not_ready"
            assert stopping.headers["retry-after"] == "1"
        assert process.wait(120) == 0
        for asker in askers:
            asker.join(60)
            assert not asker.is_alive()
            assert not asker.odd
            for refused in asker.refused:
                assert refused.json()["code"] == "not_ready"
                assert refused.headers["retry-after"] == "1"
        lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
        batches = [line for line in lines if line.get("route", "").endswith("/batch")]
        complete = {id for asker in askers for id in asker.complete}
        accepted = {line["request_id"] for line in batches if line["status"] != 503}
        assert {line["status"] for line in batches} <= {200, 503}  # 0 where an answer was cut
        assert accepted == complete
        return len(complete), len(complete) - before, sum(len(asker.refused) for asker in askers)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


@pytest.mark.slow
def test_a_stop_under_load_drops_no_answer(index: Path, tmp_path: Path) -> None:
    counts = []
    for number in range(STOPS):
        folder = tmp_path / str(number)
        folder.mkdir()
        counts.append(stop_once(index, folder))
    complete, in_flight, refused = (sum(column) for column in zip(*counts, strict=True))
    print(
        f"{STOPS} stops: {complete} answers, {in_flight} of them after the signal, {refused} requests refused (503); "
        "0 dropped"
    )
    assert all(after_signal for _, after_signal, _ in counts)
