"""``--methods``: some of an experiment's methods instead of all."""

from collections.abc import Sequence

from experiments.ekfac import is_available as ekfac_is_available


class UnknownMethodError(ValueError):
    """A method that the experiment does not have, or that cannot be run here."""


def check_methods(methods: Sequence[str], allowed: Sequence[str]) -> None:
    """Refuse methods that an experiment does not have, and EK-FAC alone where kronfluence is not installed.

    Args:
        methods: Those asked.
        allowed: Those it has.

    Raises:
        UnknownMethodError: It names them, and those allowed.
    """
    if unknown := [method for method in methods if method not in allowed]:
        raise UnknownMethodError(
            f"--methods: no method {', '.join(map(repr, unknown))}; allowed are {', '.join(allowed)}"
        )
    if set(methods) == {"ekfac"} and not ekfac_is_available():
        raise UnknownMethodError(
            "--methods ekfac: kronfluence is not installed (`make` installs it), and no other method is asked"
        )
