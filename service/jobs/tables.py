"""The tables of the job store, and how those of an earlier version become them."""

import sqlite3
from pathlib import Path

from service.errors import JobStoreError

VERSION = 2
SCHEMA = """
CREATE TABLE jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    owner TEXT,
    idempotency_key TEXT UNIQUE,
    request_digest TEXT NOT NULL,
    type TEXT NOT NULL,
    index_name TEXT NOT NULL,
    revision TEXT NOT NULL,
    request TEXT NOT NULL,
    state TEXT NOT NULL,
    done INTEGER NOT NULL DEFAULT 0,
    total INTEGER NOT NULL,
    created REAL NOT NULL,
    started REAL,
    finished REAL,
    cancel_requested INTEGER NOT NULL DEFAULT 0,
    attempts INTEGER NOT NULL DEFAULT 0,
    version INTEGER NOT NULL DEFAULT 1,
    facts TEXT NOT NULL DEFAULT '{}',
    warnings TEXT NOT NULL DEFAULT '[]',
    problem TEXT
);
CREATE INDEX jobs_by_state ON jobs (state, number);
CREATE TABLE items (
    job INTEGER NOT NULL REFERENCES jobs (number) ON DELETE CASCADE,
    position INTEGER NOT NULL,
    body TEXT NOT NULL,
    PRIMARY KEY (job, position)
) WITHOUT ROWID;
"""
#: What makes a store of an earlier version one of the next. Jobs of version 1 are nobody's: admin keys see them.
MIGRATIONS = {1: "ALTER TABLE jobs ADD COLUMN owner TEXT;"}


def prepare(db: sqlite3.Connection, path: Path) -> None:
    """Make the tables in an empty file, or bring those of an earlier version to this one, in one transaction a step.

    Args:
        db: The open file, in autocommit mode.
        path: Where it is.

    Raises:
        JobStoreError: If it is no job store, or one of a later version.
    """
    found = db.execute("PRAGMA user_version").fetchone()[0]
    if found == 0 and not db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
        db.executescript(f"BEGIN IMMEDIATE; {SCHEMA} PRAGMA user_version = {VERSION}; COMMIT;")
        return
    version = found
    while version in MIGRATIONS:
        db.executescript(f"BEGIN IMMEDIATE; {MIGRATIONS[version]} PRAGMA user_version = {version + 1}; COMMIT;")
        version += 1
    if version != VERSION:
        raise JobStoreError(
            f"{path} is no job store of this version ({found}, not {VERSION} or less); give another file"
        )


def stored_key(key: str, owner: str | None) -> str:
    """Tell one owner's idempotency keys from another's.

    Args:
        key: The key as the client sent it, without spaces.
        owner: Whose it is, without spaces; None where the service asks for no API key.

    Returns:
        What is unique in the store.
    """
    return key if owner is None else f"{owner} {key}"
