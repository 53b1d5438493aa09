"""``--methods``: some of an experiment's methods instead of all."""

from collections.abc import Sequence

from experiments.ekfac import is_available as ekfac_is_available


class UnknownMethodError(ValueError):
    """A method that the experiment does not have, that cannot be run here or that is named twice."""


def check_methods(methods: Sequence[str], allowed: Sequence[str]) -> None:
    """Refuse methods that an experiment does not have or that are named twice, and EK-FAC alone without kronfluence.

    Args:
        methods: Those asked.
        allowed: Those it has.

    Raises:
        UnknownMethodError: It names them, and what is allowed.
    """
    if unknown := [method for method in methods if method not in allowed]:
        raise UnknownMethodError(
            f"--methods: no method {', '.join(map(repr, unknown))}; allowed are {', '.join(allowed)}"
        )
    if twice := sorted({method for method in methods if list(methods).count(method) > 1}):
        raise UnknownMethodError(f"--methods: {', '.join(twice)} more than once; name every method once")
    if set(methods) == {"ekfac"} and not ekfac_is_available():
        raise UnknownMethodError(
            "--methods ekfac: kronfluence is not installed (`make` installs it), and no other method is asked"
        )
