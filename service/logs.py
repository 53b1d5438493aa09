"""The service's own log: one JSON object a line on standard error, each line of a request with its request_id.

No line holds what a client sent or an API key: paths are logged as routes, failures as the places they came through
without their messages, which often quote the input. At level debug messages are logged, too.
"""

import logging
import sys
import traceback
from collections.abc import MutableMapping
from typing import Any

import structlog

log = structlog.get_logger("service")


def places_of(error: BaseException) -> str:
    """Say where an exception and its causes came from, and of which type they are, without their messages.

    Args:
        error: The exception.

    Returns:
        The tracebacks as Python writes them, the first cause first; the last line of each is a type's name.
    """
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and not any(link is known for known in chain):
        chain.append(link)
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
    told = [
        "".join(traceback.format_tb(each.__traceback__)) + f"{type(each).__module__}.{type(each).__qualname__}"
        for each in reversed(chain)
    ]
    return "\n\n".join(told)


def without_messages(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Replace the exception of a log event by :func:`places_of` it; a processor of structlog.

    Args:
        event: The event.

    Returns:
        The event.
    """
    given = event.pop("exc_info", None)
    error = given[1] if isinstance(given, tuple) else sys.exc_info()[1] if given is True else given
    if isinstance(error, BaseException):
        event["exception"] = places_of(error)
    return event


class OneLog(logging.Handler):
    """Writes what libraries log with the standard library (the HTTP server, asyncio) into the service's own log."""

    def __init__(self, *, messages: bool) -> None:
        """Take records from warnings on.

        Args:
            messages: Whether to write them in full; otherwise their first line without arguments.
        """
        super().__init__(logging.WARNING)
        self._messages = messages

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record.

        Args:
            record: The record.
        """
        event = record.getMessage() if self._messages else str(record.msg).partition("\n")[0]
        level = "error" if record.levelno >= logging.ERROR else "warning"
        getattr(log, level)(event, logger=record.name, exc_info=record.exc_info)


def configure(level: str) -> None:
    """Send the service's log to standard error as JSON lines; called by the command line, never at import.

    Args:
        level: The least level that is written.
    """
    messages = level == "debug"
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info if messages else without_messages,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    for handler in [each for each in root.handlers if isinstance(each, OneLog)]:
        root.removeHandler(handler)
    root.addHandler(OneLog(messages=messages))
