"""A job and its items as they are on disk, before they are stored and after they are read."""

import json
import math
import sqlite3
from dataclasses import dataclass
from typing import Any

#: Position of an item and what it holds.
Item = tuple[int, dict[str, Any]]

#: Everything of a job but its request, which may be long.
JOB = (
    "number, id, owner, type, index_name, revision, state, done, total, created, started, finished, cancel_requested, "
    "attempts, version, facts, warnings, problem"
)


def finite(value: float | None) -> float | None:
    """Return a number as JSON can say it: infinite nats, of a query of which nothing is left unknown, are null."""
    return value if value is not None and math.isfinite(value) else None


@dataclass(frozen=True)
class NewJob:
    """A job that is not accepted yet.

    Attributes:
        type: attributions, coreset or evaluation.
        index: The index's name.
        revision: Its revision when the job was judged.
        request: The request as JSON text.
        digest: Digest of the request, to tell whether a key is used for the same one again.
        total: Items there can be.
        owner: Name of the key it was handed in with; None where the service asked for none.
    """

    type: str
    index: str
    revision: str
    request: str
    digest: str
    total: int
    owner: str | None = None


@dataclass(frozen=True)
class StoredJob:
    """A job as it is on disk; times are seconds since 1970.

    Attributes:
        number: Order of acceptance.
        id: What clients call it.
        owner: Name of the key it was handed in with; None where the service asked for none.
        type: attributions, coreset or evaluation.
        index_name: The index's name.
        revision: The revision its items are of.
        state: queued, running, done, failed or cancelled.
        done: Items stored.
        total: Items there can be.
        created: When it was accepted.
        started: When it was first begun.
        finished: When it was over.
        cancel_requested: Whether somebody asked to stop it.
        attempts: How often it was begun since it last got on.
        version: Grows with every change.
        facts: What holds for all items.
        warnings: What to beware of.
        problem: Why it failed, as JSON.
    """

    number: int
    id: str
    owner: str | None
    type: str
    index_name: str
    revision: str
    state: str
    done: int
    total: int
    created: float
    started: float | None
    finished: float | None
    cancel_requested: bool
    attempts: int
    version: int
    facts: dict[str, Any]
    warnings: list[str]
    problem: dict[str, Any] | None


def job_of(row: sqlite3.Row) -> StoredJob:
    """Read a job from its row.

    Args:
        row: The columns of ``JOB``.

    Returns:
        The job.
    """
    found = dict(row)
    found.pop("request_digest", None)
    found["cancel_requested"] = bool(found["cancel_requested"])
    for field in ("facts", "warnings", "problem"):
        found[field] = None if found[field] is None else json.loads(found[field])
    return StoredJob(**found)
