"""Divides the d numbers of a kronecker sketch among the parameters, by how long their gradients are on some rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from indexer.featurise import Featuriser
from indexer.jacobians import JacobianError
from indexer.measurement import Measurement, MeasurementError
from indexer.out_of_memory import is_out_of_memory
from indexer.parameters import ParameterList
from indexer.reading import ExampleReader
from indexer.recipe import Example, Recipe
from indexer.sketches import SketchSpec
from indexer.sketches.kronecker_plan import (
    SIDE,
    MatrixPart,
    Part,
    VectorPart,
    is_matrix,
    kronecker_spec,
    plan_parts,
    sides,
)

PROBE_ROWS = 64
"""Rows, spread over the training set, whose gradients say how the numbers are divided."""
PROBE_VECTOR_DIM = 256


def fitted_kronecker_spec(
    recipe: Recipe,
    model: torch.nn.Module,
    measurement: Measurement,
    parameters: ParameterList,
    train: ExampleReader,
    num_outputs: int,
    *,
    dim: int,
    seed: int,
    device: str = "cpu",
    num_threads: int | None = None,
) -> SketchSpec:
    """Plan a kronecker sketch of d numbers for a model.

    The squared gradient norms of the parts are estimated by a small kronecker sketch itself, which is unbiased.

    Args:
        recipe: The recipe.
        model: Its trained model.
        measurement: What is differentiated.
        parameters: The coordinates.
        train: The training rows.
        num_outputs: C.
        dim: d.
        seed: The user's seed.
        device: Where to compute.
        num_threads: Threads of the compiled kernels; None takes torch's number.

    Returns:
        The spec with its parts.
    """
    plan_parts(parameters, dim)  # refuses a dim that cannot be divided before anything is computed
    parts = _probe_parts(parameters)
    spec = kronecker_spec(parameters, sum(part.dim for part in parts), 0, parts)
    featuriser = Featuriser(
        recipe, model, spec, measurement, parameters, device=device, compute_rows=PROBE_ROWS, num_threads=num_threads
    )
    count = min(PROBE_ROWS, train.num_rows)
    examples = [train.example(number * train.num_rows // count) for number in range(count)]
    _, labels = recipe.collate(examples)
    if measurement.name != "custom":
        labels = labels.clamp(0, num_outputs - 1)  # a missing label is refused later, with its row
    squares = _mean_squares(featuriser, examples, labels, measurement.views(num_outputs)[0])
    if squares is None:
        return kronecker_spec(parameters, dim, seed, plan_parts(parameters, dim))
    weights = {}
    start = 0
    for part in parts:
        name = part.parameter if isinstance(part, MatrixPart) else part.parameters[0]
        weights[name] = float(squares[start : start + part.dim].sum())
        start += part.dim
    return kronecker_spec(parameters, dim, seed, plan_parts(parameters, dim, weights))


def _mean_squares(featuriser: Featuriser, examples: Sequence[Example], labels: Tensor, view: str) -> Tensor | None:
    # None where the model fails: what is wrong with it is said where its rows are looked at, before one is sketched.
    try:
        return featuriser.sketch(examples, labels, view).double().square().mean(0)
    except (RuntimeError, ValueError, TypeError) as error:
        if isinstance(error, JacobianError | MeasurementError) or is_out_of_memory(error):
            raise
        return None


def _probe_parts(parameters: ParameterList) -> list[Part]:
    parts: list[Part] = []
    vectors = [parameter for parameter in parameters if not is_matrix(parameter)]
    for parameter in parameters:
        if is_matrix(parameter):
            height, width = sides(parameter)
            parts.append(MatrixPart(parameter.name, 1, min(SIDE, height), min(SIDE, width)))
    if vectors:
        size = sum(parameter.size for parameter in vectors)
        parts.append(VectorPart(tuple(parameter.name for parameter in vectors), min(PROBE_VECTOR_DIM, size)))
    return parts
