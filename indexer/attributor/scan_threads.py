"""Threads that share the rows of one scan: kernels without the GIL, a piece of the rows each."""

from collections.abc import Callable
from functools import partial

from attribution.cores import num_cores, on_all_cores

#: Rows below which handing a piece to another thread costs more than multiplying it.
_FEWEST_ROWS = 256
#: Pieces for each thread: a core that is busy with something else takes fewer.
_PIECES = 4


def in_pieces(kernel: Callable[[int, int], object], num_rows: int) -> None:
    """Run a kernel over rows 0 … n−1, as many pieces at a time as there are cores to use; a free core takes the next.

    A row's result must not depend on the piece it is in.

    Args:
        kernel: Takes the first row and the one after the last; releases the GIL.
        num_rows: n.
    """
    threads = num_cores()
    pieces = 1 if threads == 1 else min(_PIECES * threads, max(1, num_rows // _FEWEST_ROWS))
    edges = [num_rows * piece // pieces for piece in range(pieces + 1)]
    on_all_cores([partial(kernel, edges[piece], edges[piece + 1]) for piece in range(pieces)])
