"""What the service says about itself, its indexes and their examples."""

from typing import Any

from pydantic import Field

from service.schemas.values import Response


class Limits(Response):
    """What one request may ask for; each is a setting."""

    max_body_bytes: int
    max_body_values: int
    max_budget: int
    max_batch: int
    max_ids: int
    max_queries: int
    max_groups: int
    max_job_requests: int
    max_queued_jobs: int
    job_retention_seconds: float
    max_page: int
    workers: int
    queue: int
    deadline_seconds: float
    client_seconds: float
    max_connections: int


class Info(Response):
    """The service."""

    name: str
    version: str
    indexes: list[str]
    methods: list[str]
    strategies: list[str]
    limits: Limits
    versions: dict[str, str] = Field(description="Versions of the libraries that compute.")
    about: list[str] = Field(description="What the numbers mean, and what they do not mean.")


class LabelFacts(Response):
    """The labels of the training set."""

    counts: dict[str, int]
    names: dict[str, str] | None


class ViewFacts(Response):
    """One view: the sketches of one measurement."""

    comparable: str = Field(description='"all": every row is comparable; "label": rows of one label are.')
    mean_squared_norm: float = Field(description="The unit of relative noise where all rows are comparable.")
    mean_squared_norm_by_label: dict[str, float]


class SketchFacts(Response):
    """The sketching matrix."""

    family: str
    dim: int
    seed: int
    num_parameters: int
    options: dict[str, Any]


class RecipeFacts(Response):
    """Where the model and the data came from, and whether queries by example can be answered."""

    name: str
    builtin: bool
    options: dict[str, Any]
    loaded: bool
    reason: str | None = Field(default=None, description="Why it is not loaded.")


class QuerySetFacts(Response):
    """The query set sketched at build."""

    count: int
    sketches: dict[str, int] = Field(description="Stored sketches by view.")


class IndexCard(Response):
    """One index: what it holds, what it can answer, and what to beware of."""

    name: str
    revision: str
    format_version: int
    num_rows: int
    dtype: str
    sketch: SketchFacts
    measurement: str
    views: dict[str, ViewFacts]
    labels: LabelFacts
    recipe: RecipeFacts
    queries: QuerySetFacts | None
    query_types: list[str] = Field(description="The forms of query it can answer.")
    methods: list[str]
    engine: str
    removed_rows: int = Field(description="Rows that were withdrawn and are still in the files; they are in no answer.")
    default_relative_noise: float | None = Field(description="The tuned noise; null: untuned, 1.0 with a warning.")
    noise_tuning: Any = Field(
        description="How the default noise was tuned: method, grid and curve; null: untuned. `of_other_rows`: rows "
        "have come or gone since; `num_rows` is of then."
    )
    query_sketch_seconds: float | None = Field(
        description="What the latest query by example cost to sketch, measured here; null without a recipe, and before "
        "the first where no stored preview can be read as an example."
    )
    distortion: Any = Field(
        description="How far the sketched kernel and its nats are from the exact ones, as measured at build; "
        "`of_other_rows`: rows have come or gone since."
    )
    warnings: list[str]


class IndexList(Response):
    """The cards of all indexes."""

    indexes: list[IndexCard]


class Example(Response):
    """One stored example."""

    row: int
    id: str
    label: int | None
    predicted_label: int | None
    metadata: dict[str, Any]
    content_type: str | None = Field(description="Media type of its stored content; null where there is none.")


class ExamplePage(Response):
    """Some consecutive examples of a split."""

    examples: list[Example]
    total: int


class Health(Response):
    """An operational state."""

    status: str
