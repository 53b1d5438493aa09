"""What groups of training examples tell predictions: the question, by ids or by a metadata column, and its nats."""

from typing import Annotated, Any, Self

from pydantic import Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from service.schemas.answers import IndexReference
from service.schemas.lengths import at_most
from service.schemas.questions import Criterion, Query, Target
from service.schemas.values import Count, Id, Ids, Positive, Request, Response


class GroupsByColumn(Request):
    """A group for each value of a metadata column."""

    by: Id = Field(
        description="Name of the metadata, for instance source; label stands for the examples' labels.",
        examples=["source"],
    )


def _kind_of_groups(value: Any) -> str:
    # A group may be called "by" as well: its value is a list then.
    by = value.get("by") if isinstance(value, dict) else getattr(value, "by", None)
    return "groups by a column" if isinstance(by, str) else "groups of ids"


GroupsOfIds = Annotated[
    dict[Id, Annotated[Ids, Field(min_length=1)]],
    Field(min_length=1, description="Ids of training examples by the group's name. Groups may overlap."),
]
WantedGroups = Annotated[
    Annotated[GroupsByColumn, Tag("groups by a column")] | Annotated[GroupsOfIds, Tag("groups of ids")],
    Discriminator(_kind_of_groups),
]


class InformationRequest(Request):
    """What do these groups tell this prediction, or these on average, and what would their withdrawal cost?"""

    query: Query | None = Field(default=None, description="One query; or give queries.")
    queries: Annotated[list[Query], at_most("max_queries")] | None = Field(
        default=None, min_length=1, description="Several queries, over which nats are averaged; or give query."
    )
    target: Target | None = Field(
        default=None, description="The explained class, of every query; omitted: the predicted one."
    )
    groups: WantedGroups = Field(
        description='{"by": a metadata column}, or ids by the group\'s name.', examples=[{"by": "source"}]
    )
    noise_variance: Positive | None = Field(
        default=None, description="σ² in squared measurement units. Not together with relative_noise."
    )
    relative_noise: Positive | None = Field(
        default=None,
        description="σ² in units of the mean squared norm of the comparable rows. Neither: the index's tuned default, "
        "else 1.0 with a warning.",
    )
    criteria: list[Criterion] = Field(
        default=["infogain", "infoloss"], min_length=1, max_length=2, description="Which nats to compute."
    )
    exclude_ids: Ids | None = Field(default=None, description="Rows to leave out of D and of every group.")
    removal_order: Count = Field(
        default=0,
        description="How many groups to withdraw one after the other, each time the one that costs most given those "
        "before it; 0 for none.",
    )

    @model_validator(mode="after")
    def _check_queries(self) -> Self:
        if (self.query is None) == (self.queries is None):
            told = "query and queries are both given" if self.query is not None else "there is no query"
            raise PydanticCustomError(
                "query_or_queries", "{told}; give one of them", {"told": told, "allowed": ["query", "queries"]}
            )
        return self


class GroupInformation(Response):
    """What one group tells."""

    name: str
    num_rows: int = Field(description="Training examples in the group.")
    num_comparable: int = Field(description="Those of them that are comparable with a query at least, and in its D.")
    infogain_nats: float | None = Field(
        description="InfoGain of the group: what it tells if it is all that is known. Mean over the queries."
    )
    infoloss_nats: float | None = Field(
        description="InfoLoss of the group: what the prediction loses if it is withdrawn. Mean over the queries."
    )
    fraction: float | None = Field(description="infogain_nats / available_nats.")


class WithdrawnGroup(Response):
    """One step of the removal order."""

    rank: int
    name: str
    step_nats: float = Field(description="InfoLoss of withdrawing it after those before it. Mean over the queries.")
    cumulative_nats: float = Field(description="InfoLoss of all groups withdrawn so far.")


class InformationResponse(Response):
    """Nats of every group."""

    index: IndexReference
    num_queries: int
    noise_variance: float | None = Field(description="Null where the queries' comparable rows differ in their unit.")
    relative_noise: float | None = Field(description="Null where the queries' comparable rows differ in their unit.")
    available_nats: float = Field(description="InfoGain of all of D: what the training set tells. Mean over queries.")
    groups: list[GroupInformation]
    removal_order: list[WithdrawnGroup]
    warnings: list[str]
    timings_ms: dict[str, float]
