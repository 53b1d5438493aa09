"""A job of many attribution requests: each item is what the request would have been answered alone."""

import itertools
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

from service.jobs.stopping import StopJob
from service.jobs.stored_job import Item
from service.jobs.work import Check, StoredItems
from service.problems import problem_of
from service.schemas.jobs import AttributionsJob
from service.schemas.questions import AttributionRequest
from service.served_index import ServedIndex
from sketchstore.errors import CorruptIndexError

#: Requests handed to the threads before their answers are stored, for each thread.
AHEAD = 4


class AttributionsWork:
    """Requests answered by a few threads, which share the scans of the index.

    Args:
        served: The index at one revision.
        asked: The job.
        limits: Refuses a request that asks for more than the service allows.
        threads: How many requests are answered at the same time.
        job_id: What problems name as the request that they answer.
    """

    def __init__(
        self,
        served: ServedIndex,
        asked: AttributionsJob,
        limits: Callable[[AttributionRequest], None],
        threads: int,
        job_id: str,
    ) -> None:
        self.total = len(asked.requests)
        self.facts: dict[str, Any] = {}
        self.warnings: list[str] = []
        self._served = served
        self._requests = asked.requests
        self._limits = limits
        self._threads = threads
        self._job_id = job_id

    def run(self, stored: StoredItems, check: Check) -> Iterator[list[Item]]:
        """Answer the requests without an item.

        Args:
            stored: The items there are.
            check: Called between steps; raises to stop.

        Yields:
            Items as they are ready.
        """
        known = stored.positions()
        missing = (position for position in range(self.total) if position not in known)
        halted = threading.Event()

        def check_both() -> None:
            if halted.is_set():
                raise StopJob
            check()

        with ThreadPoolExecutor(self._threads, thread_name_prefix="job") as pool:
            try:
                pending: set[Future[Item]] = set()
                while True:
                    room = self._threads * AHEAD - len(pending)
                    for position in itertools.islice(missing, room):
                        pending.add(pool.submit(self._item, position, check_both))
                    if not pending:
                        return
                    done, pending = wait(pending, return_when=FIRST_COMPLETED)
                    yield [future.result() for future in done]
            finally:  # what nobody waits for any longer ends at its next step
                halted.set()
                pool.shutdown(cancel_futures=True)

    def _item(self, position: int, check: Check) -> Item:
        asked = self._requests[position]
        check()
        try:
            request = AttributionRequest.model_validate(asked)
            self._limits(request)
            # Timings are of this run, not of the answer: an item is the same whenever it is made.
            answer = self._served.attribute(request, check).model_copy(update={"timings_ms": {}})
            return position, {"position": position, "status": 200, "body": json.loads(answer.model_dump_json())}
        except (StopJob, CorruptIndexError, FileNotFoundError):
            raise  # of the whole job: a new revision may have taken the files away
        except Exception as error:
            problem = problem_of(error, self._job_id, body=asked).problem
            body = problem.model_dump(mode="json", exclude_none=True)
            return position, {"position": position, "status": problem.status, "body": body}
