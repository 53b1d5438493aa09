"""``--methods``: some of an experiment's methods instead of all."""

from collections.abc import Sequence


class UnknownMethodError(ValueError):
    """A method that the experiment does not have."""


def check_methods(methods: Sequence[str], allowed: Sequence[str]) -> None:
    """Refuse methods that an experiment does not have.

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
