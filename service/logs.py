"""The service's own log: one JSON object a line on standard error, each line of a request with its request_id."""

import logging
import sys

import structlog


def configure(level: str) -> None:
    """Send the service's log to standard error as JSON lines; called by the command line, never at import.

    Args:
        level: The least level that is written.
    """
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
