"""An error as RFC 9457 problem details, the only shape an error has."""

from typing import Any

from pydantic import Field

from service.schemas.values import Response


class ProblemItem(Response):
    """One thing that is wrong with a request."""

    code: str
    detail: str
    pointer: str | None = Field(default=None, description='JSON pointer into the request body; "" is the body itself.')
    parameter: str | None = Field(default=None, description="The path or query parameter at fault.")
    allowed: Any = Field(default=None, description="What would have been accepted.")


class Problem(Response):
    """Problem details."""

    type: str = Field(examples=["urn:nattribute:problem:budget_too_large"])
    title: str
    status: int
    detail: str
    code: str = Field(description="Stable; branch on this.")
    request_id: str
    errors: list[ProblemItem] = Field(default_factory=list)
