"""The paper's way to the next pick: search the residual and its negative at every step, drop the acquired, merge."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attribution.acquired import AcquiredSet
from attribution.exact_sums import inner_product_error, inner_products
from attribution.search import Search

#: Contenders read at a time; a pool of zeros or duplicates contends whole.
_DECIDING_ROWS = 256


@dataclass(frozen=True)
class Pick:
    """The row with the largest absolute covariance with the query.

    Attributes:
        row: Its row.
        covariance: φ · r in float64, signed, measurement².
        sketch: φ, float64, shape [d].
    """

    row: int
    covariance: float
    sketch: Float[Tensor, " d"]


def best_by_float64(
    rows: Int[Tensor, " m"],
    sketches: Callable[[Int[Tensor, " m"]], Float[Tensor, "m d"]],
    residual: Float[Tensor, " d"],
) -> Pick:
    """Decide among contenders by float64 inner products of the stored sketches, ties to the lowest row.

    Args:
        rows: Contending rows, shape [m], at least one.
        sketches: Reads stored sketches, float64.
        residual: r, float64, shape [d].

    Returns:
        The row with the largest |φ · r|.
    """
    rows = rows.sort().values
    best: Pick | None = None
    for chunk in torch.split(rows, _DECIDING_ROWS):
        values = sketches(chunk)
        covariances = inner_products(values, residual)
        place = _first_largest(covariances.abs())
        if best is None or abs(float(covariances[place])) > abs(best.covariance):
            best = Pick(int(chunk[place]), float(covariances[place]), values[place])
    assert best is not None, "no contenders"
    return best


def _first_largest(values: Float[Tensor, " m"]) -> int:
    # torch.argmax promises no order among equals.
    return int((values == values.max()).nonzero()[0])


class LiteralPicker:
    """Finds each pick by one search of (r, −r).

    Args:
        search: The vector database.
        sketches: Reads stored sketches, float64.
        rows_allowed: Sorted rows that may be picked, or None for all.
        num_allowed: How many they are.
        largest_norm: max ‖φ‖ over them.
        bytes_per_sketch: What reading one stored sketch costs.

    Attributes:
        index_queries: Rows sent to the search so far.
        rows_scored: Sketches multiplied so far.
        bytes_read: Bytes of sketches read so far.
    """

    def __init__(
        self,
        search: Search,
        sketches: Callable[[Int[Tensor, " m"]], Float[Tensor, "m d"]],
        rows_allowed: Int[Tensor, " a"] | None,
        num_allowed: int,
        largest_norm: float,
        bytes_per_sketch: int,
    ) -> None:
        self._search = search
        self._sketches = sketches
        self._rows_allowed = rows_allowed
        self._num_allowed = num_allowed
        self._largest_norm = largest_norm
        self._bytes_per_sketch = bytes_per_sketch
        self._taken: list[int] = []
        self.index_queries = 0
        self.rows_scored = 0
        self.bytes_read = 0

    def best(self, acquired: AcquiredSet) -> Pick | None:
        """Find the row with the largest |φ · r| among those not yet picked.

        Args:
            acquired: The acquired set, all of whose members this picker chose; its residual is r.

        Returns:
            The pick, now counted as taken; None when nothing is left whose product is not exactly 0.
        """
        residual = acquired.residuals[0]
        # Products of the search are off by at most this, so a row this far below the best may still be the best.
        length = float(torch.linalg.vector_norm(residual))
        dim = residual.shape[0]
        error = (self._search.relative_error + inner_product_error(dim, torch.float64)) * self._largest_norm * length
        # The acquired may fill a list, and ties at its end hide rows: ask for more until the end is out of reach.
        num_results = min(self._num_allowed, len(self._taken) + 8)
        while True:
            scores, rows, reach = self._signed_lists(residual, num_results)
            if rows.numel() == 0:
                if num_results >= self._num_allowed:
                    return None
            else:
                best = float(scores.max())
                if num_results >= self._num_allowed or not self._search.exact or best - 2 * error > reach:
                    break
            num_results = min(self._num_allowed, 4 * num_results)
        contenders = torch.unique(rows[scores >= best - 2 * error])
        pick = best_by_float64(contenders, self._sketches, residual)
        self.rows_scored += contenders.numel()
        self.bytes_read += contenders.numel() * self._bytes_per_sketch
        if pick.covariance == 0:
            return None
        self._taken.append(pick.row)
        return pick

    def _signed_lists(
        self, residual: Float[Tensor, " d"], num_results: int
    ) -> tuple[Float[Tensor, " m"], Int[Tensor, " m"], float]:
        # Search r and −r: absolute scores and rows not yet taken, and the score that no row outside exceeds.
        found = self._search.search(torch.stack([residual, -residual]), num_results, self._rows_allowed)
        self.index_queries += 2
        self.rows_scored += 2 * self._num_allowed
        self.bytes_read += found.bytes_read
        present = found.rows >= 0
        complete = bool((~present).any())
        reach = float("-inf") if complete else float(found.scores[:, -1].max())
        rows, scores = found.rows[present], found.scores[present].double()
        free = ~torch.isin(rows, torch.tensor(self._taken, dtype=torch.int64))
        # A signed list may reach rows of the other sign; |score| is theirs all the same.
        return scores[free].abs(), rows[free], reach
