"""What certified selections look at first: a view's 8-bit codes where the index has them, else its stored rows."""

import threading
from dataclasses import dataclass

import numpy as np

from attribution.bounded_rows import BoundedRows
from attribution.coarse_rows import CoarseRows
from attribution.cores import num_cores
from attribution.exact_sums import Array
from indexer.attributor.coded_rows import CodedHeads, CodedRows, CodeScans
from indexer.attributor.compiled_bounds import KERNELS
from indexer.attributor.near_heads import places_near
from indexer.attributor.pool import Pool
from indexer.attributor.rounded_pool import RoundedPool
from indexer.attributor.scan_rounds import scan_rounds
from indexer.attributor.seats import Seats
from indexer.attributor.stored_coarse import StoredCoarse
from indexer.attributor.stored_rows import StoredRows
from sketchstore.codes import Codes
from sketchstore.errors import MissingDerivedError
from sketchstore.heads import Heads
from sketchstore.reader import Index


class CoarseViews:
    """The codes of one index, opened once a view; all selections in flight share their scans.

    Args:
        index: The index.

    Attributes:
        rounds: The rounds in which all selections in flight multiply codes.
        seats: Where selections compute that share no scans, as many at a time as there are cores.
    """

    def __init__(self, index: Index) -> None:
        self._index = index
        self.rounds = scan_rounds()
        self.seats = Seats(num_cores())
        self._scans: dict[str, _Scans | None] = {}
        self._coded: dict[tuple[str, int | None], CodedRows] = {}
        self._lock = threading.Lock()

    def of(self, pool: Pool, stored: StoredRows) -> CoarseRows:
        """Give the rows that may be selected, as cheap to multiply as the index allows.

        Args:
            pool: The question's rows.
            stored: The stored rows of its view.

        Returns:
            The candidates.
        """
        coded = self.coded(pool)
        if coded is not None:
            return coded
        return StoredCoarse(stored, pool.candidates.numpy(), _norms_of(pool))

    def coded(self, pool: Pool) -> CodedRows | None:
        """Give the codes of the rows that may be selected.

        Args:
            pool: The question's rows.

        Returns:
            The candidates' codes, None where the index has none.
        """
        scans = self._scans_of(pool.view.name)
        if scans is None:
            return None
        if pool.candidates.numel() < pool.comparable.numel():
            return scans.coded(pool)
        # Questions about everything share what is kept by row: it is a third of what a question holds.
        with self._lock:
            key = (pool.view.name, pool.label)
            if key not in self._coded:
                self._coded[key] = scans.coded(pool)
            return self._coded[key]

    def rounded(self, pool: Pool) -> RoundedPool | None:
        """Give the codes of the rows that may be selected, for the exact rules.

        Args:
            pool: The question's rows.

        Returns:
            The candidates' codes, None where the index has none.
        """
        scans = self._scans_of(pool.view.name)
        return None if scans is None else RoundedPool(scans.rows, pool.candidates.numpy(), _norms_of(pool))

    def has_codes(self, pool: Pool) -> bool:
        """Say whether the index has codes of a pool's view.

        Args:
            pool: The question's rows.

        Returns:
            Whether ``coded`` gives any.
        """
        return self._scans_of(pool.view.name) is not None

    def _scans_of(self, view: str) -> "_Scans | None":
        with self._lock:
            if view not in self._scans:
                self._scans[view] = self._open(view)
            return self._scans[view]

    def _open(self, view: str) -> "_Scans | None":
        try:
            rows = CodeScans(self._index.derived.codes(view), self.rounds)
        except MissingDerivedError:
            return None
        try:
            heads = self._index.derived.heads(view)
        except MissingDerivedError:
            return _Scans(rows, None, None)
        return _Scans(rows, heads, CodeScans(Codes(heads.codes, heads.scales, heads.errors), self.rounds))


@dataclass(frozen=True)
class _Scans:
    """What is open of one view: the codes of its rows, its heads, and the codes of these."""

    rows: CodeScans
    heads: Heads | None
    head_rows: CodeScans | None

    def coded(self, pool: Pool) -> CodedRows:
        rows, norms = pool.candidates.numpy(), _norms_of(pool)
        if self.heads is None or self.head_rows is None:
            return CodedRows(self.rows, rows, norms)
        return CodedRows(self.rows, rows, norms, CodedHeads(self.head_rows, self.heads, rows, norms))


def _norms_of(pool: Pool) -> Array:
    norms: Array = pool.view.squared_norms[pool.candidates].sqrt().numpy()
    return norms


def compile_kernels() -> None:
    """Compile, or load from numba's cache, what multiplies codes and evaluates bounds, on a few rows of one value."""
    one, ones, rows = np.ones(1), np.ones(16), np.arange(16)  # more rows than are bounded without heads
    codes = Codes(np.ones((16, 1), dtype=np.int8), ones, ones)
    scans = CodeScans(codes, scan_rounds())
    heads = CodedHeads(scans, Heads(np.ones((1, 1)), codes.codes, ones, ones, ones), rows, ones)
    coarse = CodedRows(scans, rows, ones, heads)
    coarse.products(one, None)
    RoundedPool(scans, rows, ones).rounded_products(one)
    places_near(heads, coarse.norms, np.ones((1, 1)), 0.5)
    bounded = BoundedRows(coarse, 1.0, 2, 0.0, KERNELS)
    bounded.face(one)
    bounded.anchor()
    bounded.add(rows, ones, ones)
    bounded.face(one)
    bounded.reaching(0.0)
