"""Says where a user's recipe went wrong: the exception, and the line of the recipe's file it came through."""

from __future__ import annotations

import traceback
from pathlib import Path

MODULE_PREFIX = "nattribute_recipe_"
"""What the names of modules begin with that are users' recipe files."""


def place_of(error: BaseException) -> str | None:
    """Find the innermost line of a user's recipe that an exception came through.

    Args:
        error: The exception, with its traceback.

    Returns:
        ``points.py, line 12, in train_set``; None where it came through no recipe.
    """
    place = None
    for frame, line in traceback.walk_tb(error.__traceback__):
        if str(frame.f_globals.get("__name__")).startswith(MODULE_PREFIX):
            function = frame.f_code.co_name
            inside = "" if function == "<module>" else f", in {function}"
            place = f"{Path(frame.f_code.co_filename).name}, line {line}{inside}"
    return place


def is_of_recipe(error: BaseException) -> bool:
    """Whether an exception came through a user's recipe, or through the model that it gave.

    Args:
        error: The exception, with its traceback.

    Returns:
        Whether it did; a model's class may stand in another file than the recipe.
    """
    called = any(
        frame.f_globals.get("__name__") == "indexer.recipe_file" and frame.f_code.co_name == "call"
        for frame, _ in traceback.walk_tb(error.__traceback__)
    )
    return called or place_of(error) is not None


def said(error: BaseException) -> str:
    """Say what an exception is, and where in a user's recipe it arose.

    Args:
        error: The exception.

    Returns:
        Its type and message, and the place where there is one.
    """
    place = place_of(error)
    message = str(error)
    told = f"{type(error).__name__}: {message}" if message else type(error).__name__
    return told if place is None else f"{told} ({place})"
