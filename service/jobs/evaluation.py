"""A job that evaluates subsets: each item is what every subset tells one query, and what is lost without it."""

from collections.abc import Iterator, Sequence
from typing import Any

from indexer.attributor import GroupNats, GroupQuestion, QuerySketch
from indexer.attributor.pool import rows_to_exclude
from indexer.attributor.questions import check_noise
from service.group_answers import groups_of
from service.jobs.stored_job import Item, finite
from service.jobs.work import Check, StoredItems
from service.problems import problem_of
from service.query_resolver import MISTAKES
from service.schemas.jobs import EvaluationJob
from service.served_index import ServedIndex

#: At most so many queries are evaluated with one factorisation of every subset.
LARGEST_CHUNK = 512
#: A job that has the queries makes so many chunks at least: there is progress to see, and something to keep or resume.
FEWEST_CHUNKS = 16


class EvaluationWork:
    """Subsets evaluated for many queries, some at a time.

    Args:
        served: The index at one revision.
        asked: The job.
        most_groups: How many subsets a metadata column may make.
        job_id: What problems name as the request that they answer.
    """

    def __init__(self, served: ServedIndex, asked: EvaluationJob, most_groups: int, job_id: str) -> None:
        self._served = served
        self._asked = asked
        self._job_id = job_id
        check_noise(asked.noise_variance, asked.relative_noise)
        rows_to_exclude(served.index, asked.exclude_ids or (), "/exclude_ids")
        self._groups = groups_of(served.attributor, asked.groups, most_groups)
        self.total = len(asked.queries)
        self.facts: dict[str, Any] = {
            "criteria": asked.criteria,
            "groups": [{"name": group.name, "num_rows": int(group.rows.numel())} for group in self._groups.groups],
        }
        self.warnings: list[str] = []
        if self._groups.num_without:
            self.warnings.append(f"{self._groups.num_without} rows have no value of the column and are in no group.")

    def run(self, stored: StoredItems, check: Check) -> Iterator[list[Item]]:
        """Evaluate the subsets for the queries that are missing, a chunk of queries at a time.

        Args:
            stored: The items there are.
            check: Called between queries and subsets; raises to stop.

        Yields:
            The items of one chunk.
        """
        known = stored.positions()
        # By the total alone: a resumed job makes the same chunks, so the same bits.
        chunk = max(1, min(LARGEST_CHUNK, self.total // FEWEST_CHUNKS))
        for first in range(0, self.total, chunk):
            places = range(first, min(first + chunk, self.total))
            if first not in known:  # chunks are stored whole
                yield self._evaluate(places, check)

    def _evaluate(self, places: Sequence[int], check: Check) -> list[Item]:
        items: list[Item] = []
        queries: list[QuerySketch] = []
        resolved: list[int] = []
        for place in places:
            check()
            try:
                query = self._served.queries.resolve(
                    self._asked.queries[place], self._asked.target, f"/queries/{place}"
                )[0]
            except MISTAKES as error:
                items.append(self._problem(place, error))
            else:
                queries.append(query)
                resolved.append(place)
        if not queries:
            return items
        try:
            nats = self._nats(queries, check)
        except MISTAKES as error:  # of the noise or the subsets, whatever the query
            return items + [self._problem(place, error) for place in resolved]
        return items + [(place, self._item(place, nats, number)) for number, place in enumerate(resolved)]

    def _nats(self, queries: Sequence[QuerySketch], check: Check) -> GroupNats:
        asked = self._asked
        question = GroupQuestion(
            queries=queries,
            groups=self._groups.groups,
            noise_variance=asked.noise_variance,
            relative_noise=asked.relative_noise,
            criteria=tuple(asked.criteria),
            exclude_ids=asked.exclude_ids,
        )
        return self._served.attributor.group_nats(question, check)

    def _item(self, place: int, nats: GroupNats, number: int) -> dict[str, Any]:
        noise = nats.noises[number]
        gains = [None] * len(self._groups.groups) if nats.infogain is None else nats.infogain[number].tolist()
        losses = [None] * len(self._groups.groups) if nats.infoloss is None else nats.infoloss[number].tolist()
        body = {
            "noise_variance": noise.variance,
            "relative_noise": noise.relative,
            "available_nats": finite(float(nats.available[number])),
            "groups": [
                {"name": group.name, "infogain_nats": finite(gain), "infoloss_nats": finite(loss)}
                for group, gain, loss in zip(self._groups.groups, gains, losses, strict=True)
            ],
        }
        return {"position": place, "status": 200, "body": body}

    def _problem(self, place: int, error: Exception) -> Item:
        problem = problem_of(error, self._job_id).problem
        body = problem.model_dump(mode="json", exclude_none=True)
        return place, {"position": place, "status": problem.status, "body": body}
