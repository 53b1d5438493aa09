"""Traces of requests, where somebody wants them.

Nothing that makes or sends spans is imported here, nor in a service without --otel.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from starlette.types import Scope

from service.observer import Observer
from service.request_clock import RequestClock
from service.settings import Settings


class Tracing(Observer):
    """Traces nothing: what a service without --otel has."""

    @contextmanager
    def request(self, scope: Scope, clock: RequestClock) -> Iterator[Mapping[str, str]]:
        """Trace a request for as long as the block runs.

        Args:
            scope: The request; its route and the code of its problem are in it at the end.
            clock: Where its time goes.

        Yields:
            What its lines in the log should carry.
        """
        yield {}

    def answered(self, status: int) -> None:
        """Note with what status the request of this task is answered.

        Args:
            status: The status.
        """

    def close(self) -> None:
        """Send what was not sent yet."""


def make_tracing(settings: Settings) -> Tracing:
    """Make what traces a service's requests.

    Args:
        settings: Whether they are to be traced.

    Returns:
        The tracing.

    Raises:
        ValueError: If they are, and OpenTelemetry is not installed.
    """
    if not settings.otel:
        return Tracing()
    try:
        from service.otel_tracing import exporting_tracing
    except ModuleNotFoundError as error:
        raise ValueError(
            f"--otel needs the extra otel, of which {error.name} is not installed: pip install 'nattribute[otel]'"
        ) from error
    return exporting_tracing()
