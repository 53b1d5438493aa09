"""A program that builds small indexes, resuming what is there: what the kill tests start and kill."""

import os
import signal
import sys
import time
from pathlib import Path

from sketchstore.errors import AlreadyPublishedError
from sketchstore.writer import IndexWriter
from tests.index_factory import make_contents, make_plan, write_contents


def build(path: Path, *, pause_seconds: float = 0.0, overwrite: bool = False) -> None:
    """Build, or continue to build, the index at ``path``; every run writes the same content."""
    plan = make_plan(num_rows=200, dtype="float16", block_rows=16, shard_rows=64)
    contents = make_contents(plan)
    try:
        writer = IndexWriter.create(path, plan, resume=True, overwrite=overwrite)
    except AlreadyPublishedError:
        return
    with writer:
        if pause_seconds:
            inner = writer.write_block
            writer.write_block = lambda *arguments: (time.sleep(pause_seconds), inner(*arguments))  # type: ignore
        write_contents(writer, contents)
        writer.log({"event": "written"})
        writer.publish(distortion={"pairs": 3}, default_relative_noise=0.5)


def serve() -> None:
    """For every path on standard input: build there in a process of its own, say its number, and say when it ended.

    Forking after the imports saves seconds per build; nothing has started a thread by then.
    """
    for line in sys.stdin:
        process = os.fork()
        if process == 0:
            build(Path(line.strip()), pause_seconds=0.01)
            signal.pause()  # so that the number stays this process's until it is killed
        sys.stdout.write(f"{process}\n")
        sys.stdout.flush()
        os.waitpid(process, 0)
        sys.stdout.write("ended\n")
        sys.stdout.flush()


if __name__ == "__main__":
    serve()
