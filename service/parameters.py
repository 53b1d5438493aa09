"""The path and query parameters that several routes share."""

from typing import Annotated

from fastapi import Depends, Path, Query
from pydantic import Field

from service.schemas.jobs import JobState
from service.schemas.questions import Split
from service.schemas.values import LARGEST_INTEGER, Id, Parameters

IndexName = Annotated[
    str, Path(description="The name of an index, as GET /v1/indexes lists them.", examples=["digits"])
]
RowNumber = Annotated[int, Path(ge=0, le=LARGEST_INTEGER, description="A row number, from 0.", examples=[12])]

JobId = Annotated[str, Path(description="The id of a job, as POST /v1/jobs gave it.")]


class NoParameters(Parameters):
    """The query parameters of a route that takes none."""


class OfSplit(Parameters):
    """Which split a row is of."""

    split: Split = Field(default="train", description="The training set, or the query set sketched at build.")


class Page(OfSplit):
    """Which consecutive rows of a split."""

    offset: int = Field(default=0, ge=0, le=LARGEST_INTEGER, description="The first row.")
    limit: int = Field(
        default=20, ge=1, le=LARGEST_INTEGER, description="How many rows, at most the max_page of /v1/info."
    )
    id: list[Id] = Field(
        default_factory=list,
        description="Only the examples with these ids, in this order; repeat it for several, at most max_page of them.",
    )


class JobsOf(Parameters):
    """Which jobs."""

    state: JobState | None = Field(default=None, description="Only jobs in this state; omitted: all.")
    offset: int = Field(default=0, ge=0, le=LARGEST_INTEGER, description="How many to pass over.")
    limit: int = Field(
        default=20, ge=1, le=LARGEST_INTEGER, description="How many jobs, at most the max_page of /v1/info."
    )


async def refuse_parameters(_: Annotated[NoParameters, Query()]) -> None:
    """Take no query parameter; FastAPI ignores those that a route does not declare."""


WithoutParameters = Depends(refuse_parameters)
SplitOf = Annotated[OfSplit, Query()]
PageOf = Annotated[Page, Query()]
