"""Holds ``architecture()`` against ``model()``: with the same weights they must be the same function.

Worker processes, appends and services put an index's weights into ``architecture()``, long after anyone could compare.
"""

from __future__ import annotations

from textwrap import shorten
from typing import Any

import torch
from torch import nn

from indexer.recipe import Recipe, RecipeError
from indexer.training import state_digest

OUTPUT_TOLERANCE = 1e-4
"""Relative change of an output that is no rounding: the same modules with the same weights round alike."""


def check_architecture(recipe: Recipe, model: nn.Module, inputs: Any) -> str:
    """Refuse an architecture that is another function than the model once it has the model's weights.

    Args:
        recipe: The recipe.
        model: What its ``model()`` gave, on the device to compute on.
        inputs: Collated inputs of the first row, on that device.

    Returns:
        What was found.

    Raises:
        RecipeError: If its modules, the types of its weights or its outputs are others.
    """
    if not recipe.defines_architecture:
        return "none of its own: what model() gives is taken"
    other = recipe.architecture()
    what = f"recipe {recipe.name!r}: architecture()"
    cure = (
        "Worker processes, `indexer append` and services put the index's weights into it: let it build what model() "
        "does, or leave it out"
    )
    try:
        other.load_state_dict(model.state_dict())
    except RuntimeError as error:
        reason = shorten(str(error), 240, placeholder=" …").rstrip(". ")
        raise RecipeError(f"{what} has other modules than model(): {reason}. {cure}") from error
    if state_digest(other.state_dict()) != state_digest(model.state_dict()):
        raise RecipeError(f"{what} has weights of other types than model(). {cure}")
    other = other.to(next((parameter.device for parameter in model.parameters()), torch.device("cpu"))).eval()
    with torch.no_grad():
        expected, found = (recipe.outputs(recipe.call(one, inputs)) for one in (model, other))
    if expected.shape != found.shape:
        raise RecipeError(f"{what} gives outputs of shape {list(found.shape)}, model() {list(expected.shape)}. {cure}")
    change = float((expected - found).abs().max() / expected.abs().max().clamp_min(1e-30)) if found.numel() else 0.0
    if not change <= OUTPUT_TOLERANCE:
        raise RecipeError(
            f"{what} with the weights of model() gives the first row other outputs, {change:.1%} away: what differs is "
            f"no weight (an attribute, a buffer that is not saved, a hook). {cure}"
        )
    return f"outputs with the weights of model() within {change:.1e}"
