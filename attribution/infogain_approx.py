"""Approximate InfoGain for one query (Eq. 15): the greedy loop over a vector database, literal or certified.

Both strategies pick the row whose float64 inner product with the residual is largest, ties to the lowest row; they
differ in what they read for it. ``literal`` asks the index at every step, as the paper does. ``certified`` proves each
pick from bounds (method.md section 6), the way that reads the fewest bytes of those at hand: columns of a stored kernel
matrix, coarse rows with known errors, or the lists of one search.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

from jaxtyping import Float, Int
from torch import Tensor

from attribution.acquired import AcquiredSet, gain_step
from attribution.bound_kernels import BoundKernels
from attribution.cheapest_way import PoolSizes, cheapest_way
from attribution.checks import check_budget, check_option, check_query
from attribution.coarse_rows import CoarseRows
from attribution.gain_system import KernelColumn
from attribution.gram_picker import GramPicker
from attribution.list_picker import ListPicker
from attribution.literal import LiteralPicker
from attribution.scan_picker import ScanPicker
from attribution.search import Search
from attribution.steps import Step

#: Bounds evaluated on arrays; an index brings compiled ones.
ARRAY_KERNELS = BoundKernels()
STRATEGIES = ("certified", "literal")


def select_infogain_approx(
    query: Float[Tensor, " d"],
    search: Search,
    sketches: Callable[[Int[Tensor, " m"]], Float[Tensor, "m d"]],
    noise_variance: float,
    *,
    budget: int,
    rows_allowed: Int[Tensor, " a"] | None,
    num_allowed: int,
    largest_norm: float,
    strategy: str = "certified",
    squared_norms: Float[Tensor, " n"] | None = None,
    float32_sketches: Callable[[Int[Tensor, " m"]], Float[Tensor, "m d"]] | None = None,
    kernel_column: KernelColumn | None = None,
    coarse: CoarseRows | None = None,
    bytes_per_sketch: int = 0,
    kernels: BoundKernels = ARRAY_KERNELS,
    max_results: int = 2048,
    way: str | None = None,
) -> Iterator[Step]:
    r"""Select the examples whose posterior covariance with the query is largest, one at a time (Eq. 15).

    .. math:: a = \arg\max_n (\phi_n \cdot r_A)^2, \quad
        r_A = \phi_* - \Phi_A^\top (\Phi_A \Phi_A^\top + \sigma^2 I)^{-1} \Phi_A \phi_*

    The score is the numerator of the linear-response reduction (Eq. 14) and overstates it by 1 + v(n | A)/σ²: it ranks,
    and the nats of every step are the exact InfoGain of what was picked (Eq. 6). A good choice when relative noise is 1
    or more, where it picks nearly what exact InfoGain picks, without a pass over the pool per step.

    Args:
        query: Sketch of the query, shape [d].
        search: The vector database. Only an exact one certifies; over another, steps carry ``exact=False``.
        sketches: Reads exact stored sketches of some rows, float64, shape [m, d].
        noise_variance: σ² > 0, in squared units of the measurement.
        budget: How many examples to select, from 1 to ``num_allowed``.
        rows_allowed: Rows that may be picked, sorted, int64; None for all rows of the search.
        num_allowed: How many rows that is.
        largest_norm: max ‖φ‖ over the allowed rows, measurement.
        strategy: ``"certified"`` or ``"literal"``. The picks are the same.
        squared_norms: ‖φ‖² by row, float64, shape [n]; makes the certified bounds tighter.
        float32_sketches: Reads the same sketches as float32, for products that only nominate; spares a conversion
            when they are stored in float32 or less.
        kernel_column: Gives K(n, a) of every allowed row n, ascending, for an allowed row a, float64, shape
            [num_allowed]: a column of a stored Gram matrix. Then a certified selection can do with one look at the pool
            and no other at any row but contenders.
        coarse: The allowed rows in few bits. Then a certified selection over an exact, local search looks at all of
            them once instead of searching, and later where bounds allow a row to be the pick.
        bytes_per_sketch: What reading one stored sketch costs; counted in the steps.
        kernels: Evaluate the bounds on coarse rows.
        max_results: Longest list asked of an index that neither serves. A pool within it needs one search for the whole
            selection.
        way: How to certify: one of ``cheapest_way.WAYS`` that the arguments allow. None: the one of fewest bytes.

    Yields:
        One step per pick, with the search's counters so far. It ends early when the best score is exactly 0.
    """
    check_query(query)
    check_budget(budget, num_allowed)
    check_option(strategy, STRATEGIES, "strategy")
    looks = coarse if search.exact and search.local else None
    at_hand = ["lists"]
    if looks is not None:
        at_hand.append("scan")
    if kernel_column is not None and search.exact:
        at_hand.append("columns")
    if way is None:
        row = 4 * query.shape[0]  # of a search, in float32
        look = row if looks is None else looks.bytes_per_row
        sizes = PoolSizes(num_allowed, query.shape[0], budget, look=look, sketch=row)
        way = cheapest_way(sizes, at_hand, local=search.local)
    check_option(way, at_hand, "way")
    acquired = AcquiredSet(query.unsqueeze(0), noise_variance, budget)
    picker: GramPicker | ListPicker | LiteralPicker | ScanPicker
    if strategy == "literal":
        picker = LiteralPicker(search, sketches, rows_allowed, num_allowed, largest_norm, bytes_per_sketch)
    elif way == "columns":
        assert kernel_column is not None, "at hand"
        picker = GramPicker(
            search,
            sketches,
            kernel_column,
            rows_allowed,
            num_allowed,
            largest_norm,
            squared_norms,
            bytes_per_sketch,
            looks,
        )
    elif way == "scan":
        assert looks is not None, "at hand"
        picker = ScanPicker(looks, sketches, bytes_per_sketch, budget, kernels)
    else:
        picker = ListPicker(
            search,
            sketches,
            float32_sketches,
            rows_allowed,
            num_allowed,
            largest_norm,
            squared_norms,
            bytes_per_sketch,
            max_results=max_results,
        )
    for _ in range(budget):
        pick = picker.best(acquired)
        if pick is None:
            return
        variance_before = float(acquired.variances[0])
        added = acquired.add(pick.sketch)
        step = gain_step(acquired, added, variance_before, position=pick.row, score=pick.covariance**2)
        yield replace(
            step,
            index_queries=picker.index_queries,
            rows_scored=picker.rows_scored,
            bytes_read=picker.bytes_read,
            exact=search.exact,
        )
