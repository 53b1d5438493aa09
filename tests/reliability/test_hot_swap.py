"""Revisions are swapped under load: no request fails, and every answer is, to the bit, that of the revision it names.

Indexes that were built, shrunk, purged and merged take the served one's name again and again, as a build with
--overwrite takes it, while clients ask. Each answer is computed once more offline, from the revision that it names.
"""

import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from indexer.derive import derive
from service.client import Client
from service.engine import Engine, open_engine
from sketchstore.merge import merge_indexes
from sketchstore.publish import take_name
from sketchstore.reader import Index, open_index
from sketchstore.remove import remove_rows
from tests.index_factory import make_index
from tests.reliability.lengths import rounds
from tests.reliability.restarted_service import RestartedService
from tests.reliability.test_same_answer import without_timings

SWAPS = rounds(6, 50)
CLIENTS = 4
ROWS, DIM, NAME = 600, 64, "swapped"
#: Swaps before the first count of maps and descriptors: every revision has been served once and more.
SETTLED = rounds(3, 12)
#: What the process may hold more at the end: maps of the allocator and descriptors of connections come and go.
SLACK = 12


def questions() -> list[dict[str, Any]]:
    """Stored queries and training rows, by every rule."""
    by_query = [{"type": "row", "split": "query", "row": row} for row in (0, 3, 7, 11, 19)]
    by_row = [{"type": "row", "split": "train", "row": row} for row in (1, 17, 200)]
    return [
        {"query": query, "method": method, "budget": 8, "relative_noise": 0.5, "rescore": ["infogain", "infoloss"]}
        for query in by_query + by_row
        for method in ("infogain_approx", "infogain", "infoloss")
    ] + [{"query": by_query[1], "strategy": "literal", "budget": 8, "filter": {"where": {"source": "web"}}}]


def factory(folder: Path, **options: Any) -> Index:
    return make_index(folder, name=NAME, view="margin", dim=DIM, num_queries=20, **({"num_rows": ROWS} | options))


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The revisions, each in a folder of its own."""
    folder = tmp_path_factory.mktemp("stock")
    built = factory(folder / "built")
    shrunk, purged = (Path(shutil.copytree(built.path, folder / name / NAME)) for name in ("shrunk", "purged"))
    remove_rows(open_index(shrunk), [f"train:{row}" for row in range(0, 60, 7)])
    remove_rows(open_index(purged), [f"train:{row}" for row in range(450, 600)], purge=True)
    more = np.random.default_rng(8).standard_normal((ROWS, DIM)).astype(np.float32)
    other = factory(folder / "other", sketches={"margin": more})
    remove_rows(other, [f"train:{row}" for row in range(450)], purge=True)
    (folder / "merged").mkdir()
    merged = folder / "merged" / NAME
    merge_indexes([open_index(purged), open_index(other.path)], merged)
    rebuilt = factory(folder / "rebuilt", num_rows=400, seed=5)
    halved = factory(folder / "halved", dtype="float16")
    paths = [built.path, shrunk, purged, merged, rebuilt.path, halved.path]
    for path in paths:
        derive(open_index(path))
    found = {open_index(path).revision: path for path in paths}
    assert len(found) == len(paths)
    return found


def publish(revision: Path, target: Path) -> None:
    """Give a copy of a revision, of the same files, the served name in one step."""
    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    content = Path(shutil.copytree(revision, partial / "content", copy_function=os.link))
    take_name(content, target, partial)


class Asker(threading.Thread):
    """A client that asks one question after the other, and remembers every answer it got."""

    def __init__(self, url: str, number: int, over: threading.Event) -> None:
        super().__init__(daemon=True)
        self.answers: dict[tuple[int, str, str], int] = {}
        self.errors: list[str] = []
        self._url, self._number, self._over = url, number, over

    def run(self) -> None:
        asked = questions()
        with httpx.Client(base_url=self._url, timeout=120) as http:
            place = self._number
            while not self._over.is_set():
                place = (place + 5) % len(asked)
                try:
                    answer = http.post(f"/v1/indexes/{NAME}/attributions", json=asked[place])
                except httpx.TransportError as error:
                    self.errors.append(repr(error))
                    continue
                if answer.status_code != 200:
                    self.errors.append(answer.text)
                    continue
                body = answer.json()
                key = place, body["index"]["revision"], without_timings(body)
                self.answers[key] = self.answers.get(key, 0) + 1


def held(pid: int, folder: Path) -> tuple[int, int, int, float]:
    """Maps of files in a folder, of deleted ones among them, descriptors, and resident MiB of a process."""
    maps = [line for line in Path(f"/proc/{pid}/maps").read_text().splitlines() if str(folder) in line]
    status = Path(f"/proc/{pid}/status").read_text()
    resident = next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmRSS"))
    return len(maps), sum("deleted" in line for line in maps), len(os.listdir(f"/proc/{pid}/fd")), resident


#: How the service learns of a revision: a request says so, a thread looks, or every question does.
WAYS = {"reload": ("--watch-seconds", "100000"), "watch": ("--watch-seconds", "0.05"), "questions": ()}


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_every_answer_during_swaps_is_that_of_the_revision_it_names(
    stock: dict[str, Path], tmp_path: Path, way: str
) -> None:
    revisions, target = list(stock), tmp_path / "served" / NAME
    target.parent.mkdir()
    publish(stock[revisions[0]], target)
    service, over = RestartedService(target, tmp_path, *WAYS[way]), threading.Event()
    askers = [Asker(service.url, number, over) for number in range(CLIENTS)]
    service.start()
    try:
        with Client(service.url) as client:
            for asker in askers:
                asker.start()
            levels, waits, job = [], [], None
            for number in range(1, SWAPS + 1):
                revision = revisions[number % len(revisions)]
                publish(stock[revision], target)
                began = time.monotonic()
                if way == "reload":
                    # A question may have been first: one that needed a file of the directory that is deleted.
                    assert client.reload(NAME).index.revision == revision
                # A question asked now is of the new revision; where a thread looks, soon.
                while (seen := client.attribute(NAME, questions()[0]["query"]).index.revision) != revision:
                    assert way == "watch", (seen, revision)
                    assert time.monotonic() < began + 60
                waits.append(time.monotonic() - began)
                assert client.index(NAME).revision == revision
                if number == SWAPS // 2:
                    job = client.submit({"type": "attributions", "index": NAME, "requests": questions()})
                if number >= SETTLED:
                    levels.append(held(service.pid, target.parent))
            assert job is not None
            assert job.wait(timeout=120).state == "done"
            items = list(job.items())
            over.set()
            for asker in askers:
                asker.join(120)
                assert not asker.is_alive()
            # What nobody reads any more is let go while the service goes on answering: its last references may be
            # cycles, which wait for the interpreter's collector.
            patience = time.monotonic() + 30
            while (level := held(service.pid, target.parent))[1] and time.monotonic() < patience:
                client.attribute(NAME, questions()[0]["query"])
            levels.append(level)
    finally:
        over.set()
        service.stop()
    errors = [error for asker in askers for error in asker.errors]
    assert not errors, errors[:3]

    offline = {revision: open_engine(path) for revision, path in stock.items()}
    expected: dict[tuple[int, str], str] = {}

    def recomputed(place: int, revision: str) -> str:
        if (place, revision) not in expected:
            expected[place, revision] = of_the_library(offline[revision], questions()[place])
        return expected[place, revision]

    count, of_revision = 0, dict.fromkeys(revisions, 0)
    for asker in askers:
        for (place, revision, answer), times in asker.answers.items():
            assert answer == recomputed(place, revision)
            count += times
            of_revision[revision] += times
    assert all(of_revision.values())
    assert {item["body"]["index"]["revision"] for item in items} == {job.job.revision}
    for place, item in enumerate(items):
        assert without_timings(item["body"]) == recomputed(place, job.job.revision)
    first, last = levels[0], levels[-1]
    print(
        f"{way}: {SWAPS} swaps among {len(revisions)} revisions, served after {max(waits):.2f} s at most; {count} "
        f"answers, 0 errors, all as recomputed ({len(expected)} different), and a job of {len(items)} items of one "
        f"revision; maps {first[0]} → {last[0]} ({last[1]} of deleted files), descriptors {first[2]} → {last[2]}, "
        f"resident {first[3]:.0f} → {last[3]:.0f} MiB"
    )
    assert last[1] == 0  # what was swapped out is let go
    assert max(last[0] - first[0], last[2] - first[2]) <= SLACK


def of_the_library(engine: Engine, question: dict[str, Any]) -> str:
    return without_timings(engine.attribute(question).model_dump(mode="json"))
