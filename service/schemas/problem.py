"""An error as RFC 9457 problem details, the only shape an error has."""

from typing import Any

from pydantic import Field

from service.schemas.values import Response

TYPE_PREFIX = "urn:nattribute:problem:"


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
    request_id: str = Field(description="Empty where the client itself found the mistake.")
    errors: list[ProblemItem] = Field(default_factory=list)


def make_problem(
    status: int, code: str, title: str, detail: str, request_id: str, errors: list[ProblemItem] | None = None
) -> Problem:
    """Assemble a problem; its type is the code as a URN.

    Args:
        status: HTTP status.
        code: Stable name.
        title: The kind in words.
        detail: This occurrence in words.
        request_id: The request it answers.
        errors: What is wrong with the request, item by item.

    Returns:
        The problem.
    """
    return Problem(
        type=TYPE_PREFIX + code,
        title=title,
        status=status,
        detail=detail,
        code=code,
        request_id=request_id,
        errors=errors or [],
    )
