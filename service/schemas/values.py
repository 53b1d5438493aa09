"""The numbers and objects every schema is made of: nothing is coerced that a client did not mean.

Pydantic's lax mode takes ``false`` for 0.0 and its strict mode refuses 10.0 for an integer; a JSON number is what is
wanted here, so lax types are guarded by a validator that refuses booleans and text.
"""

import difflib
import math
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    FiniteFloat,
    JsonValue,
    ModelWrapValidatorHandler,
    StrictBool,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from service.schemas.lengths import at_most

LARGEST_INTEGER = 2**63 - 1
MOST_UNKNOWN = 20
"""Unknown fields of one object that are named; a body may hold a million."""


def refuse_what_is_no_number(value: Any) -> Any:
    """Let JSON numbers pass and refuse booleans and text, which pydantic's lax mode would convert.

    Args:
        value: What the request holds.

    Returns:
        The same value.

    Raises:
        PydanticCustomError: If the value is a boolean or a string.
    """
    if isinstance(value, bool):
        raise PydanticCustomError("not_a_number", "a number is wanted, not a boolean", {"allowed": "a JSON number"})
    if isinstance(value, str | bytes):
        raise PydanticCustomError("not_a_number", "a number is wanted, not text", {"allowed": "a JSON number"})
    return value


def refuse_not_finite(value: JsonValue) -> JsonValue:
    """Let JSON pass that holds finite numbers only; Python's parser also reads NaN and Infinity.

    Args:
        value: Any JSON value.

    Returns:
        The same value.

    Raises:
        PydanticCustomError: If a number in it is not finite.
    """
    pending: list[JsonValue] = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            pending.extend(item.values())
        elif isinstance(item, list):
            pending.extend(item)
        elif isinstance(item, float) and not math.isfinite(item):
            raise PydanticCustomError("not_finite", "every number must be finite", {"allowed": "finite numbers"})
    return value


def refuse_half_characters(value: str) -> str:
    """Let text pass that has a UTF-8 form; JSON can escape half of a surrogate pair.

    Args:
        value: The text.

    Returns:
        The same text.

    Raises:
        PydanticCustomError: If it has none.
    """
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise PydanticCustomError(
            "invalid_text", "the text holds half of a surrogate pair", {"allowed": "text of whole characters"}
        ) from error
    return value


def name_the_labels(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    """Validate a target label and refuse anything else in one sentence instead of one for each union member.

    Args:
        value: What the request holds.
        validate: Pydantic's own validation of the union.

    Returns:
        "predicted", "true" or a label.

    Raises:
        PydanticCustomError: If the value is none of these.
    """
    try:
        return validate(value)
    except ValidationError as error:
        raise PydanticCustomError(
            "invalid_label",
            "a target label is predicted, true, or a label",
            {"allowed": ["predicted", "true", "a whole number from 0"]},
        ) from error


Number = Annotated[FiniteFloat, BeforeValidator(refuse_what_is_no_number)]
Positive = Annotated[FiniteFloat, Field(gt=0), BeforeValidator(refuse_what_is_no_number)]
NotNegative = Annotated[FiniteFloat, Field(ge=0), BeforeValidator(refuse_what_is_no_number)]
Count = Annotated[int, Field(ge=0, le=LARGEST_INTEGER), BeforeValidator(refuse_what_is_no_number)]
PositiveCount = Annotated[int, Field(ge=1, le=LARGEST_INTEGER), BeforeValidator(refuse_what_is_no_number)]
Flag = StrictBool
Text = Annotated[str, AfterValidator(refuse_half_characters)]
Id = Annotated[Text, Field(min_length=1, max_length=1024)]
Ids = Annotated[list[Id], at_most("max_ids")]
Label = Count
TargetLabel = Annotated[Literal["predicted", "true"] | Label, WrapValidator(name_the_labels)]
FiniteJson = Annotated[JsonValue, AfterValidator(refuse_not_finite)]
Scalar = Text | StrictBool | Number


class Request(BaseModel):
    """A request body: unknown fields are refused, and the refusal lists the known ones."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    part: ClassVar[str] = "field"

    @model_validator(mode="wrap")
    @classmethod
    def _refuse_unknown_fields(cls, value: Any, validate: ModelWrapValidatorHandler[Self]) -> Self:
        if not isinstance(value, dict) or all(field in cls.model_fields for field in value):
            return validate(value)
        unknown = [field for field in value if field not in cls.model_fields]
        found = [InitErrorDetails(type=cls._unknown(field), loc=(), input=None) for field in unknown[:MOST_UNKNOWN]]
        try:  # a misspelt field must not hide what is wrong with the others
            validate({field: item for field, item in value.items() if field in cls.model_fields})
        except ValidationError as error:
            found += [
                InitErrorDetails(
                    type=PydanticCustomError(item["type"], item["msg"], item.get("ctx") or {}),
                    loc=item["loc"],
                    input=item["input"],
                )
                for item in error.errors(include_url=False)
            ]
        raise ValidationError.from_exception_data(cls.__name__, found)

    @classmethod
    def _unknown(cls, field: Any) -> PydanticCustomError:
        known = sorted(cls.model_fields)
        named = str(field)[:100].encode("utf-8", "backslashreplace").decode()
        near = difflib.get_close_matches(named, known, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        return PydanticCustomError(
            "unknown_field",
            "there is no {part} {field}{hint}",
            {"field": named, "part": cls.part, "hint": hint, "allowed": known},
        )


class Parameters(Request):
    """The query parameters of a route: unknown ones are refused like the fields of a body."""

    part: ClassVar[str] = "parameter"


class Response(BaseModel):
    """A response body. Clients ignore fields they do not know, so that a newer service can add some."""

    model_config = ConfigDict(extra="ignore", frozen=True)
