"""The path and query parameters that several routes share."""

from typing import Annotated

from fastapi import Path, Query

from service.schemas.questions import Split
from service.schemas.values import LARGEST_INTEGER

IndexName = Annotated[
    str, Path(description="The name of an index, as GET /v1/indexes lists them.", examples=["digits"])
]
RowNumber = Annotated[int, Path(ge=0, le=LARGEST_INTEGER, description="A row number, from 0.", examples=[12])]
SplitName = Annotated[Split, Query(description="The training set, or the query set sketched at build.")]
