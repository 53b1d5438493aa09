"""Jobs and their items in one SQLite file: WAL, synchronous FULL, so that what was answered to a client is on disk.

Items and the count of them change in one transaction: after a crash there is either all of a step or nothing of it. One
process owns the file; its threads take turns on one connection.
"""

import json
import sqlite3
import threading
import time
import uuid
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from service.errors import IdempotencyKeyReusedError, JobQueueFullError, JobStoreError, UnknownJobError
from service.jobs.stored_job import JOB, Item, NewJob, StoredJob, job_of
from service.jobs.tables import prepare, stored_key

#: Items read at a time, so that a reader of a long result holds up nobody.
READ_ITEMS = 500


class JobStore:
    """The jobs of one service.

    Args:
        path: The SQLite file; made where it is missing.

    Raises:
        JobStoreError: If another process uses it, or it is no job store of this version.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.closed = False
        self._lock = threading.RLock()
        self._owner = FileLock(f"{path}.lock", thread_local=False)
        try:
            self._owner.acquire(timeout=0)
        except Timeout as error:
            raise JobStoreError(f"the job store {path} is used by another process; give each its own") from error
        except OSError as error:
            raise JobStoreError(f"the job store {path} cannot be opened: {error}") from error
        try:
            if not path.exists():
                path.touch(mode=0o600)  # requests will be in it; the journal takes its mode over
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._db.row_factory = sqlite3.Row
            self._prepare()
        except JobStoreError:
            self._db.close()
            self._owner.release()
            raise
        except (sqlite3.Error, OSError) as error:
            self._owner.release()
            raise JobStoreError(f"the job store {path} cannot be opened: {error}") from error
        #: The version of every job that changed since the process began: what a follower looks at.
        self.versions: dict[str, int] = {}
        #: Jobs that somebody asked to stop since the process began.
        self.cancelled: set[str] = set()

    def _prepare(self) -> None:
        self._db.execute("PRAGMA auto_vacuum = INCREMENTAL")
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.execute("PRAGMA foreign_keys = ON")
        prepare(self._db, self.path)

    def close(self) -> None:
        """Close the file and let another process have it."""
        with self._lock:
            self._db.close()
            self._owner.release()
            self.closed = True

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                yield self._db
                self._db.execute("COMMIT")
            except sqlite3.Error as error:
                raise JobStoreError(f"the job store cannot be written: {error}") from error
            finally:
                # Nothing is left half done; a full disk has ended the transaction already.
                with suppress(sqlite3.ProgrammingError):  # closed meanwhile
                    if self._db.in_transaction:
                        self._db.execute("ROLLBACK")

    def _reading(self, statement: str, values: Sequence[Any] = ()) -> list[sqlite3.Row]:
        with self._lock:
            try:
                return self._db.execute(statement, values).fetchall()
            except sqlite3.Error as error:
                raise JobStoreError(f"the job store cannot be read: {error}") from error

    def create(self, new: NewJob, key: str | None, most_queued: int) -> StoredJob:
        """Accept a job. When this returns, it is on disk.

        Args:
            new: The job.
            key: The client's idempotency key: the same job again is the one that is there.
            most_queued: How many jobs may wait.

        Returns:
            The job, new or known.

        Raises:
            JobQueueFullError: If as many wait as may.
        """
        with self._writing() as db:
            if key is not None and (known := self.known(key, new.digest, new.owner)) is not None:
                return known
            waiting = db.execute("SELECT count(*) FROM jobs WHERE state = 'queued'").fetchone()[0]
            if waiting >= most_queued:
                raise JobQueueFullError(waiting)
            id = uuid.uuid4().hex
            db.execute(
                "INSERT INTO jobs (id, owner, idempotency_key, request_digest, type, index_name, revision, request, "
                "state, total, created) VALUES (?, ?, ?, ?, ?, ?, ?, ?, 'queued', ?, ?)",
                (
                    id,
                    new.owner,
                    None if key is None else stored_key(key, new.owner),
                    new.digest,
                    new.type,
                    new.index,
                    new.revision,
                    new.request,
                    new.total,
                    time.time(),
                ),
            )
        return self.get(id)

    def known(self, key: str, digest: str, owner: str | None = None) -> StoredJob | None:
        """Find the job that an idempotency key belongs to.

        Args:
            key: The key.
            digest: Digest of the request that it came with.
            owner: Whose it is; others may use the same.

        Returns:
            The job; None where the key is new.

        Raises:
            IdempotencyKeyReusedError: If the key belongs to another request.
        """
        found = self._reading(
            f"SELECT request_digest, {JOB} FROM jobs WHERE idempotency_key = ?", (stored_key(key, owner),)
        )
        if not found:
            return None
        if found[0]["request_digest"] != digest:
            raise IdempotencyKeyReusedError(found[0]["id"])
        return job_of(found[0])

    def get(self, id: str) -> StoredJob:
        """Read a job.

        Args:
            id: Its id.

        Returns:
            The job as it stands.

        Raises:
            UnknownJobError: If there is none.
        """
        found = self._reading(f"SELECT {JOB} FROM jobs WHERE id = ?", (id,))
        if not found:
            raise UnknownJobError(id)
        return job_of(found[0])

    def page(
        self,
        state: str | None,
        offset: int,
        limit: int,
        owner: str | None = None,
        indexes: Collection[str] | None = None,
    ) -> tuple[list[StoredJob], int]:
        """Read some jobs, the newest first.

        Args:
            state: Only those in this state; None: all.
            offset: How many to pass over.
            limit: How many to read.
            owner: Only those of this owner; None: everybody's.
            indexes: Only those of these indexes; None: all.

        Returns:
            The jobs, and how many there are.
        """
        conditions, values = ["true"], list[str]()
        for condition, value in (("state = ?", state), ("owner = ?", owner)):
            if value is not None:
                conditions.append(condition)
                values.append(value)
        if indexes is not None:
            conditions.append(f"index_name IN ({', '.join('?' for _ in indexes)})")
            values += indexes
        where = f"WHERE {' AND '.join(conditions)}"
        total = self._reading(f"SELECT count(*) FROM jobs {where}", values)[0][0]
        rows = self._reading(
            f"SELECT {JOB} FROM jobs {where} ORDER BY number DESC LIMIT ? OFFSET ?", (*values, limit, offset)
        )
        return [job_of(row) for row in rows], total

    def recover(self) -> int:
        """Put what a process that ended was working on back into the queue.

        Returns:
            How many jobs.
        """
        with self._writing() as db:
            db.execute(
                "UPDATE jobs SET state = 'cancelled', finished = ?, version = version + 1 "
                "WHERE state IN ('queued', 'running') AND cancel_requested",
                (time.time(),),
            )
            return db.execute(
                "UPDATE jobs SET state = 'queued', version = version + 1 WHERE state = 'running'"
            ).rowcount

    def claim(self) -> StoredJob | None:
        """Take the job that waits longest.

        Returns:
            The job, now running; None where none waits.
        """
        if not self._reading("SELECT 1 FROM jobs WHERE state = 'queued' LIMIT 1"):
            return None
        with self._writing() as db:
            row = db.execute("SELECT id FROM jobs WHERE state = 'queued' ORDER BY number LIMIT 1").fetchone()
            if row is None:
                return None
            db.execute(
                "UPDATE jobs SET state = 'running', attempts = attempts + 1, started = coalesce(started, ?), "
                "version = version + 1 WHERE id = ?",
                (time.time(), row["id"]),
            )
        return self._changed(row["id"])

    def begin(self, job: StoredJob, revision: str, total: int, facts: dict[str, Any], warnings: list[str]) -> None:
        """Note what a running job works on; items of another revision are forgotten.

        Args:
            job: The job.
            revision: The revision that it works on.
            total: Items there can be.
            facts: What holds for all items.
            warnings: What to beware of.
        """
        with self._writing() as db:
            found = db.execute("SELECT revision, done FROM jobs WHERE number = ?", (job.number,)).fetchone()
            if found["revision"] != revision and found["done"]:
                db.execute("DELETE FROM items WHERE job = ?", (job.number,))
                warnings = [
                    *warnings,
                    f"The index got revision {revision} before the job was over; it was begun anew on that revision.",
                ]
            done = db.execute("SELECT count(*) FROM items WHERE job = ?", (job.number,)).fetchone()[0]
            # No new version where a follower would see nothing new: it would be told of the same state twice.
            db.execute(
                "UPDATE jobs SET revision = :revision, total = :total, facts = :facts, warnings = :warnings, "
                "done = :done, version = version + ((revision, total, warnings, done) IS NOT "
                "(:revision, :total, :warnings, :done)) WHERE number = :number",
                {
                    "revision": revision,
                    "total": total,
                    "facts": json.dumps(facts),
                    "warnings": json.dumps(warnings),
                    "done": done,
                    "number": job.number,
                },
            )
        self._changed(job.id)

    def add(self, job: StoredJob, items: Sequence[Item]) -> None:
        """Store items of a running job, and with them its progress.

        Args:
            job: The job.
            items: Positions that it does not have yet, with their bodies.
        """
        rows = [(job.number, position, json.dumps(body, separators=(",", ":"))) for position, body in items]
        with self._writing() as db:
            db.executemany("INSERT INTO items (job, position, body) VALUES (?, ?, ?)", rows)
            db.execute(
                "UPDATE jobs SET done = done + ?, attempts = 0, version = version + 1 WHERE number = ?",
                (len(rows), job.number),
            )
        self._changed(job.id)

    def finish(self, job: StoredJob, state: str, problem: dict[str, Any] | None = None) -> None:
        """End a running job.

        Args:
            job: The job.
            state: done, failed or cancelled.
            problem: Why it failed.
        """
        with self._writing() as db:
            db.execute(
                "UPDATE jobs SET state = ?, finished = ?, problem = ?, version = version + 1 WHERE number = ?",
                (state, time.time(), None if problem is None else json.dumps(problem), job.number),
            )
        self._changed(job.id)

    def requeue(self, job: StoredJob) -> None:
        """Put a running job back into the queue: it was stopped, and it is not its fault.

        Args:
            job: The job.
        """
        with self._writing() as db:
            db.execute(
                "UPDATE jobs SET state = 'queued', attempts = max(attempts - 1, 0), version = version + 1 "
                "WHERE number = ?",
                (job.number,),
            )
        self._changed(job.id)

    def cancel(self, id: str) -> StoredJob:
        """Ask a job to stop. One that waits is over at once, one that is over stays as it is.

        Args:
            id: Its id.

        Returns:
            The job as it stands.
        """
        self.get(id)
        with self._writing() as db:
            db.execute(
                "UPDATE jobs SET state = 'cancelled', finished = ?, cancel_requested = 1, version = version + 1 "
                "WHERE id = ? AND state = 'queued'",
                (time.time(), id),
            )
            db.execute(
                "UPDATE jobs SET cancel_requested = 1, version = version + 1 "
                "WHERE id = ? AND state = 'running' AND NOT cancel_requested",
                (id,),
            )
        self.cancelled.add(id)
        return self._changed(id)

    def request(self, job: StoredJob) -> str:
        """Return a job's request as JSON text."""
        return str(self._reading("SELECT request FROM jobs WHERE number = ?", (job.number,))[0][0])

    def positions(self, job: StoredJob) -> set[int]:
        """Return the positions that a job has items for."""
        return {row[0] for row in self._reading("SELECT position FROM items WHERE job = ?", (job.number,))}

    def items(self, job: StoredJob) -> Iterator[Item]:
        """Read a job's items, some at a time.

        Args:
            job: The job.

        Yields:
            Positions, ascending, with their bodies.
        """
        last = -1
        while True:
            rows = self._reading(
                "SELECT position, body FROM items WHERE job = ? AND position > ? ORDER BY position LIMIT ?",
                (job.number, last, READ_ITEMS),
            )
            for row in rows:
                last = row["position"]
                yield last, json.loads(row["body"])
            if len(rows) < READ_ITEMS:
                return

    def expire(self, retention_seconds: float) -> int:
        """Forget jobs that were over long ago, with their items.

        Args:
            retention_seconds: How long they are kept.

        Returns:
            How many were forgotten.
        """
        before = time.time() - retention_seconds
        old = [row["id"] for row in self._reading("SELECT id FROM jobs WHERE finished < ?", (before,))]
        if not old:
            return 0
        with self._writing() as db:
            db.executemany("DELETE FROM jobs WHERE id = ?", [(id,) for id in old])
        for id in old:
            self.versions.pop(id, None)
            self.cancelled.discard(id)
        self._reading("PRAGMA incremental_vacuum")
        return len(old)

    def _changed(self, id: str) -> StoredJob:
        job = self.get(id)
        self.versions[id] = job.version
        return job
