"""Clients that share a list of questions, each asking again as soon as it is answered, and what they saw."""

import dataclasses
import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from benchmarks.measuring import timed

Ask = Callable[[int], Any]
Plain = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """What some clients saw.

    Attributes:
        seconds: From the first question to the last answer.
        waits: Seconds to each answer.
        answers: The answers, in the order of the questions.
    """

    seconds: float
    waits: list[float]
    answers: list[Any]


def ask_all(ask: Sequence[Ask], num_questions: int) -> Run:
    """Let clients share a list of questions, all starting together.

    Args:
        ask: What each client calls with a question's number.
        num_questions: How many questions there are.

    Returns:
        Times and answers.

    Raises:
        RuntimeError: If a client failed.
    """
    waits, answers = [0.0] * num_questions, [None] * num_questions
    numbers = iter(range(num_questions))
    lock, start = threading.Lock(), threading.Barrier(len(ask) + 1)
    failures: list[BaseException] = []

    def client(own: Ask) -> None:
        start.wait()
        try:
            while not failures:
                with lock:
                    number = next(numbers, None)
                if number is None:
                    return
                waits[number], answers[number] = timed(partial(own, number))
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=client, args=(own,)) for own in ask]
    for thread in threads:
        thread.start()
    start.wait()
    begun = time.perf_counter()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - begun
    if failures:
        raise RuntimeError(f"a client failed: {failures[0]}") from failures[0]
    return Run(seconds, waits, answers)


def plain(answer: Any) -> Plain:
    """Return an answer, of the attributor or of the service, as JSON has it, without its timings."""
    fields = answer.model_dump() if hasattr(answer, "model_dump") else dataclasses.asdict(answer)
    del fields["timings_ms"]
    result: Plain = json.loads(json.dumps(fields))
    return result


def unlike(answers: Sequence[Plain], alone: Sequence[Plain]) -> tuple[int, list[str]]:
    """Count the answers that are not those given alone, and name the fields in which they differ."""
    fields = [
        [name for name in other if one.get(name) != other[name]] for one, other in zip(answers, alone, strict=True)
    ]
    return sum(map(bool, fields)), sorted({name for names in fields for name in names})
