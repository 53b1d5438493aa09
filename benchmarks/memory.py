"""How much memory does the service hold of its own, and how much is the page cache's?

Starts the real service on an index, asks one question, then many by up to 32 threads at once over HTTP, and reads
the process's resident memory from /proc: anonymous pages, which are its own, and pages of files, which the system
takes back under pressure; those of the index are told from those of the program and its libraries. Linux only.

    python -m benchmarks.memory --index indexes/fashion-mnist --budget 50 --json
"""

import argparse
import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from service.client import Client
from service.local_server import local_server

MEGABYTE = 1e6
SAMPLE_SECONDS = 0.01


def resident(pid: int) -> dict[str, float]:
    """Return a process's resident memory in MB (10⁶ bytes): all of it, anonymous, of files."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
    names = {"resident_mb": "VmRSS", "anonymous_mb": "RssAnon", "file_mb": "RssFile"}
    return {name: round(int(fields[field].split()[0]) * 1024 / MEGABYTE, 1) for name, field in names.items()}


def mapped(pid: int, index: Path) -> dict[str, float]:
    """Return what is resident of mapped files in MB (10⁶ bytes): of the index, and of all others.

    Args:
        pid: The process.
        index: The index directory.

    Returns:
        Both, by mapping: pages that the process has written to are its own and do not count.
    """
    pages = {"index_mb": 0, "library_mb": 0}
    name = None
    for line in Path(f"/proc/{pid}/smaps").read_text("utf-8", "surrogateescape").splitlines():
        field, _, value = line.partition(":")
        if field == "Rss" and name is not None:
            pages[name] += int(value.split()[0])
        elif field == "Anonymous" and name is not None:
            pages[name] -= int(value.split()[0])
        elif len(words := line.split(maxsplit=5)) >= 5 and "-" in words[0]:  # a mapping begins
            file = words[5] if len(words) == 6 else ""
            of_index = Path(file).is_relative_to(index.resolve())
            name = ("index_mb" if of_index else "library_mb") if file.startswith("/") else None
    return {kind: round(1024 * kilobytes / MEGABYTE, 1) for kind, kilobytes in pages.items()}


def service_of(parent: int, index: Path) -> int:
    """Return the service of an index that a process has started.

    Args:
        parent: The process.
        index: The index directory.

    Returns:
        The child's id.
    """
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            after_name = status.read_text().rpartition(")")[2].split()
            command = status.with_name("cmdline").read_bytes()
        except OSError:  # a process that has just ended
            continue
        if int(after_name[1]) == parent and b"service.cli" in command and str(index).encode() in command:
            found.append(int(status.parent.name))
    (child,) = found
    return child


class Peak:
    """Samples a process's memory until it is left, and keeps the largest of each kind."""

    def __init__(self, pid: int) -> None:
        self.largest = resident(pid)
        self._pid = pid
        self._stop = threading.Event()
        self._sampler = threading.Thread(target=self._sample, daemon=True)

    def _sample(self) -> None:
        while not self._stop.wait(SAMPLE_SECONDS):
            now = resident(self._pid)
            self.largest = {name: max(value, now[name]) for name, value in self.largest.items()}

    def __enter__(self) -> "Peak":
        self._sampler.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._sampler.join()


def ask(url: str, index: str, row: int, method: str, budget: int, available: bool) -> float:
    """Ask one question by row and return its seconds from outside."""
    with Client(url, timeout=600.0) as client:
        begun = time.perf_counter()
        client.attribute(
            index,
            {"type": "row", "split": "query", "row": row},
            method=method,
            budget=budget,
            relative_noise=1.0,
            available=available,
        )
        return time.perf_counter() - begun


def measure(
    index: Path, *, method: str, budget: int, available: bool, questions: int, threads: int, arguments: list[str]
) -> dict[str, Any]:
    """Serve an index and watch its memory.

    Args:
        index: The index directory.
        method: The rule asked for.
        budget: Picks.
        available: Whether answers state the nats of everything, whose posterior the service keeps.
        questions: How many questions the threads ask together.
        threads: Questions under way at once.
        arguments: Further flags of the service.

    Returns:
        All figures.
    """
    manifest = json.loads((index / "manifest.json").read_text("utf-8"))
    rows = manifest["queries"]["count"]
    begun = time.perf_counter()
    with local_server(index, "--deadline-seconds", "600", *arguments) as url:
        ready_seconds = time.perf_counter() - begun
        pid = service_of(os.getpid(), index)
        at_start = resident(pid) | mapped(pid, index)
        first_seconds = ask(url, index.name, 0, method, budget, available)
        after_first = resident(pid) | mapped(pid, index)
        with Peak(pid) as peak, ThreadPoolExecutor(threads) as pool:
            seconds = list(
                pool.map(
                    lambda number: ask(url, index.name, number % rows, method, budget, available), range(questions)
                )
            )
        return {
            "index": index.name,
            "rows": manifest["num_rows"],
            "sketch_dim": manifest["sketch_dim"],
            "sketch_mb": round(
                sum(entry["bytes"] for file, entry in manifest["files"].items() if file.startswith("sketches/"))
                / MEGABYTE,
                1,
            ),
            "method": method,
            "budget": budget,
            "available": available,
            "questions": questions,
            "threads": threads,
            "malloc_arena_max": os.environ.get("MALLOC_ARENA_MAX"),
            "ready_seconds": round(ready_seconds, 2),
            "first_question_seconds": round(first_seconds, 2),
            "median_question_seconds": round(sorted(seconds)[len(seconds) // 2], 2),
            "at_start": at_start,
            "after_first_question": after_first,
            "peak": peak.largest,
            "at_end": resident(pid) | mapped(pid, index),
        }


def main() -> None:
    """Run the benchmark and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--index", type=Path, required=True, help="index directory with stored queries")
    parser.add_argument("--method", default="infogain_approx")
    parser.add_argument("--budget", type=int, default=10)
    parser.add_argument("--available", action="store_true", help="ask for the nats of everything as well")
    parser.add_argument("--questions", type=int, default=96)
    parser.add_argument("--threads", type=int, default=32, help="questions under way at once")
    parser.add_argument("--service-flag", action="append", default=[], help="a further word for attribution-service")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    figures = measure(
        options.index,
        method=options.method,
        budget=options.budget,
        available=options.available,
        questions=options.questions,
        threads=options.threads,
        arguments=options.service_flag,
    )
    if options.json:
        print(json.dumps(figures, indent=2))
        return
    for name, value in figures.items():
        print(f"{name:>24}  {value}")


if __name__ == "__main__":
    main()
