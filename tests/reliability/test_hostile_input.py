"""Hostile requests are refused at the byte that gives them away; little memory, and no file but the service's own."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from indexer.build import build_index
from indexer.build_settings import BuildSettings
from service.local_server import local_server
from tests.reliability import hostile_requests, pictures_recipe
from tests.reliability.hostile_requests import Hostile
from tests.reliability.lengths import rounds
from tests.reliability.load import load
from tests.reliability.raw_client import RawAnswer, RawClient

LONG = rounds(0, 1) == 1
RECIPE = Path(pictures_recipe.__file__)
SECRET = "the canary's song"
MEGABYTE = 2**20
# Of a machine to itself; others that compute meanwhile make any request late, so the service's own CPU time is judged.
CPU_SECONDS = 0.1
SECONDS = 30.0


class Served:
    """A service with one index, beside which lies a file that nobody may read.

    Attributes:
        url: Where it listens.
        process: It.
        folder: The folder that holds all it may read.
    """

    def __init__(self, url: str, folder: Path) -> None:
        self.url, self.folder = url, folder
        children = psutil.Process().children(recursive=True)
        self.process = next(child for child in children if str(folder / "root") in " ".join(child.cmdline()))

    def peak_bytes(self, *, forget: bool = False) -> int:
        """The most memory it had so far; ``forget``: count from now on."""
        if forget:
            Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")
        lines = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmHWM:\s+(\d+) kB", lines)
        assert found is not None
        return int(found[1]) * 1024


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "root").mkdir()
    (folder / "canary.txt").write_text(SECRET)
    build_index(BuildSettings(recipe=str(RECIPE), threads=1), folder / "root" / "pictures")
    options = ("--recipe", f"pictures={RECIPE}", "--job-store", str(folder / "jobs.sqlite3"), "--threads", "1")
    with local_server(folder / "root" / "pictures", *options, start_seconds=300) as url:
        good = {"type": "example", "content": {"pixels": [[0, 255, 0, 255]] * 4}}
        answer = httpx.post(f"{url}/v1/indexes/pictures/attributions", json={"query": good}, timeout=60)
        assert answer.status_code == 200, answer.text
        yield Served(url, folder)


class Refusal:
    """How one request was refused.

    Attributes:
        name: Which.
        seconds: From the offending byte to the answer.
        cpu_seconds: What the service computed meanwhile.
    """

    def __init__(self, name: str, seconds: float, cpu_seconds: float) -> None:
        self.name, self.seconds, self.cpu_seconds = name, seconds, cpu_seconds


def cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def refuse(served: Served, hostile: Hostile) -> Refusal:
    """Send one request and check its refusal."""
    with RawClient(served.url, timeout=SECONDS) as client:
        client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.send(hostile.before)
        if len(hostile.before) > 10_000:  # what came before is not what is measured
            settle(served.process)
        computed, begun = cpu(served.process), time.perf_counter()
        with contextlib.suppress(ConnectionError):
            client.send(hostile.offending)
        client.socket.recv(1, socket.MSG_PEEK)
        seconds, computed = time.perf_counter() - begun, cpu(served.process) - computed
        answer: RawAnswer = client.answer()
    assert answer.status in hostile.statuses, (hostile.name, answer.status, answer.body[:500])
    assert answer.problem["code"] == (hostile.code or answer.problem["code"]), (hostile.name, answer.body[:500])
    assert SECRET.encode() not in answer.body
    assert b"root:" not in answer.body
    assert b"Traceback" not in answer.body
    assert len(answer.body) < MEGABYTE, (hostile.name, len(answer.body))
    return Refusal(hostile.name, seconds, computed)


def settle(process: psutil.Process) -> None:
    """Wait until a process computes no more."""
    before = -1.0
    while (now := cpu(process)) != before:
        before = now
        time.sleep(0.1)


def check_in_time(refusals: list[Refusal], *, traced: bool = False) -> None:
    """Hold refusals to 100 ms: by the clock in the long form, where nothing else runs and nothing traces.

    Elsewhere the service's own time is judged: its ticks are 10 ms, what else it does counts too, and the first of a
    kind loads its decoder.
    """
    idle = LONG and not traced and load() < 1.5
    late = [
        (refusal.name, refusal.seconds, refusal.cpu_seconds)
        for refusal in refusals
        if refusal.seconds > 0.1 and (idle or refusal.cpu_seconds > rounds(6, 2) * CPU_SECONDS)
    ]
    assert not late, late


@contextlib.contextmanager
def opened_files(served: Served) -> Iterator[list[str]]:
    """Watch which files the service opens; the list is filled at the end."""
    found: list[str] = []
    if not LONG or shutil.which("strace") is None:
        yield found
        return
    log = served.folder / "strace"
    command = ["strace", "-f", "-q", "-e", "trace=open,openat,openat2", "-o", str(log), "-p", str(served.process.pid)]
    tracer = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        while int(re.findall(r"TracerPid:\s+(\d+)", Path(f"/proc/{served.process.pid}/status").read_text())[0]) == 0:
            assert tracer.poll() is None
            time.sleep(0.05)
        yield found
    finally:
        tracer.send_signal(signal.SIGINT)
        tracer.wait(30)
    found += re.findall(r'open(?:at2?)?\((?:AT_FDCWD, |\d+, )?"((?:[^"\\]|\\.)*)"', log.read_text())


@pytest.mark.slow
def test_hostile_requests_are_refused_at_once_and_cost_little(served: Served) -> None:
    requests = [*hostile_requests.bodies(), *hostile_requests.lengths()]
    refuse(served, requests[0])
    settle(served.process)
    at_first = served.peak_bytes(forget=True)
    refusals = [refuse(served, hostile) for _ in range(rounds(1, 5)) for hostile in requests]
    growth = served.peak_bytes() - at_first
    slowest = sorted(refusals, key=lambda refusal: -refusal.seconds)
    dearest = sorted(refusals, key=lambda refusal: -refusal.cpu_seconds)
    in_time = sum(refusal.seconds < 0.1 for refusal in refusals)
    print(
        f"{len(refusals)} refusals of {len(requests)} kinds, {in_time} of them within 100 ms; the slowest: "
        + ", ".join(f"{refusal.name} {refusal.seconds * 1000:.0f} ms" for refusal in slowest[:4])
        + "; the most CPU: "
        + ", ".join(f"{refusal.name} {refusal.cpu_seconds * 1000:.0f} ms" for refusal in dearest[:4])
        + f"; memory at its peak + {growth / MEGABYTE:.0f} MB; load {load():.1f}"
    )
    assert growth < 100 * MEGABYTE
    check_in_time(refusals)
    assert httpx.get(f"{served.url}/readyz").status_code == 200


@pytest.mark.slow
def test_no_name_leads_to_a_file_that_is_not_the_service_s(served: Served) -> None:
    requests = list(hostile_requests.names())
    if not LONG:
        requests = requests[::7]
    with opened_files(served) as opened:
        refusals = [refuse(served, hostile) for hostile in requests]
        answer = httpx.get(f"{served.url}/v1/indexes/pictures")
        assert answer.status_code == 200
    allowed = (
        str(served.folder / "root"),
        str(served.folder / "jobs"),
        sys.prefix,
        sys.base_prefix,
        os.getcwd(),
        "/proc/",
    )
    outside = [path for path in opened if path.startswith(("/", "..")) and not path.startswith(allowed)]
    worst = max(refusals, key=lambda refusal: refusal.seconds)
    print(
        f"{len(refusals)} names refused, the slowest in {worst.seconds * 1000:.0f} ms ({worst.name}); "
        f"{len(opened)} files opened meanwhile, outside the index root {outside}; load {load():.1f}"
    )
    check_in_time(refusals, traced=LONG)
    assert not [path for path in outside if "canary" in path or "passwd" in path or ".." in path]
    assert not [path for path in outside if not path.startswith(("/usr/lib", "/usr/share", "/etc/localtime"))]


@pytest.mark.slow
def test_of_a_key_that_stands_twice_the_last_one_counts(served: Served) -> None:
    body = b'{"query": {"type": "row", "row": 1}, "budget": 1000000000, "budget": 3}'
    path = "/v1/indexes/pictures/attributions"
    answer = httpx.post(served.url + path, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 200
    assert len(answer.json()["hits"]) == 3
