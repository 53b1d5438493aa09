"""How busy the machine is: a figure of a shared one means little without it."""

import os


def load() -> float:
    """Return the load average of the last minute."""
    return os.getloadavg()[0]
