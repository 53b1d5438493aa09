"""The service's own log: one JSON object a line on standard error, each line of a request with its request_id.

No line holds what a client sent: routes are named by their templates, failures by their types and places without their
messages, which may quote a value. Only the level ``debug`` adds those messages.
"""

import logging
import sys
import traceback
from collections.abc import Iterator
from typing import Any

import structlog
from structlog.types import EventDict, Processor, WrappedLogger

#: Libraries that tell more than a service's log needs at info.
QUIET = ("uvicorn", "uvicorn.error", "asyncio")


def configure(level: str) -> None:
    """Send the service's log to standard error as JSON lines; called by the command line, never at import.

    Args:
        level: The least level that is written.
    """
    number = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[*_processors(number), structlog.processors.JSONRenderer()],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )


def configure_libraries(level: str) -> None:
    """Send what libraries log and warn of to standard error in the same form; for a process that is only a service.

    Args:
        level: The least level that is written.
    """
    number = logging.getLevelNamesMapping()[level.upper()]
    finish: list[Processor] = [
        structlog.stdlib.ProcessorFormatter.remove_processors_meta,
        structlog.processors.JSONRenderer(),
    ]
    before: list[Processor] = [structlog.stdlib.add_logger_name, *_processors(number)]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(processors=finish, foreign_pre_chain=before))
    logging.basicConfig(level=number, handlers=[handler], force=True)
    for name in QUIET:
        logging.getLogger(name).setLevel(max(number, logging.WARNING))
    logging.captureWarnings(True)


def _processors(level: int) -> list[Processor]:
    return [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        FailureWithoutValues(messages=level <= logging.DEBUG),
    ]


class FailureWithoutValues:
    """Replaces a traceback by the types and places of its exceptions, the first cause last.

    Args:
        messages: Whether to say the exceptions' messages too.
    """

    def __init__(self, messages: bool) -> None:
        self._messages = messages

    def __call__(self, _: WrappedLogger, __: str, event: EventDict) -> EventDict:
        """Do so in one event."""  # noqa: DOC201
        given = event.pop("exc_info", None)
        if isinstance(given, tuple):
            given = given[1]
        error = given if isinstance(given, BaseException) else sys.exc_info()[1] if given else None
        if error is not None:
            event["failure"] = [self._told(each) for each in chain(error)]
        return event

    def _told(self, error: BaseException) -> dict[str, Any]:
        told: dict[str, Any] = {"type": type(error).__qualname__}
        if self._messages:
            told["message"] = str(error)
        walked = traceback.walk_tb(error.__traceback__)
        return told | {
            "at": [f"{frame.f_globals.get('__name__')}:{line} {frame.f_code.co_name}" for frame, line in walked]
        }


def chain(error: BaseException) -> Iterator[BaseException]:
    """Follow an exception to what caused it.

    Args:
        error: The exception.

    Yields:
        It, and its causes, each once.
    """
    seen: set[int] = set()
    each: BaseException | None = error
    while each is not None and id(each) not in seen:
        seen.add(id(each))
        yield each
        each = each.__cause__ or (None if each.__suppress_context__ else each.__context__)
