"""Where two values of a manifest differ, in a few words: a sketch has as many parts as a model has weights."""

from collections.abc import Mapping, Sequence
from typing import Any


def first_difference(mine: Any, theirs: Any) -> tuple[str, str]:
    """Say the first thing that differs between two values.

    Args:
        mine: A value; of a mapping its values are compared by key, of a list or tuple its entries.
        theirs: Another, not equal to it.

    Returns:
        Both sides: the whole values, or the key and the value of the first that differs, or how many there are.
    """
    if isinstance(mine, Mapping) and isinstance(theirs, Mapping):
        name = next(name for name in sorted({*mine, *theirs}) if mine.get(name) != theirs.get(name))
        ours, other = first_difference(mine.get(name), theirs.get(name))
        return f"{name}: {ours}", f"{name}: {other}"
    if isinstance(mine, list | tuple) and isinstance(theirs, list | tuple):
        return _first_entry(mine, theirs)
    return str(mine), str(theirs)


def _first_entry(mine: Sequence[Any], theirs: Sequence[Any]) -> tuple[str, str]:
    for ours, other in zip(mine, theirs, strict=False):
        if ours != other:
            return str(ours), str(other)
    return f"count {len(mine)}", f"count {len(theirs)}"
