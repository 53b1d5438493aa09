"""How long a reliability test takes: short in `make test`, long in `make test-reliability`."""

import os


def rounds(short: int, long: int) -> int:
    """Choose a number of rounds.

    Args:
        short: For every run of the tests.
        long: For the figures of docs/reliability.md.
    """
    return long if os.environ.get("NATTRIBUTE_RELIABILITY") == "long" else short
