"""Every error becomes one RFC 9457 problem here, by one table; routes hold no try/except.

Refusals of the attributor, the store, the recipe and the mathematics are the client's (422) where the table says so;
whatever the table does not know is ours: 500, logged with its traceback, told without it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from indexer.attributor.errors import QuestionError
from service.errors import DamagedIndexError, ServiceError, SeveralMistakesError
from service.schemas.problem import Problem, ProblemItem, make_problem
from service.validation import UNREADABLE, problem_of_items, validation_items
from sketchstore.errors import CorruptIndexError

MEDIA_TYPE = "application/problem+json"
#: Where a request's scope holds the code of the problem that answers it, for who counts and logs.
PROBLEM_CODE = "problem_code"

# FastAPI and Starlette raise these by status; the code and title a client sees are ours.
HTTP_ERRORS: Mapping[int, tuple[str, str]] = {
    400: ("invalid_json", "The body is not JSON"),
    404: ("not_found", "No such path"),
    405: ("method_not_allowed", "Method not allowed"),
    413: ("body_too_large", "Request body too large"),
}

log = structlog.get_logger("service")


@dataclass(frozen=True)
class Outcome:
    """A problem and the headers its response carries."""

    problem: Problem
    headers: Mapping[str, str]


def problem_of(error: Exception, request_id: str, *, body: Any = None) -> Outcome:
    """Turn any exception into the problem that answers it.

    Args:
        error: What was raised.
        request_id: The request it answers.
        body: The parsed request body, to which pointers of validation errors lead.

    Returns:
        The problem with its headers; a 500 without details where the exception is none of the refusals.
    """
    headers: Mapping[str, str] = {}
    match error:
        case RequestValidationError():
            problem = problem_of_items(validation_items(error.errors(), error.body), request_id)
        case ValidationError():
            located = [{**item, "loc": ("body", *item["loc"])} for item in error.errors()]
            problem = problem_of_items(validation_items(located, body), request_id)
        case ServiceError():
            told = error.pointer is not None or error.parameter is not None or error.allowed is not None
            items = [item_of(error)] if told else None
            problem = make_problem(error.status, error.code, error.title, str(error), request_id, items)
            headers = error.headers
        case QuestionError():
            title = "The question cannot be answered"
            problem = make_problem(422, error.code, title, str(error), request_id, [item_of(error)])
        case SeveralMistakesError():
            problem = problem_of_items([item_of(mistake) for mistake in error.mistakes], request_id)
        case CorruptIndexError():
            log.error("damaged index", request_id=request_id, file=error.file, kind=error.kind, reason=error.message)
            detail = f"{error}. `indexer verify` names all that is damaged; the rest of the index still answers"
            kind = DamagedIndexError
            problem = make_problem(kind.status, kind.code, kind.title, detail, request_id)
            headers = kind.usual_headers()
        case HTTPException():
            problem = problem_of_http(error, request_id)
            headers = error.headers or {}
            if error.status_code in (429, 503):  # of Starlette, or of a layer that somebody adds
                headers = {"Retry-After": "1"} | dict(headers)
        case _:
            log.error("request failed", request_id=request_id, exc_info=error)
            problem = make_problem(
                500,
                "internal_error",
                "Internal error",
                "the service failed on this request; its log has the cause under this request_id",
                request_id,
            )
    return Outcome(problem, headers)


def item_of(error: QuestionError | ServiceError) -> ProblemItem:
    """Say in a problem's terms what a refusal says.

    Args:
        error: The refusal.

    Returns:
        Its code, sentence, place and what is allowed.
    """
    parameter = error.parameter if isinstance(error, ServiceError) else None
    return ProblemItem(
        code=error.code, detail=str(error), pointer=error.pointer, parameter=parameter, allowed=error.allowed
    )


def problem_of_http(error: HTTPException, request_id: str) -> Problem:
    """Turn what FastAPI and Starlette raise by status into a problem of ours.

    Args:
        error: The exception; a body that could not be read is its cause.
        request_id: The request it answers.

    Returns:
        The problem.
    """
    code, title = HTTP_ERRORS.get(error.status_code, (f"http_{error.status_code}", str(error.detail)))
    detail, items = str(error.detail), []
    if error.status_code == 400:
        detail, allowed = next(
            (told for kind, told in UNREADABLE.items() if isinstance(error.__cause__, kind)), (detail, "JSON in UTF-8")
        )
        items = [ProblemItem(code=code, detail=detail, pointer="", allowed=allowed)]
    elif error.status_code == 405:
        methods = (error.headers or {}).get("Allow", "").split(", ")
        items = [ProblemItem(code=code, detail=detail, allowed=methods)]
    return make_problem(error.status_code, code, title, detail, request_id, items)


def problem_response(outcome: Outcome) -> Response:
    """Render a problem as an HTTP response.

    Args:
        outcome: The problem and its headers.

    Returns:
        A response of media type application/problem+json.
    """
    # ASCII escapes: a client's lone surrogate, quoted back, has no UTF-8 form.
    content = json.dumps(outcome.problem.model_dump(mode="json", exclude_none=True), allow_nan=False).encode("ascii")
    return Response(content, outcome.problem.status, headers=dict(outcome.headers), media_type=MEDIA_TYPE)


async def answer_with_problem(request: Request, error: Exception) -> Response:
    """Answer a failed request; registered for every kind of exception.

    Args:
        request: The request.
        error: What was raised while answering it.

    Returns:
        The problem as a response.
    """
    outcome = problem_of(error, request.scope["request_id"])
    request.scope[PROBLEM_CODE] = outcome.problem.code
    return problem_response(outcome)


def install(app: FastAPI) -> None:
    """Make problems the only error an app answers with.

    Args:
        app: The app.
    """
    # Everything else passes through to the gate, which answers it with the same table: a handler for Exception would
    # make Starlette raise it again behind the answer.
    for refusal in (RequestValidationError, HTTPException):
        app.add_exception_handler(refusal, answer_with_problem)
