"""What pydantic says about a request, told in the client's terms: JSON pointers, stable codes, allowed values."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from service.schemas.problem import ProblemItem

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
    bounds = {name: context[name] for name in BOUNDS if name in context}
    if bounds:
        return bounds
    return {
        "finite_number": "a finite number",
        "int_type": "a whole number",
        "int_from_float": "a whole number",
        "float_type": "a number",
        "bool_type": [True, False],
        "list_type": "an array",
        "string_type": "a string",
        "dict_type": "an object",
        "model_type": "an object",
        "model_attributes_type": "an object",
    }.get(error["type"])


def validation_items(errors: Sequence[Mapping[str, Any]], body: Any) -> list[ProblemItem]:
    """Turn pydantic's errors about one request into problem items.

    Args:
        errors: ``ValidationError.errors()``, or those of FastAPI, whose locations start with "body", "path" or "query".
        body: The parsed body.

    Returns:
        One item an error.
    """
    items = []
    for error in errors:
        place, *location = error["loc"] or ("body",)
        kind = error["type"]
        context = error.get("ctx") or {}
        code = CODES.get(kind, "invalid_value")
        detail = error["msg"]
        if code == "invalid_json":
            items.append(
                ProblemItem(
                    code=code,
                    detail=f"the body is not JSON: {context.get('error', detail)} "
                    f"at character {location[-1] if location else 0}",
                    pointer="",
                )
            )
        elif place in ("path", "query", "header"):
            items.append(ProblemItem(code=code, detail=detail, parameter=str(location[-1]), allowed=allowed_by(error)))
        else:
            pointer = pointer_to(location, body, absent=kind == "missing")
            if kind in ("union_tag_invalid", "union_tag_not_found"):
                pointer += "/type"
            if "field" in context:
                pointer += f"/{escape(context['field'])}"
            items.append(ProblemItem(code=code, detail=detail, pointer=pointer, allowed=allowed_by(error)))
    return items
