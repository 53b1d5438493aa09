"""``--methods``: some of an experiment's methods instead of all, and METHOD@NOISE where one can name its noise.

METHOD@each-size asks for a noise that is tuned at each size by itself, where an experiment has sizes.
"""

import math
from collections.abc import Sequence
from typing import Literal

from experiments.ekfac import is_available as ekfac_is_available

EachSize = Literal["each-size"]
"""In the place of a noise: one tuned at each size."""
EACH_SIZE: EachSize = "each-size"


class UnknownMethodError(ValueError):
    """A method that the experiment does not have, that cannot be run here or that is named twice."""


def named_noise(method: str) -> tuple[str, float | EachSize | None]:
    """Part METHOD@NOISE.

    Args:
        method: A method as it is asked.

    Returns:
        The method, and its relative noise or ``EACH_SIZE``; None where it names none.

    Raises:
        UnknownMethodError: If what stands after the @ is neither.
    """
    rule, at, text = method.partition("@")
    if not at:
        return rule, None
    if text == EACH_SIZE:
        return rule, EACH_SIZE
    try:
        noise = float(text)
    except ValueError:
        noise = math.nan
    if not (math.isfinite(noise) and noise > 0):
        raise UnknownMethodError(
            f"--methods {method}: after the @ stands a relative noise, a positive number, or {EACH_SIZE}"
        )
    return rule, noise


def check_methods(methods: Sequence[str], allowed: Sequence[str], with_noise: Sequence[str] = ()) -> None:
    """Refuse methods that an experiment does not have or that are named twice, and EK-FAC alone without kronfluence.

    Args:
        methods: Those asked.
        allowed: Those it has.
        with_noise: Those of them that can name their noise.

    Raises:
        UnknownMethodError: It names them, and what is allowed.
    """
    asked = [named_noise(method) for method in methods]
    if unknown := [
        method
        for method, (rule, noise) in zip(methods, asked, strict=True)
        if rule not in (allowed if noise is None else with_noise)
    ]:
        named = ", ".join(f"{rule}@NOISE" for rule in with_noise)
        noisy = f", and {named}, or @{EACH_SIZE} in the place of @NOISE" if with_noise else ""
        raise UnknownMethodError(
            f"--methods: no method {', '.join(map(repr, unknown))}; allowed are {', '.join(allowed)}{noisy}"
        )
    if twice := sorted({method for method, of in zip(methods, asked, strict=True) if asked.count(of) > 1}):
        raise UnknownMethodError(f"--methods: {', '.join(twice)} more than once; name every method once")
    if set(methods) <= {"ekfac", "ekfac_undamped"} and not ekfac_is_available():
        raise UnknownMethodError(
            "--methods ekfac: kronfluence is not installed (`make` installs it), and no other method is asked"
        )
