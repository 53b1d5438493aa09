"""What every route needs: the engine, the workplace, the settings, the metrics of this app."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from service.engine import Engine
from service.errors import UnsupportedMediaTypeError
from service.metrics import Metrics
from service.settings import Settings
from service.workplace import Deadline, Workplace


@dataclass
class State:
    """The parts of one running service.

    Attributes:
        settings: Its settings.
        engine: Its indexes.
        workplace: Where it computes.
        metrics: What it counts.
        ready: Whether it takes requests.
    """

    settings: Settings
    engine: Engine
    workplace: Workplace
    metrics: Metrics
    ready: bool = False

    def deadline(self) -> Deadline:
        """Start the clock of a request."""
        return Deadline(self.settings.deadline_seconds)


def state_of(request: Request) -> State:
    """Return the parts of the service a request came to."""
    state: State = request.app.state.service
    return state


def require_json(request: Request) -> None:
    """Refuse a body that does not say it is JSON: a browser's form cannot reach the service across sites.

    Args:
        request: The request.

    Raises:
        UnsupportedMediaTypeError: If the Content-Type is another one or none.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise UnsupportedMediaTypeError(
            f"the body must be JSON, not {media_type or 'of no named type'}; send Content-Type: application/json",
            allowed=["application/json"],
        )


Service = Annotated[State, Depends(state_of)]
JsonBody = Depends(require_json)
