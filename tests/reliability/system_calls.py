"""System calls of a process that change the disk, recorded and interrupted by strace: real calls, no stand-ins."""

import os
import re
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from tests.reliability.commands import Commands, Ended, Order

CALLS = (
    "write", "writev", "pwrite64", "fsync", "fdatasync", "rename", "renameat", "renameat2", "link", "linkat", "unlink",
    "unlinkat", "mkdir", "mkdirat", "rmdir", "ftruncate", "truncate", "sendfile", "copy_file_range", "symlink",
)  # fmt: skip
FAILURES = {
    "write": "ENOSPC", "pwrite64": "ENOSPC", "mkdir": "ENOSPC", "ftruncate": "ENOSPC", "sendfile": "ENOSPC",
    "link": "EMLINK", "fsync": "EIO", "rename": "EIO", "renameat2": "EIO",
}  # fmt: skip
_CALL = re.compile(r"^(?P<name>\w+)\((?P<rest>.*)$")
ATTACHED_SECONDS = 60


def missing_strace() -> str | None:
    """Why calls cannot be interrupted here; None where they can."""
    return None if shutil.which("strace") else "needs strace (Debian: apt-get install strace)"


@dataclass(frozen=True)
class Point:
    """One call that touches the folder: the ``ordinal``-th of its name in the process, and where it goes."""

    name: str
    ordinal: int
    line: str


def traced(commands: Commands, order: Order, log: Path, *flags: str) -> Ended:
    """Run a command under strace, attached before the command begins."""
    process = commands.start(order)
    words = ["strace", "-qq", "-y", "-s", "0", "-o", str(log), "-p", str(process), *flags]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as tracer:
        deadline = time.monotonic() + ATTACHED_SECONDS
        while f"TracerPid:\t{tracer.pid}\n" not in Path(f"/proc/{process}/status").read_text():
            assert tracer.poll() is None, tracer.communicate()
            assert time.monotonic() < deadline, "strace did not attach"
            time.sleep(0.002)
        os.kill(process, signal.SIGCONT)
        ended = commands.ended()
        tracer.wait(timeout=ATTACHED_SECONDS)
    return ended


def points(commands: Commands, order: Order, log: Path, folder: Path) -> list[Point]:
    """Run a command and list its calls that touch a folder, in their order.

    Every thread is followed: a call by another one than the first would not be counted as strace counts, by thread.
    """
    ended = traced(commands, order, log, "-f", "-e", f"trace={','.join(CALLS)}")
    assert ended.status == 0, ended.said
    counts: dict[str, int] = {}
    found, main = list[Point](), None
    for line in log.read_text().splitlines():
        number, _, text = line.partition(" ")
        call = _CALL.match(text.strip())
        if call is None:
            continue
        main = main or number
        inside = _inside(text, folder)
        assert not inside or number == main, f"a second thread writes: {line}"
        if number == main:
            counts[call["name"]] = counts.get(call["name"], 0) + 1
            if inside:
                found.append(Point(call["name"], counts[call["name"]], text.strip()))
    return found


def interrupted(commands: Commands, order: Order, log: Path, point: Point, action: str) -> Ended:
    """Run a command to one call, and have the call do something else: ``signal=KILL``, before it, or ``error=EIO``."""
    inject = f"inject={point.name}:{action}:when={point.ordinal}"
    return traced(commands, order, log, "-e", f"trace={point.name}", "-e", inject)


def last_call(log: Path, folder: Path) -> str:
    """The call at which a process was killed or that failed by injection; empty where none did."""
    lines = log.read_text().splitlines()
    hit = [line for line in lines if "INJECTED" in line] or [line for line in lines if "= ?" in line][-1:]
    return hit[0] if hit and _inside(hit[0], folder) else ""


def _inside(call: str, folder: Path) -> bool:
    return str(folder) in call or '"/proc/self/fd/' in call  # a directory that is held open (`sketchstore/held.py`)
