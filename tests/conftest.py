"""What every test process does before its first test."""

import gc


def pytest_collection_finish() -> None:
    """Leave what was imported out of garbage collections: each would walk millions of objects that live to the end."""
    gc.collect()
    gc.freeze()
