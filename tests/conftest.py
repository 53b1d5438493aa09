"""What every test process does before its first test."""

import gc

from hypothesis import settings

# The same examples in every run, so that a change is judged by what it changed. `make test-reliability` looks for
# others; what it finds becomes an `@example`.
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")


def pytest_collection_finish() -> None:
    """Leave what was imported out of garbage collections: each would walk millions of objects that live to the end."""
    gc.collect()
    gc.freeze()
