"""Which search answers for a partition: its FAISS index, or brute force over its rows; opened once."""

import threading
from typing import Protocol

from torch import Tensor

from sketchstore.brute_force import BruteForceSearch
from sketchstore.errors import MissingDerivedError
from sketchstore.faiss_search import open_faiss
from sketchstore.reader import Index
from sketchstore.search_results import SearchResults
from sketchstore.view import View

ENGINES = ("faiss", "brute_force")


class IndexSearch(Protocol):
    """A search over one partition of an index: ``attribution``'s Search, with a name."""

    @property
    def exact(self) -> bool:
        """Whether lists are complete."""

    @property
    def relative_error(self) -> float:
        """Error bound of the scores, relative to the product of the norms."""

    @property
    def local(self) -> bool:
        """Whether a search reads this machine's memory."""

    @property
    def engine(self) -> str:
        """``faiss`` or ``brute_force``."""

    @property
    def factory(self) -> str | None:
        """FAISS factory string."""

    @property
    def recall(self) -> float:
        """Share of the true results that lists hold, as measured at build."""

    def search(self, residuals: Tensor, num_results: int, rows_allowed: Tensor | None = None) -> SearchResults:
        """Find the largest signed inner products.

        Args:
            residuals: Shape [b, d].
            num_results: Length of each list.
            rows_allowed: Sorted rows, or None for all of the partition.
        """


class Engines:
    """The searches of one index.

    Args:
        index: The index.
        engine: ``faiss`` or ``brute_force``.
    """

    def __init__(self, index: Index, engine: str) -> None:
        self.engine = engine
        self._index = index
        self._searches: dict[tuple[str, int | None], tuple[IndexSearch, str | None]] = {}
        self._opening: dict[tuple[str, int | None], threading.Lock] = {}
        self._lock = threading.Lock()

    def search(self, view: View, label: int | None) -> tuple[IndexSearch, str | None]:
        """Open the search of a partition.

        Args:
            view: The view.
            label: The partition.

        Returns:
            The search, and a warning where it is not the engine asked for, or not exact.
        """
        key = (view.name, label)
        if (found := self._searches.get(key)) is not None:
            return found
        with self._lock:
            opening = self._opening.setdefault(key, threading.Lock())
        with opening:  # who needs another partition does not wait for this one to be checked
            if key not in self._searches:
                self._searches[key] = self._open(view, label)
            return self._searches[key]

    def _open(self, view: View, label: int | None) -> tuple[IndexSearch, str | None]:
        scan = BruteForceSearch(view, None if label is None else view.partition_rows(label))
        if self.engine == "brute_force":
            return scan, None
        try:
            found = open_faiss(self._index, view.name, label)
        except MissingDerivedError:
            return scan, (
                f"This index has no FAISS index of partition {view.partition(label)!r} of view {view.name!r}: brute "
                "force searched instead. Build it with `indexer derive`."
            )
        if found.exact:
            return found, None
        return found, (
            f"FAISS index {found.factory!r} is approximate (recall@10 {found.recall:.3f}): the picks may differ from "
            "those of a full scan."
        )
