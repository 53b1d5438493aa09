"""What every route needs: the engine, the workplace, the settings, the metrics of this app."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request

from service.engine import Engine
from service.errors import JobStoreError, LimitExceededError, UnsupportedMediaTypeError, refuse
from service.jobs.jobs import Jobs
from service.metrics import Metrics
from service.schemas.answers import Answer, AnswerFacts, Hit, ScoresResponse, SketchesResponse, StreamStart
from service.schemas.groups import GroupsByColumn, InformationRequest, InformationResponse
from service.schemas.questions import AttributionRequest, ScoresRequest, SketchesRequest
from service.settings import Settings
from service.tracing import Tracing
from service.workplace import Deadline, Workplace


@dataclass
class State:
    """The parts of one running service.

    Attributes:
        settings: Its settings.
        engine: Its indexes.
        workplace: Where it computes.
        metrics: What it counts.
        ready: Whether it takes requests.
        draining: Whether it was told to stop: what is in flight is finished, nothing more is begun.
        in_flight: Requests let in and not yet answered in full.
        jobs: Its long work; None where the settings name no place for it.
        tracing: What traces its requests.
    """

    settings: Settings
    engine: Engine
    workplace: Workplace
    metrics: Metrics
    ready: bool = False
    draining: bool = False
    in_flight: int = 0
    jobs: Jobs | None = None
    tracing: Tracing = field(default_factory=Tracing)

    def drain(self) -> None:
        """Begin nothing more; safe in a signal handler."""
        self.draining = True
        self.ready = False

    def jobs_or_refuse(self) -> Jobs:
        """Return the jobs.

        Returns:
            The jobs of this service.

        Raises:
            JobStoreError: If it has no place to store any.
        """
        if self.jobs is None:
            raise JobStoreError(
                "this service has no place to store jobs: start it with --job-store FILE, on a disk that stays"
            )
        return self.jobs

    @property
    def shows_previews(self) -> bool:
        """Whether stored previews are shown."""
        return not self.settings.no_previews

    def deadline(self) -> Deadline:
        """Return the clock of a request, started."""
        return Deadline(self.settings.deadline_seconds)

    def check_length(self, name: str, length: int, limit: str, *, parameter: bool = False) -> None:
        """Refuse more of something than a setting allows.

        Args:
            name: The field or parameter.
            length: How much of it there is.
            limit: The setting.
            parameter: Whether it is a query parameter rather than a field of the body.

        Raises:
            LimitExceededError: If there is too much.
        """
        most = getattr(self.settings, limit)
        if length > most:
            raise LimitExceededError(
                f"{name.replace('/', '.')}: {length} is more than this service allows at once ({limit} is {most})",
                pointer=None if parameter else f"/{name}",
                parameter=name if parameter else None,
                allowed={limit: most},
            )

    def attribute(self, index: str, asked: AttributionRequest, deadline: Deadline) -> Answer:
        """Answer an attribution request in the calling thread, within the limits.

        Args:
            index: The index asked.
            asked: The request.
            deadline: When to stop.

        Returns:
            The answer.
        """
        self.check_attribution(index, asked)
        return self.engine.attribute(asked, index, deadline.check)

    def stream(
        self, index: str, asked: AttributionRequest, deadline: Deadline
    ) -> Iterator[StreamStart | Hit | AnswerFacts]:
        """Judge an attribution request in the calling thread, within the limits; the parts of its answer follow.

        Args:
            index: The index asked.
            asked: The request.
            deadline: When to stop.

        Returns:
            The parts, made when they are asked for.
        """
        self.check_attribution(index, asked)
        return self.engine.stream(asked, index, deadline.check)

    def score(self, index: str, asked: ScoresRequest, deadline: Deadline) -> ScoresResponse:
        """Rescore a set in the calling thread, within the limits.

        Args:
            index: The index asked.
            asked: The request.
            deadline: When to stop.

        Returns:
            The nats.
        """
        self._check_lengths(
            ("ids", len(asked.ids), "max_ids"), ("exclude_ids", len(asked.exclude_ids or ()), "max_ids")
        )
        return self.engine.score(asked, index, deadline.check)

    def inform(self, index: str, asked: InformationRequest, deadline: Deadline) -> InformationResponse:
        """Compute what groups tell in the calling thread, within the limits.

        Args:
            index: The index asked.
            asked: The request.
            deadline: When to stop.

        Returns:
            The nats.
        """
        named = {} if isinstance(asked.groups, GroupsByColumn) else asked.groups
        self._check_lengths(
            ("queries", len(asked.queries or ()), "max_queries"),
            ("exclude_ids", len(asked.exclude_ids or ()), "max_ids"),
            ("groups", len(named), "max_groups"),
            ("groups", sum(map(len, named.values())), "max_ids"),
        )
        return self.engine.inform(asked, index, self.settings.max_groups, deadline.check)

    def sketch(self, index: str, asked: SketchesRequest, deadline: Deadline) -> SketchesResponse:
        """Sketch queries in the calling thread, within the limits.

        Args:
            index: The index asked.
            asked: The request.
            deadline: When to stop.

        Returns:
            The sketches.
        """
        self.check_length("queries", len(asked.queries), "max_batch")
        return self.engine.sketch(asked, index, deadline.check)

    def check_attribution(self, index: str, asked: AttributionRequest) -> None:
        """Refuse an attribution request that asks for more than the settings allow.

        Args:
            index: The index asked.
            asked: The request.
        """
        if asked.filter is not None:
            self._check_lengths(
                ("filter/ids", len(asked.filter.ids or ()), "max_ids"),
                ("filter/exclude_ids", len(asked.filter.exclude_ids or ()), "max_ids"),
            )
        try:
            self.check_length("budget", asked.budget, "max_budget")
        except LimitExceededError as error:
            served = self.engine.served(index)
            found = [mistake for mistake in served.mistakes(asked) if mistake.pointer != error.pointer]
            refuse([error, *found], error)

    def _check_lengths(self, *lengths: tuple[str, int, str]) -> None:
        found = []
        for name, length, limit in lengths:
            try:
                self.check_length(name, length, limit)
            except LimitExceededError as error:
                found.append(error)
        if found:
            refuse(found)


async def state_of(request: Request) -> State:
    """Return the parts of the service a request came to."""
    state: State = request.app.state.service
    return state


async def require_json(request: Request) -> None:
    """Refuse a body that does not say it is JSON: a browser's form cannot reach the service across sites.

    Args:
        request: The request.

    Raises:
        UnsupportedMediaTypeError: If the Content-Type is another one or none.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise UnsupportedMediaTypeError(
            f"the body must be JSON, not {media_type or 'of no named type'}; send Content-Type: application/json",
            allowed=["application/json"],
        )


Service = Annotated[State, Depends(state_of)]
JsonBody = Depends(require_json)
