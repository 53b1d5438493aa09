"""What is asked of an open index: a query's sketch, a method and a budget, the noise, the pool, and when to stop."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from torch import Tensor

from indexer.attributor.errors import (
    BudgetRangeError,
    BudgetTooLargeError,
    MethodUnavailableError,
    NoiseConflictError,
    NoiseRangeError,
    OptionError,
    StopRangeError,
)
from sketchstore.examples import MetadataCondition

Target = int | Literal["predicted", "true"]

METHODS = ("infogain_approx", "infogain", "infoloss", "trak", "graddot", "repsim", "relatif", "random")
CONDITIONS = ("comparable", "pool")
STRATEGIES = ("certified", "literal")
CRITERIA = ("infogain", "infoloss")


@dataclass(frozen=True)
class QuerySketch:
    """A query, ready to meet the rows of one view.

    Attributes:
        sketch: φ_*, float64 [d], in measurement units.
        view: The view it is comparable with.
        label: The class whose measurement was sketched; None where the measurement has none.
        predicted_label: The model's prediction; None where it is not known.
        exclude_rows: Rows that leave the candidates and D because the query is one of them.
        representation: Gives its penultimate features, float64 [k], or None, when RepSim asks; None: there are none.
    """

    sketch: Tensor
    view: str
    label: int | None
    predicted_label: int | None = None
    exclude_rows: tuple[int, ...] = ()
    representation: Callable[[], Tensor | None] | None = None


@dataclass(frozen=True)
class CandidateFilter:
    """Which comparable rows may be selected; all conditions must hold.

    Attributes:
        labels: Only rows with one of these labels. None: all comparable rows, on an own-label index those of the
            query's label.
        ids: Only these examples.
        exclude_ids: Examples that leave the candidates and D.
        where: Only rows with these metadata (`ExampleTable.where`).
    """

    labels: Sequence[int] | None = None
    ids: Sequence[str] | None = None
    exclude_ids: Sequence[str] | None = None
    where: Mapping[str, MetadataCondition] | None = None


@dataclass(frozen=True)
class Question:
    """Which training examples inform this query?

    Attributes:
        query: The query.
        method: One of ``METHODS``.
        budget: How many examples to select.
        noise_variance: σ² in squared measurement units.
        relative_noise: σ² in units of the mean squared norm of the comparable rows. Not both; neither: the index's
            tuned default, else 1.0 with a warning.
        filter: Limits the candidates.
        condition: D, the set that InfoLoss and available_nats condition on: every comparable row, or the pool.
        clip_budget: Take a budget above the pool's size as the whole pool.
        strategy: How infogain_approx asks the index; None: the attributor's default. The picks are the same.
        rescore: Criteria to compute of the selected set beyond those the selection yields anyway.
        available: Compute InfoGain of all of D: True whatever it costs, False never, None where it is cached or
            affordable.
        min_step_nats: Stop before a step that adds less.
        information_fraction: Stop once the selected set has this share of available_nats.
        seed: Seed of ``random``.
    """

    query: QuerySketch
    method: str = "infogain_approx"
    budget: int = 10
    noise_variance: float | None = None
    relative_noise: float | None = None
    filter: CandidateFilter = CandidateFilter()
    condition: str = "comparable"
    clip_budget: bool = False
    strategy: str | None = None
    rescore: tuple[str, ...] = CRITERIA
    available: bool | None = None
    min_step_nats: float | None = None
    information_fraction: float | None = None
    seed: int = 0


def check_option(value: str, allowed: Sequence[str], pointer: str) -> None:
    """Refuse a name that is not among the allowed ones.

    Args:
        value: The name given.
        allowed: The names that exist.
        pointer: Where it stands in the request.

    Raises:
        OptionError: If it does not exist.
    """
    if value not in allowed:
        raise OptionError(
            f"{pointer.strip('/').replace('/', ' ')} is {value!r}; allowed are {', '.join(allowed)}.",
            pointer=pointer,
            allowed=list(allowed),
        )


def check_noise(noise_variance: float | None, relative_noise: float | None) -> None:
    """Refuse a noise that is given twice, or is not a positive finite number.

    Args:
        noise_variance: σ² in squared measurement units, if given.
        relative_noise: σ² relative to the mean squared norm, if given.

    Raises:
        NoiseConflictError: If both are given.
        NoiseRangeError: If one is not a positive finite number.
    """
    if noise_variance is not None and relative_noise is not None:
        raise NoiseConflictError(
            "noise_variance and relative_noise are both given; they are two units of one number. Give one of them.",
            pointer="/relative_noise",
            allowed=["noise_variance", "relative_noise"],
        )
    for name, value in (("noise_variance", noise_variance), ("relative_noise", relative_noise)):
        if value is not None and not (is_number(value) and value > 0):
            raise NoiseRangeError(
                f"{name} is {value!r}; it must be a positive finite number.", pointer=f"/{name}", allowed={"gt": 0}
            )


def check_budget(budget: int, available: int) -> None:
    """Refuse a budget that exceeds the pool.

    Args:
        budget: How many examples to select.
        available: How many may be selected.

    Raises:
        BudgetTooLargeError: If there are fewer.
    """
    if budget > available:
        raise BudgetTooLargeError(
            f"budget {budget} exceeds the {available} rows that may be selected. Ask for at most {available}, or set "
            "clip_budget.",
            pointer="/budget",
            allowed={"ge": 1, "le": available},
        )


def is_number(value: object) -> bool:
    """Say whether a value is a finite number; a boolean is none.

    Args:
        value: Anything.

    Returns:
        Whether it is.
    """
    return not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value)


def check_method(method: str, methods: Sequence[str], lacking: Mapping[str, str], pointer: str) -> None:
    """Refuse a method that an index cannot serve, naming what it lacks.

    Args:
        method: The method.
        methods: Methods the index can serve.
        lacking: By method that it cannot: what it lacks.
        pointer: Where it stands in the request.

    Raises:
        MethodUnavailableError: If the method is not among them.
    """
    if method not in methods:
        reason = f": {lacking[method]}" if method in lacking else ""
        raise MethodUnavailableError(
            f"method {method!r} is not available on this index{reason}. Available are {', '.join(methods)}.",
            pointer=pointer,
            allowed=list(methods),
        )


def check_question(
    question: Question, methods: Sequence[str], lacking: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Refuse what is wrong with a question whatever the pool.

    Args:
        question: The question.
        methods: Methods the index can serve.
        lacking: By method that it cannot: what it lacks.

    Raises:
        BudgetRangeError: If the budget is not a whole number from 1.
        StopRangeError: If a stopping threshold is out of range.
    """
    check_method(question.method, methods, lacking, "/method")
    budget = question.budget
    if isinstance(budget, bool) or not isinstance(budget, int) or budget < 1:
        raise BudgetRangeError(
            f"budget is {budget!r}; it must be a whole number from 1.", pointer="/budget", allowed={"ge": 1}
        )
    check_noise(question.noise_variance, question.relative_noise)
    check_option(question.condition, CONDITIONS, "/condition")
    if question.strategy is not None:
        check_option(question.strategy, STRATEGIES, "/strategy")
    for place, criterion in enumerate(question.rescore):
        check_option(criterion, CRITERIA, f"/rescore/{place}")
    step, fraction = question.min_step_nats, question.information_fraction
    if step is not None and not (is_number(step) and step >= 0):
        raise StopRangeError(
            f"min_step_nats is {step!r}; it must be a finite number from 0.",
            pointer="/min_step_nats",
            allowed={"ge": 0},
        )
    if fraction is not None and not (is_number(fraction) and 0 < fraction <= 1):
        raise StopRangeError(
            f"information_fraction is {fraction!r}; it must be above 0 and at most 1.",
            pointer="/information_fraction",
            allowed={"gt": 0, "le": 1},
        )
