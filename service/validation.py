"""What pydantic says about a request, told in the client's terms: JSON pointers, stable codes, allowed values."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from service.schemas.jobs import JOB_TYPES
from service.schemas.problem import Problem, ProblemItem, make_problem
from service.schemas.questions import QUERY_TYPES

MOST_ITEMS = 100
"""Items of one problem; a sketch may hold a million wrong numbers."""

# The fields whose value is a union told apart by "type"; pydantic puts the tag into the location, the client did not.
TAGGED_FIELDS = frozenset({"query", "queries"})

CODES = {
    "missing": "missing_field",
    "union_tag_not_found": "missing_field",
    "union_tag_invalid": "invalid_value",
    "unknown_field": "unknown_field",
    "extra_forbidden": "unknown_field",
    "finite_number": "not_finite",
    "not_finite": "not_finite",
    "not_a_number": "not_a_number",
    "float_type": "not_a_number",
    "float_parsing": "not_a_number",
    "int_type": "not_an_integer",
    "int_parsing": "not_an_integer",
    "int_from_float": "not_an_integer",
    "int_parsing_size": "out_of_range",
    "greater_than": "out_of_range",
    "greater_than_equal": "out_of_range",
    "less_than": "out_of_range",
    "less_than_equal": "out_of_range",
    "too_short": "wrong_length",
    "too_long": "wrong_length",
    "string_too_short": "wrong_length",
    "string_too_long": "wrong_length",
    "model_type": "not_an_object",
    "model_attributes_type": "not_an_object",
    "dict_type": "not_an_object",
    "json_invalid": "invalid_json",
    "limit_exceeded": "limit_exceeded",
}

# A body that is no JSON in ways the parser does not call a syntax error: what to say, and what is allowed.
UNREADABLE: Mapping[type[BaseException], tuple[str, str]] = {
    UnicodeDecodeError: ("the body is not JSON: it is not text in UTF-8", "JSON in UTF-8"),
    RecursionError: ("the body is not JSON that can be read: it is nested too deeply", "JSON nested a few levels deep"),
    ValueError: ("the body is not JSON that can be read: a number has too many digits", "numbers of float64's range"),
}

BOUNDS = {
    "gt": "greater than",
    "ge": "at least",
    "lt": "less than",
    "le": "at most",
    "min_length": "minimum length",
    "max_length": "maximum length",
}


def escape(part: str | int) -> str:
    """Return one token of a JSON pointer, escaped as RFC 6901 says."""
    return str(part).replace("~", "~0").replace("/", "~1")


def pointer_to(location: Sequence[str | int], body: Any, *, absent: bool) -> str:
    """Turn pydantic's location into a JSON pointer by walking the body the client sent.

    Pydantic's locations also name union members and validators; only what exists in the body is kept.

    Args:
        location: Pydantic's ``loc`` below the body.
        body: The parsed body.
        absent: Whether the last part names a field that is missing from the body.

    Returns:
        The pointer, "" for the body itself.
    """
    tokens: list[str] = []
    here = body
    tagged = False
    for position, part in enumerate(location):
        if tagged and isinstance(here, Mapping) and here.get("type") == part:
            tagged = False
            continue
        exists = part in here if isinstance(here, Mapping) else isinstance(here, list) and part in range(len(here))
        if exists:
            here = here[part]
        elif not (absent and position == len(location) - 1):
            continue
        tagged = part in TAGGED_FIELDS or (isinstance(part, int) and tagged)
        tokens.append(escape(part))
    return "".join(f"/{token}" for token in tokens)


def allowed_by(error: Mapping[str, Any]) -> Any:
    """Say what would have been accepted, from the context pydantic gives.

    Args:
        error: One entry of ``ValidationError.errors()``.

    Returns:
        A list of values, a mapping of bounds, words, or None.
    """
    context = error.get("ctx") or {}
    if "allowed" in context:
        return context["allowed"]
    expected = context.get("expected_tags") or context.get("expected")
    if isinstance(expected, str):
        return re.findall(r"'([^']*)'", expected)
    if error["type"] == "union_tag_not_found":
        return list(QUERY_TYPES if len(error["loc"]) > 1 else JOB_TYPES)
    bounds = {name: context[name] for name in BOUNDS if name in context}
    if bounds:
        return bounds
    return {
        "finite_number": "a finite number",
        "int_type": "a whole number",
        "int_parsing": "a whole number",
        "int_parsing_size": "a whole number of 64 bits",
        "int_from_float": "a whole number",
        "float_type": "a number",
        "float_parsing": "a number",
        "bool_type": [True, False],
        "list_type": "an array",
        "string_type": "a string",
        "dict_type": "an object",
        "model_type": "an object",
        "model_attributes_type": "an object",
    }.get(error["type"])


def sentence(error: Mapping[str, Any]) -> str:
    """Say what is wrong in the client's words where pydantic's are about its own machinery.

    Args:
        error: One entry of ``ValidationError.errors()``.

    Returns:
        One sentence.
    """
    if error["type"] == "union_tag_not_found":
        return f"type is missing; it says {'how the query is given' if len(error['loc']) > 1 else 'which job it is'}"
    if error["type"] == "union_tag_invalid":
        return f"there is no type {(error.get('ctx') or {}).get('tag')!r}"
    return str(error["msg"])


def validation_items(errors: Sequence[Mapping[str, Any]], body: Any) -> list[ProblemItem]:
    """Turn pydantic's errors about one request into problem items.

    Args:
        errors: ``ValidationError.errors()``, or those of FastAPI, whose locations start with "body", "path" or "query".
        body: The parsed body.

    Returns:
        One item an error.
    """
    items = []
    for error in errors[:MOST_ITEMS]:
        place, *location = error["loc"] or ("body",)
        kind = error["type"]
        context = error.get("ctx") or {}
        code = CODES.get(kind, "invalid_value")
        detail = sentence(error)
        if code == "invalid_json":
            reason, position = context.get("error", detail), location[-1] if location else 0
            detail = f"the body is not JSON: {reason} at character {position}"
            items.append(ProblemItem(code=code, detail=detail, pointer="", allowed="a JSON object"))
        elif place in ("path", "query", "header"):
            parameter = str(context["field"] if "field" in context else location[-1])
            items.append(ProblemItem(code=code, detail=detail, parameter=parameter, allowed=allowed_by(error)))
        else:
            pointer = pointer_to(location, body, absent=kind == "missing")
            if kind in ("union_tag_invalid", "union_tag_not_found"):
                pointer += "/type"
            if "field" in context:
                pointer += f"/{escape(context['field'])}"
            items.append(ProblemItem(code=code, detail=detail, pointer=pointer, allowed=allowed_by(error)))
    return items


def problem_of_items(items: list[ProblemItem], request_id: str) -> Problem:
    """Sum up what is wrong with a request: its code is the items' code where they agree.

    Args:
        items: At least one item.
        request_id: The request it answers; empty where it never left the client.

    Returns:
        A 400 for broken JSON, else a 422.
    """
    codes = {item.code for item in items}
    code = codes.pop() if len(codes) == 1 else "invalid_request"
    status = 400 if code == "invalid_json" else 422
    places = "; ".join(f"{item.parameter or item.pointer or 'the body'}: {item.detail}" for item in items[:3])
    more = f"; and {len(items) - 3} more" if len(items) > 3 else ""
    title = "The body is not JSON" if status == 400 else "Invalid request"
    return make_problem(status, code, title, places + more, request_id, items)
