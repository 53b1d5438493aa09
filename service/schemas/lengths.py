"""How long the lists of a request may be, judged before their members: refusing a million ids costs what one does."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from pydantic import BeforeValidator
from pydantic_core import PydanticCustomError

# The schemas are the client's as well, who knows no limits; the service sets its own around every request.
_limits: ContextVar[Mapping[str, int | float] | None] = ContextVar("limits", default=None)


@contextmanager
def limited(limits: Mapping[str, int | float]) -> Iterator[None]:
    """Let the limits of a service hold for what is validated inside the block.

    Args:
        limits: Limits by the setting's name.

    Yields:
        Nothing.
    """
    token = _limits.set(limits)
    try:
        yield
    finally:
        _limits.reset(token)


def at_most(limit: str) -> BeforeValidator:
    """Return a validator of a list that refuses one with more members than a setting allows.

    Args:
        limit: The setting.

    Returns:
        The validator.
    """

    def check(value: Any) -> Any:
        limits = _limits.get()
        if limits is not None and isinstance(value, list) and len(value) > limits[limit]:
            raise PydanticCustomError(
                "limit_exceeded",
                "{length} is more than this service allows at once ({limit} is {most})",
                {"length": len(value), "limit": limit, "most": limits[limit], "allowed": {limit: limits[limit]}},
            )
        return value

    return BeforeValidator(check)
