"""What the service answers to questions: the ordered subset with its nats, scores, sketches, batches."""

from typing import Any

from pydantic import Field

from service.schemas.values import Response


class IndexReference(Response):
    """Which index answered, at which revision."""

    name: str
    revision: str


class QueryFacts(Response):
    """The query as the index saw it."""

    label: int | None = Field(description="The class whose measurement is explained; null without classes.")
    predicted_label: int | None
    prior_variance: float = Field(description="v(x_*), in squared measurement units.")
    posterior_variance: float | None = Field(description="v(x_* | chosen set); null in a stream's start event.")


class Represents(Response):
    """Unselected candidates that are near-duplicates of a hit: kernel cosine above 0.95."""

    count: int
    ids: list[str] = Field(description="At most 20 of them.")


class Hit(Response):
    """One chosen training example."""

    rank: int
    row: int
    id: str
    label: int | None
    score: float = Field(description="The rule's value at this pick, in score_unit.")
    covariance: float = Field(
        description="Posterior covariance with the query before the pick; its sign is the sign shown."
    )
    step_nats: float
    cumulative_nats: float
    represents: Represents
    metadata: dict[str, Any] | None = Field(
        default=None,
        exclude_if=lambda metadata: metadata is None,
        description="The example's metadata; left out unless include_metadata asks for it.",
    )


class Information(Response):
    """Nats of the whole chosen set."""

    infogain_nats: float | None
    infoloss_nats: float | None
    available_nats: float | None = Field(description="InfoGain of all of D.")
    fraction: float | None = Field(description="infogain_nats / available_nats.")
    available_reason: str | None = Field(default=None, description="Why available_nats is null.")


class SearchFacts(Response):
    """How the index was searched, and whether the answer is exact."""

    engine: str = Field(description="faiss or brute_force; none where the method asks no index.")
    factory: str | None
    strategy: str | None
    exact: bool = Field(description="Whether the picks equal those of a float64 scan of all stored rows.")
    index_queries: int = Field(
        description="Vectors compared with the whole pool: ±r sent to the index are two, a scan of its codes is one."
    )
    rows_scored: int = Field(description="Rows multiplied: by the index, in few bits, or exactly.")
    bytes_read: int = Field(description="Bytes of sketches, codes and kernel columns read for it.")


class StreamStart(Response):
    """The first event of a stream: what is known before the first step."""

    index: IndexReference
    method: str
    noise_variance: float
    relative_noise: float
    query: QueryFacts
    budget: int
    candidates: int = Field(description="How many rows may be chosen.")
    nats_criterion: str
    score_unit: str
    warnings: list[str]


class AnswerFacts(Response):
    """An answer without its hits: the last event of a stream."""

    index: IndexReference
    method: str
    noise_variance: float
    relative_noise: float
    query: QueryFacts
    nats_criterion: str = Field(description="The criterion of step_nats and cumulative_nats.")
    score_unit: str
    information: Information
    search: SearchFacts
    stopped: str = Field(description="Why the selection ended.")
    warnings: list[str]
    timings_ms: dict[str, float]


class Answer(AnswerFacts):
    """The ordered subset that informs a prediction."""

    hits: list[Hit]


class BatchResult(Response):
    """One item of a batch: an answer, or a problem."""

    status: int
    body: dict[str, Any]


class BatchResponse(Response):
    """Results in the order of the requests."""

    results: list[BatchResult]


class SetScores(Response):
    """Exact nats of the whole set."""

    infogain_nats: float | None
    infoloss_nats: float | None


class MemberScores(Response):
    """Exact nats of one member alone."""

    row: int
    id: str
    infogain_nats: float | None
    infoloss_nats: float | None
    scores: dict[str, float] = Field(default_factory=dict, description="Scores of the methods asked for, by method.")


class ScoresResponse(Response):
    """Exact rescoring of a set the client named."""

    index: IndexReference
    noise_variance: float
    relative_noise: float
    set: SetScores
    members: list[MemberScores]
    warnings: list[str]


class Sketch(Response):
    """One query's sketch in measurement units."""

    values: list[float]
    label: int | None
    predicted_label: int | None


class SketchesResponse(Response):
    """Sketches in the order of the queries."""

    sketches: list[Sketch]
