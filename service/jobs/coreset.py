"""A job that selects a coreset: each item is one pick, and a resumed selection takes the stored picks as made."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from attribution.errors import TableSizeError
from indexer.attributor import QuestionError
from indexer.attributor.coreset import Coreset, CoresetQuestion
from indexer.attributor.noise import naming_the_noise
from service.errors import LimitExceededError
from service.jobs.stored_job import Item, finite
from service.jobs.work import Check, StoredItems
from service.schemas.jobs import CoresetJob
from service.served_index import ServedIndex


class CoresetWork:
    """A greedy selection for many stored queries.

    Args:
        served: The index at one revision.
        asked: The job.
    """

    def __init__(self, served: ServedIndex, asked: CoresetJob) -> None:
        question = CoresetQuestion(
            budget=asked.budget,
            rule=asked.rule,
            weighting=asked.weighting,
            num_queries=asked.num_queries,
            label=asked.label,
            quota_per_label=asked.quota_per_label,
            noise_variance=asked.noise_variance,
            relative_noise=asked.relative_noise,
        )
        try:
            self._coreset = Coreset(served.index, question)
        except QuestionError as error:
            if error.pointer == "/queries":  # what the command line calls it
                error.pointer = "/num_queries"
            raise
        except TableSizeError as error:
            raise LimitExceededError(str(error), pointer="/num_queries") from error
        noise = self._coreset.noise
        self.total = asked.budget
        self.facts: dict[str, Any] = {
            "rule": asked.rule,
            "weighting": asked.weighting,
            "noise_variance": noise.variance,
            "relative_noise": noise.relative,
            "nats_criterion": self._coreset.nats_criterion,
            "num_queries": self._coreset.num_queries,
            "candidates": self._coreset.candidates,
        }
        self.warnings: list[str] = [] if noise.warning is None else [noise.warning]

    def run(self, stored: StoredItems, check: Check) -> Iterator[list[Item]]:
        """Pick the rows that are missing.

        Args:
            stored: The picks there are.
            check: Called before every pick; raises to stop.

        Yields:
            One pick at a time.
        """
        picked = [int(body["row"]) for _, body in stored.items()]
        check()
        with naming_the_noise(self._coreset.index, self._coreset.first_query, self._coreset.question.noise_variance):
            for pick in self._coreset.picks(picked):
                position = pick.rank - 1
                yield [(position, {"position": position, **asdict(pick), "mean_nats": finite(pick.mean_nats)})]
                check()
