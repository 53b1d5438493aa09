"""The jobs of a service: judged, accepted, done in the background, read. What the routes ask."""

import hashlib
import json
from collections.abc import Callable
from datetime import UTC, datetime

import structlog
from pydantic import TypeAdapter

from service.caller import ANYONE, Caller
from service.engine import Engine
from service.errors import LimitExceededError, UnknownIndexError, UnknownJobError
from service.jobs.attributions import AttributionsWork
from service.jobs.coreset import CoresetWork
from service.jobs.evaluation import EvaluationWork
from service.jobs.runner import Runner
from service.jobs.store import JobStore
from service.jobs.stored_job import NewJob, StoredJob
from service.jobs.work import Work
from service.schemas.groups import GroupsByColumn
from service.schemas.jobs import OVER, AttributionsJob, CoresetJob, EvaluationJob, Job, JobRequest, Progress
from service.schemas.questions import AttributionRequest
from service.settings import Settings

log = structlog.get_logger("service")

REQUESTS: TypeAdapter[JobRequest] = TypeAdapter(JobRequest)
#: Longest that a stop waits for the steps that jobs are making; what is stored does not depend on it.
STOP_SECONDS = 10.0


class Jobs:
    """A store of jobs and the threads that do them.

    Args:
        settings: Where they are stored and what they may ask for.
        engine: The indexes.
        limits: Refuses an attribution request that asks for more than the service allows.

    Attributes:
        store: The jobs on disk.
    """

    def __init__(self, settings: Settings, engine: Engine, limits: Callable[[str, AttributionRequest], None]) -> None:
        assert settings.job_store is not None, "who makes one has a place for it"
        self._settings = settings
        self._engine = engine
        self._limits = limits
        self._path = settings.job_store
        self.store = JobStore(self._path)  # here, so that a service whose store is not sound does not start to listen
        self._runner = self._new_runner()

    @property
    def stopping(self) -> bool:
        """Whether no job gets on any more."""
        return self._runner.stopping

    def count(self, state: str) -> int:
        """Return how many jobs are in a state."""
        return self.store.page(state, 0, 0)[1]

    def start(self) -> None:
        """Take up what an earlier process left, and begin; also after a stop."""
        if self.store.closed:
            self.store = JobStore(self._path)
            self._runner = self._new_runner()
        self._runner.start()

    def stop(self) -> None:
        """Stop after the steps being made, and close the store."""
        self._runner.stop(STOP_SECONDS)
        self.store.close()

    def submit(
        self, asked: AttributionsJob | CoresetJob | EvaluationJob, key: str | None, caller: Caller = ANYONE
    ) -> StoredJob:
        """Judge a job and accept it: when this returns it is on disk.

        Args:
            asked: The job.
            key: The client's idempotency key.
            caller: Whose job it will be.

        Returns:
            The job; the one there was where the key came with this request before.
        """
        caller.check_index(asked.index, self._engine.names)
        request = asked.model_dump_json(exclude_unset=True)
        digest = hashlib.sha256(json.dumps(json.loads(request), sort_keys=True).encode()).hexdigest()
        if key is not None and (known := self.store.known(key, digest, caller.name)) is not None:
            return known
        self._check_limits(asked)
        work, revision = self._make(asked, "")
        new = NewJob(asked.type, asked.index, revision, request, digest, work.total, caller.name)
        job = self.store.create(new, key, self._settings.max_queued_jobs)
        self._runner.wake()
        log.info("job accepted", job=job.id, type=job.type, index=job.index_name, total=job.total)
        return job

    def find(self, id: str, caller: Caller) -> StoredJob:
        """Read a job.

        Args:
            id: Its id.
            caller: Who asks.

        Returns:
            The job as it stands.

        Raises:
            UnknownJobError: If there is none, or it does not exist for this caller.
        """
        job = self.store.get(id)
        if not (caller.sees(job.index_name) and (caller.kind == "admin" or caller.name == job.owner)):
            raise UnknownJobError(id)
        return job

    def cancel(self, id: str, caller: Caller) -> StoredJob:
        """Ask a job to stop.

        Args:
            id: Its id.
            caller: Who asks.

        Returns:
            The job as it stands.
        """
        return self.store.cancel(self.find(id, caller).id)

    def page(self, state: str | None, offset: int, limit: int, caller: Caller) -> tuple[list[StoredJob], int]:
        """Read some of the jobs that exist for a caller, the newest first.

        Args:
            state: Only those in this state; None: all.
            offset: How many to pass over.
            limit: How many to read.
            caller: Who asks.

        Returns:
            The jobs, and how many there are.
        """
        owner = None if caller.kind == "admin" else caller.name
        return self.store.page(state, offset, limit, owner, caller.indexes)

    def describe(self, job: StoredJob) -> Job:
        """Say what clients see of a job.

        Args:
            job: The job.

        Returns:
            Its description.
        """
        over = job.finished is not None
        return Job.model_validate(
            {
                "id": job.id,
                "type": job.type,
                "index": job.index_name,
                "revision": job.revision,
                "state": job.state,
                "progress": Progress(done=job.done, total=job.total),
                "created_at": _moment(job.created),
                "started_at": None if job.started is None else _moment(job.started),
                "finished_at": _moment(job.finished) if job.finished is not None else None,
                "expires_at": _moment((job.finished or 0) + self._settings.job_retention_seconds) if over else None,
                "cancel_requested": job.cancel_requested,
                "result_url": f"/v1/jobs/{job.id}/result",
                "events_url": f"/v1/jobs/{job.id}/events",
                "warnings": job.warnings,
                "problem": job.problem,
            }
        )

    def _new_runner(self) -> Runner:
        settings = self._settings
        return Runner(self.store, self._begin, self._revision_of, settings.job_workers, settings.job_retention_seconds)

    def _check_limits(self, asked: AttributionsJob | CoresetJob | EvaluationJob) -> None:
        most = self._settings.max_job_requests
        match asked:
            case AttributionsJob():
                _check_length("requests", len(asked.requests), "max_job_requests", most)
            case EvaluationJob():
                named = {} if isinstance(asked.groups, GroupsByColumn) else asked.groups
                _check_length("queries", len(asked.queries), "max_job_requests", most)
                _check_length("groups", len(named), "max_groups", self._settings.max_groups)
                _check_length("groups", sum(map(len, named.values())), "max_ids", self._settings.max_ids)
                _check_length("exclude_ids", len(asked.exclude_ids or ()), "max_ids", self._settings.max_ids)

    def _begin(self, job: StoredJob) -> tuple[Work, str]:
        if job.index_name not in self._engine.names:  # without the names there are: the job's owner may not see them
            raise UnknownIndexError(job.index_name, ())
        return self._make(REQUESTS.validate_json(self.store.request(job)), job.id)

    def _make(self, asked: AttributionsJob | CoresetJob | EvaluationJob, job_id: str) -> tuple[Work, str]:
        served = self._engine.served(asked.index)
        work: Work
        match asked:
            case AttributionsJob():
                work = AttributionsWork(
                    served, asked, lambda item: self._limits(asked.index, item), self._settings.job_threads, job_id
                )
            case CoresetJob():
                work = CoresetWork(served, asked)
            case _:
                work = EvaluationWork(served, asked, self._settings.max_groups, job_id)
        return work, served.index.revision

    def _revision_of(self, index: str) -> str:
        return self._engine.served(index).index.revision


def is_over(job: StoredJob) -> bool:
    """Return whether a job is done, failed or cancelled."""
    return job.state in OVER


def _check_length(name: str, length: int, limit: str, most: int) -> None:
    if length > most:
        raise LimitExceededError(
            f"{name}: {length} is more than this service allows in one job ({limit} is {most})",
            pointer=f"/{name}",
            allowed={limit: most},
        )


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
