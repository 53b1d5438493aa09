"""Long work: what a client may hand in as a job, and what the service says about one."""

from typing import Annotated, Any, Literal

from pydantic import Field

from service.schemas.groups import WantedGroups
from service.schemas.problem import Problem
from service.schemas.questions import Criterion, Query, Target
from service.schemas.values import Id, Ids, Label, Positive, PositiveCount, Request, Response

JobState = Literal["queued", "running", "done", "failed", "cancelled"]
OVER: frozenset[JobState] = frozenset({"done", "failed", "cancelled"})
Rule = Literal["infogain", "infogain_approx", "infoloss"]
Weighting = Literal["inverse_variance", "uniform"]
JOB_TYPES = ("attributions", "coreset", "evaluation")


class AttributionsJob(Request):
    """Many attribution requests; one item each, in order, an answer or a problem."""

    type: Literal["attributions"]
    index: Id = Field(examples=["digits"])
    requests: list[dict[str, Any]] = Field(
        min_length=1, description="Attribution requests, each judged on its own as if it had been sent alone."
    )


class NoisyJob(Request):
    """What jobs about one noise share."""

    noise_variance: Positive | None = Field(
        default=None, description="σ² in squared measurement units. Not together with relative_noise."
    )
    relative_noise: Positive | None = Field(
        default=None,
        description="σ² in units of the mean squared norm of the comparable rows. Neither: the index's tuned default, "
        "else 1.0 with a warning.",
    )


class CoresetJob(NoisyJob):
    """The training rows that together inform many stored queries; one item for each pick."""

    type: Literal["coreset"]
    index: Id = Field(examples=["digits"])
    budget: PositiveCount = Field(description="How many rows to select.")
    rule: Rule = Field(default="infogain", description="The rule that picks.")
    weighting: Weighting = Field(
        default="inverse_variance", description="Whether what little is unknown counts as much as what much is."
    )
    num_queries: PositiveCount | None = Field(default=None, description="The first so many stored queries; null: all.")
    label: Label | None = Field(
        default=None, description="Only queries that the model gives this label; needed on an own-label index."
    )
    quota_per_label: PositiveCount | None = Field(default=None, description="The most rows of each label.")


class EvaluationJob(NoisyJob):
    """What given subsets tell each of many queries; one item for each query."""

    type: Literal["evaluation"]
    index: Id = Field(examples=["digits"])
    queries: list[Query] = Field(min_length=1)
    target: Target | None = Field(
        default=None, description="The explained class, of every query; omitted: the predicted one."
    )
    groups: WantedGroups = Field(
        description='The subsets: {"by": a metadata column}, or ids by the subset\'s name.',
        examples=[{"by": "source"}],
    )
    criteria: list[Criterion] = Field(
        default=["infogain", "infoloss"], min_length=1, max_length=2, description="Which nats to compute."
    )
    exclude_ids: Ids | None = Field(default=None, description="Rows to leave out of D and of every subset.")


JobRequest = Annotated[AttributionsJob | CoresetJob | EvaluationJob, Field(discriminator="type")]


class Progress(Response):
    """How far a job is."""

    done: int = Field(description="Items that are stored.")
    total: int = Field(description="Items there can be; a coreset may end with fewer.")


class Job(Response):
    """A job as it stands."""

    id: str
    type: str
    index: str
    revision: str = Field(description="The revision its items are of.")
    state: JobState
    progress: Progress
    created_at: str = Field(description="UTC, ISO 8601.")
    started_at: str | None
    finished_at: str | None
    expires_at: str | None = Field(description="When the job and its items are forgotten; null until it is over.")
    cancel_requested: bool
    result_url: str = Field(description="Where its items are once it is over; also those of one that was cancelled.")
    events_url: str = Field(description="Where its progress can be followed as server-sent events.")
    warnings: list[str]
    problem: Problem | None = Field(description="Why it failed.")


class JobPage(Response):
    """Some jobs, the newest first."""

    jobs: list[Job]
    total: int


class JobResult(Response):
    """A job that is over, with its items in order."""

    job: Job
    facts: dict[str, Any] = Field(description="What holds for all items: noise, criterion, candidates.")
    items: list[dict[str, Any]] = Field(
        description="attributions and evaluation: {position, status, body}, a body or a problem; coreset: the picks."
    )
