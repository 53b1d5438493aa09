"""Refusals at the border of the mathematics: bad numbers, shapes and budgets, before anything is computed."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from attribution.errors import (
    BudgetError,
    NoiseVarianceError,
    NotFiniteError,
    ShapeError,
    UnknownOptionError,
    ZeroQueryError,
)


def check_noise_variance(noise_variance: float) -> None:
    """Refuse a noise variance that is not a positive finite number.

    Args:
        noise_variance: σ², in squared units of the measurement.

    Raises:
        NoiseVarianceError: If it is not a number, not finite, or not above zero.
    """
    if isinstance(noise_variance, bool) or not isinstance(noise_variance, (int, float)):
        raise NoiseVarianceError(
            f"noise_variance must be a number, got {type(noise_variance).__name__} {noise_variance!r}. "
            "Give σ² > 0 in squared units of the measurement."
        )
    if not (math.isfinite(noise_variance) and noise_variance > 0):
        raise NoiseVarianceError(
            f"noise_variance must be positive and finite, got {noise_variance}. Give σ² > 0 in squared units of the "
            "measurement, for example the mean squared norm of the comparable sketches."
        )


def check_sketches(sketches: Float[Tensor, "n d"], dim: int, what: str) -> None:
    """Refuse sketches that are not a finite [n, dim] matrix.

    Args:
        sketches: The sketches, one row per example.
        dim: The dimension they must have.
        what: What they are, for the message.

    Raises:
        ShapeError: If they are not two-dimensional with ``dim`` columns.
        NotFiniteError: If any value is NaN or infinite.
    """
    if sketches.ndim != 2 or sketches.shape[1] != dim:
        raise ShapeError(f"{what} must have shape [n, {dim}], got {list(sketches.shape)}.")
    if not bool(torch.isfinite(sketches).all()):
        bad = int((~torch.isfinite(sketches)).any(dim=1).nonzero()[0])
        raise NotFiniteError(f"{what} must be finite; row {bad} contains NaN or infinity.")


def check_query(query: Float[Tensor, " d"], dim: int | None = None) -> None:
    """Refuse a query sketch without a direction.

    Args:
        query: Sketch of the query, shape [d].
        dim: The dimension it must have, when known.

    Raises:
        ShapeError: If it is not a vector, or not of dimension ``dim``.
        NotFiniteError: If any value is NaN or infinite.
        ZeroQueryError: If all values are zero.
    """
    if query.ndim != 1:
        raise ShapeError(f"query must be one sketch of shape [d], got {list(query.shape)}.")
    if dim is not None and query.shape[0] != dim:
        raise ShapeError(f"query has {query.shape[0]} dimensions, the candidates have {dim}. Sketch both alike.")
    if not bool(torch.isfinite(query).all()):
        bad = int((~torch.isfinite(query)).nonzero()[0])
        raise NotFiniteError(f"query must be finite; value {bad} is {float(query[bad])}.")
    if not bool(query.any()):
        raise ZeroQueryError(
            "query is all zeros: its prior variance is zero, so no example can inform it. Choose another query or "
            "measurement."
        )


def check_budget(budget: int, available: int) -> None:
    """Refuse a budget that cannot be spent.

    Args:
        budget: How many examples to select.
        available: How many may be selected.

    Raises:
        BudgetError: If ``budget`` is not an integer from 1 to ``available``.
    """
    if isinstance(budget, bool) or not isinstance(budget, int):
        raise BudgetError(f"budget must be an integer, got {type(budget).__name__} {budget!r}.")
    if budget < 1:
        raise BudgetError(f"budget must be at least 1, got {budget}.")
    if budget > available:
        raise BudgetError(f"budget {budget} exceeds the {available} candidates. Ask for at most {available}.")


def check_acquired(acquired: Sequence[int], available: int, budget: int) -> list[int]:
    """Refuse picks made before that a selection cannot have made.

    Args:
        acquired: Positions of the picks, in order.
        available: How many candidates there are.
        budget: How many may be picked.

    Returns:
        The positions.

    Raises:
        BudgetError: If there are more than the budget allows, one twice, or one that is no candidate.
    """
    made = [int(position) for position in acquired]
    if len(made) > budget or len(set(made)) != len(made) or not all(0 <= position < available for position in made):
        raise BudgetError(
            f"acquired must name at most {budget} of the {available} candidates, each once; got {len(made)} positions."
        )
    return made


def check_option(value: str, allowed: Sequence[str], what: str) -> None:
    """Refuse a name that is not among the allowed ones.

    Args:
        value: The name given.
        allowed: The names that exist.
        what: What is named, for the message.

    Raises:
        UnknownOptionError: If ``value`` is not in ``allowed``.
    """
    if value not in allowed:
        raise UnknownOptionError(f"{what} {value!r} does not exist. Use one of {', '.join(allowed)}.")
