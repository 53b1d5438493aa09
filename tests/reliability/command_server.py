"""A program that runs `indexer` commands, each in a process that costs no import: started once, it forks for every one.

A forked process stops itself before it begins, so that a tracer can be attached to it; what it says it keeps to
itself until it ends, so that its writes are those to the index directory and no others.
"""

import gc
import io
import json
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

import faiss  # noqa: F401 -- imported before the forks; nothing of it has run by then, and so it has no thread
import torch

from indexer.cli import main
from tests.reliability.publications import publish


def run(order: dict[str, Any], said: int) -> int:
    """Run one command in this process.

    Args:
        order: ``words`` of `indexer`, or the ``operation`` of `publications.py` to do in ``folder``; ``file_bytes``
            limits how long a file may grow.
        said: Where its output goes when it ends.

    Returns:
        The exit status.
    """
    if order["file_bytes"] is not None:
        # The soft limit only, and SIGXFSZ is ignored as Python does: a write beyond it is cut off, the next fails.
        resource.setrlimit(resource.RLIMIT_FSIZE, (order["file_bytes"], resource.RLIM_INFINITY))
    sys.stdout, sys.stderr = io.StringIO(), io.StringIO()
    os.kill(os.getpid(), signal.SIGSTOP)
    status = 0
    try:
        if order["operation"] is not None:
            status, message = publish(order["operation"], Path(order["folder"]))
            sys.stderr.write(message)
        else:
            main(order["words"])
    except SystemExit as stopped:
        status = int(stopped.code or 0)
    except BaseException as error:
        sys.stderr.write(f"Traceback: {type(error).__name__}: {error}\n")
        status = 70
    os.write(said, (sys.stdout.getvalue() + sys.stderr.getvalue()).encode())
    return status


def serve() -> None:
    """Answer every order on the standard input with the process's number, and with its end when it has ended."""
    torch.set_num_threads(1)
    gc.freeze()
    for line in sys.stdin:
        reader, writer = os.pipe()
        process = os.fork()
        if process == 0:
            os.close(reader)
            os._exit(run(json.loads(line), writer))
        os.close(writer)
        os.waitpid(process, os.WUNTRACED)
        answer(process=process)
        with os.fdopen(reader, "rb") as stream:
            said = stream.read().decode()
        answer(status=os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), said=said)


def answer(**facts: object) -> None:
    """Write a line to the standard output."""
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    serve()
