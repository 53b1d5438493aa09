"""How many threads one computation takes, settled before the libraries that compute are loaded.

OpenMP hands a limit set by a call to the calling thread only, and requests compute in threads of their own: FAISS took
every core for each of them. The environment is read once by each library and holds for all threads.
"""

import os

VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")


def usable_cores() -> int:
    """Return how many cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):  # a container or taskset may leave fewer than the machine has
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def limit_threads(threads: int) -> None:
    """Limit the threads of every computation of this process; before torch, FAISS and numpy are imported.

    Args:
        threads: How many one computation may take.
    """
    os.environ.update(dict.fromkeys(VARIABLES, str(threads)))
