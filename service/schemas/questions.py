"""What a client may ask: the query in its four forms, the attribution request, scores, sketches."""

from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

from service.schemas.values import (
    Count,
    FiniteJson,
    Flag,
    Id,
    Ids,
    Label,
    NotNegative,
    Number,
    Positive,
    PositiveCount,
    Request,
    Scalar,
    TargetLabel,
    Text,
)

Method = Literal["infogain_approx", "infogain", "infoloss", "trak", "graddot", "repsim", "relatif", "random"]
Baseline = Literal["trak", "graddot", "repsim", "relatif"]
Criterion = Literal["infogain", "infoloss"]
Split = Literal["train", "query"]
Strategy = Literal["certified", "literal"]
Condition = Literal["comparable", "pool"]
Bound = Text | Number


class RowQuery(Request):
    """A stored row: of the query set sketched at build, or of the training set."""

    type: Literal["row"]
    split: Split = Field(default="query", description="The set the row is in.")
    row: Count = Field(description="The row number, from 0.", examples=[12])
    include_self: Flag = Field(
        default=False, description="Only for split train: whether the row itself stays among the candidates and in D."
    )


class TrainIdQuery(Request):
    """A training example by its id."""

    type: Literal["train_id"]
    id: Id = Field(examples=["train:17"])
    include_self: Flag = Field(
        default=False, description="Whether the example itself stays among the candidates and in D."
    )


class ExampleQuery(Request):
    """An example sent as content; the index's recipe parses it, its model and sketch turn it into a query."""

    type: Literal["example"]
    content: dict[str, FiniteJson] = Field(
        description='What the recipe\'s parse() reads; for images {"image": base64 of a PNG} or {"pixels": [[…]]}.'
    )


class SketchQuery(Request):
    """A sketch computed elsewhere, by this index's sketch specification."""

    type: Literal["sketch"]
    values: list[Number] = Field(min_length=1, description="The sketch in measurement units, sketch_dim numbers.")
    label: Label | None = Field(default=None, description="The class whose measurement was sketched.")


Query = Annotated[RowQuery | TrainIdQuery | ExampleQuery | SketchQuery, Field(discriminator="type")]
QUERY_TYPES = ("row", "train_id", "example", "sketch")


class Target(Request):
    """Which class's measurement is explained."""

    label: TargetLabel = Field(
        description="The model's prediction for the query, its true label, or a label.", examples=["predicted"]
    )


class Bounds(Request):
    """Bounds of a metadata value: numbers, or texts in the order of their characters, such as dates in ISO form."""

    gt: Bound | None = Field(default=None, description="Greater than this.")
    gte: Bound | None = Field(default=None, description="This or greater.")
    lt: Bound | None = Field(default=None, description="Less than this.")
    lte: Bound | None = Field(default=None, description="This or less.")

    @model_validator(mode="after")
    def some(self) -> Self:
        """Refuse an object without a bound.

        Returns:
            The same bounds.

        Raises:
            ValueError: If there is none.
        """
        if not self.given():
            raise ValueError("no bound")
        return self

    @model_serializer
    def given(self) -> dict[str, str | float]:
        """Return the bounds that there are."""
        return {name: value for name in ("gt", "gte", "lt", "lte") if (value := getattr(self, name)) is not None}


def name_the_conditions(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    """Validate a metadata condition and refuse anything else in one sentence instead of one for each union member.

    Args:
        value: What the request holds.
        validate: Pydantic's own validation of the union.

    Returns:
        A value, null, a list or bounds.

    Raises:
        PydanticCustomError: If it is none of these.
    """
    try:
        return validate(value)
    except ValidationError as error:
        raise PydanticCustomError(
            "invalid_condition",
            "a condition is a value, null, a list of them, or bounds",
            {
                "allowed": [
                    "a string, number or boolean",
                    "null",
                    "an array of these",
                    "an object with gt, gte, lt or lte",
                ]
            },
        ) from error


MetadataCondition = Annotated[Scalar | list[Scalar | None] | Bounds | None, WrapValidator(name_the_conditions)]


class CandidateFilter(Request):
    """Which rows may be chosen. Several conditions are joined by and."""

    labels: list[Label] | None = Field(default=None, min_length=1, description="Only rows with one of these labels.")
    ids: Ids | None = Field(default=None, min_length=1, description="Only these rows.")
    exclude_ids: Ids | None = Field(default=None, description="Rows to leave out of the candidates and of D.")
    where: dict[Id, MetadataCondition] | None = Field(
        default=None,
        description="Only rows whose metadata have these values; a list means any of them, null a row without a value, "
        "an object bounds: gt, gte, lt, lte.",
        examples=[{"source": ["web", "book"], "year": {"gte": 2019, "lt": 2024}}],
    )


class Asked(Request):
    """What every question about one query holds."""

    query: Query
    target: Target | None = Field(
        default=None,
        description="The explained class; omitted: the predicted one, or the label the stored sketch belongs to.",
    )
    noise_variance: Positive | None = Field(
        default=None, description="σ² in squared measurement units. Not together with relative_noise."
    )
    relative_noise: Positive | None = Field(
        default=None,
        description="σ² in units of the mean squared norm of the comparable rows. Neither: the index's tuned default, "
        "else 1.0 with a warning.",
    )
    condition: Condition = Field(
        default="comparable",
        description="D of InfoLoss and of available_nats: every comparable row, or the candidates.",
    )


class AttributionRequest(Asked):
    """Which training examples inform this prediction?"""

    method: Method = Field(
        default="infogain_approx",
        description="The rule that picks; the index card lists those that the index can serve.",
    )
    budget: PositiveCount = Field(
        default=10, description="How many examples to pick; at most the candidates there are."
    )
    filter: CandidateFilter | None = Field(
        default=None, description="Limits the candidates; omitted on an own-label index: the target's label."
    )
    clip_budget: Flag = Field(default=False, description="Take a budget larger than the pool as the whole pool.")
    strategy: Strategy = Field(
        default="certified", description="As few index queries as the bounds allow, or the paper's loop of two a step."
    )
    rescore: list[Criterion] = Field(
        default_factory=list, max_length=2, description="Further exact nats of the chosen set to compute."
    )
    available: Flag | None = Field(
        default=None,
        description="Whether to compute what all of D knows; null: where cached matrices make it cheap.",
    )
    min_step_nats: NotNegative | None = Field(default=None, description="Stop before a step that adds less than this.")
    information_fraction: Annotated[Number, Field(gt=0, le=1)] | None = Field(
        default=None, description="Stop when the set carries this share of available_nats."
    )
    seed: Count = Field(default=0, description="The seed of method random.")
    include_metadata: Flag = Field(default=False, description="Whether each hit comes with its example's metadata.")


class ScoresRequest(Asked):
    """Exact nats of a given set and of each of its members alone."""

    ids: Ids = Field(min_length=1, description="The training ids to score.", examples=[["train:402", "train:17"]])
    criteria: list[Criterion] = Field(
        default=["infogain", "infoloss"], min_length=1, max_length=2, description="Which nats to compute."
    )
    methods: list[Baseline] = Field(
        default_factory=list, max_length=4, description="Other methods whose scores of each member are wanted."
    )
    exclude_ids: Ids | None = Field(default=None, description="Rows to leave out of D.")


class SketchesRequest(Request):
    """Queries to turn into sketches."""

    queries: list[Query] = Field(min_length=1)
    target: Target | None = Field(
        default=None, description="The class whose measurement is sketched; omitted: the predicted one."
    )


class BatchRequest(Request):
    """Attribution requests to answer one by one; a bad one does not spoil the others."""

    requests: list[dict[str, Any]] = Field(
        min_length=1, description="Attribution requests, each judged on its own as if it had been sent alone."
    )
