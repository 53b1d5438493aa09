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

from attribution.errors import NotPositiveDefiniteError
from indexer.attributor.errors import QuestionError
from service.errors import ServiceError
from service.schemas.problem import Problem, ProblemItem
from service.validation import validation_items

MEDIA_TYPE = "application/problem+json"
TYPE_PREFIX = "urn:nattribute:problem:"

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


def problem_of_validation(items: list[ProblemItem], request_id: str) -> Problem:
    """Sum up what is wrong with a body: its code is the items' code where they agree.

    Args:
        items: At least one item.
        request_id: The request it answers.

    Returns:
        A 400 for broken JSON, else a 422.
    """
    codes = {item.code for item in items}
    code = codes.pop() if len(codes) == 1 else "invalid_request"
    status = 400 if code == "invalid_json" else 422
    places = "; ".join(f"{item.parameter or item.pointer or 'the body'}: {item.detail}" for item in items[:3])
    title = "The body is not JSON" if status == 400 else "Invalid request"
    return make_problem(status, code, title, places, request_id, items)


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
            problem = problem_of_validation(validation_items(error.errors(), error.body), request_id)
        case ValidationError():
            located = [{**item, "loc": ("body", *item["loc"])} for item in error.errors()]
            problem = problem_of_validation(validation_items(located, body), request_id)
        case ServiceError():
            item = ProblemItem(
                code=error.code,
                detail=str(error),
                pointer=error.pointer,
                parameter=error.parameter,
                allowed=error.allowed,
            )
            told = error.pointer is not None or error.parameter is not None or error.allowed is not None
            problem = make_problem(
                error.status, error.code, error.title, str(error), request_id, [item] if told else None
            )
            headers = error.headers
        case QuestionError():
            item = ProblemItem(code=error.code, detail=str(error), pointer=error.pointer, allowed=error.allowed)
            problem = make_problem(422, error.code, "The question cannot be answered", str(error), request_id, [item])
        case NotPositiveDefiniteError():
            item = ProblemItem(code="noise_too_small", detail=str(error), pointer="/noise_variance")
            problem = make_problem(422, item.code, "The noise is too small", str(error), request_id, [item])
        case HTTPException():
            code, title = HTTP_ERRORS.get(error.status_code, (f"http_{error.status_code}", str(error.detail)))
            problem = make_problem(error.status_code, code, title, str(error.detail), request_id)
            headers = error.headers or {}
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
    return problem_response(problem_of(error, request.scope["request_id"]))


def install(app: FastAPI) -> None:
    """Make problems the only error an app answers with.

    Args:
        app: The app.
    """
    # Everything else passes through to the gate, which answers it with the same table: a handler for Exception would
    # make Starlette raise it again behind the answer.
    for refusal in (RequestValidationError, HTTPException):
        app.add_exception_handler(refusal, answer_with_problem)
