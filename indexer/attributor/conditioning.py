"""What all of D knows about a query: its posterior given D, from a cached spectrum less the excluded rows (54)."""

import torch
from torch import Tensor

from attribution.posterior import QueryPosterior
from indexer.attributor.errors import MissingSpectrumError
from indexer.attributor.pool import Pool, positions_in
from indexer.attributor.spectra import Spectra
from indexer.attributor.stored_rows import StoredRows

#: Beyond this many excluded rows, decomposing what is left is cheaper than removing them one by one.
MOST_REMOVED = 512


class Conditioning:
    """One query given D.

    Args:
        pool: The question's rows.
        stored: The stored rows of the view.
        spectra: Spectra of the index.
        query: φ_*, float64 [d].
        noise_variance: σ².
    """

    def __init__(self, pool: Pool, stored: StoredRows, spectra: Spectra, query: Tensor, noise_variance: float) -> None:
        self._pool = pool
        self._stored = stored
        self._spectra = spectra
        self._query = query
        self._noise_variance = noise_variance
        self._cross: Tensor | None = None
        self._posterior: QueryPosterior | None = None
        self._by_removal = pool.whole and (
            pool.excluded.numel() <= MOST_REMOVED
            or min(pool.conditioning.numel(), stored.dim) > spectra.max_computed_size
        )
        self._rows = pool.comparable if self._by_removal else pool.conditioning

    @property
    def unavailable(self) -> str | None:
        """Why there is no posterior; None if there is one."""
        if self._by_removal and self._spectra.available(self._pool.view, self._pool.label):
            return None
        size = min(self._rows.numel(), self._stored.dim)
        if not self._by_removal and size <= self._spectra.max_computed_size:
            return None
        what = f"partition {self._pool.view.partition(self._pool.label)!r} of view {self._pool.view.name!r}"
        return (
            f"the Gram matrix of {what} is not stored, and with {size} rows and columns it is too large to compute "
            f"while a question waits (at most {self._spectra.max_computed_size}). Build it with `indexer derive`."
        )

    def cross(self) -> Tensor:
        """Multiply every comparable row with the query, once.

        Returns:
            Φ_T φ_*, float64 [n], T being every comparable row.
        """
        if self._cross is None:
            self._cross = self._stored.products(self._pool.comparable, self._query)
        return self._cross

    def posterior(self, pointer: str) -> QueryPosterior:
        """Condition the query on D, once.

        Args:
            pointer: The field of the request that needs it.

        Returns:
            The posterior; positions in it are given by :meth:`positions`.

        Raises:
            MissingSpectrumError: If it is neither stored nor small enough to compute.
        """
        if self._posterior is None:
            if (reason := self.unavailable) is not None:
                raise MissingSpectrumError(f"{pointer} cannot be served: {reason}", pointer=pointer)
            self._posterior = self._make()
        return self._posterior

    def positions(self, rows: Tensor) -> Tensor:
        """Find rows of D in the posterior's set.

        Args:
            rows: Rows of D.

        Returns:
            Their positions.
        """
        return positions_in(self._rows, rows)

    def row(self, position: int) -> int:
        """Name the row at a position of the posterior's set.

        Args:
            position: The position.

        Returns:
            Its row.
        """
        return int(self._rows[position])

    def _make(self) -> QueryPosterior:
        view, label = self._pool.view, self._pool.label
        if self._by_removal:
            posterior = self._spectra.posterior(view, label, self._noise_variance)
        else:
            posterior = self._spectra.posterior_of_rows(view, self._rows, self._noise_variance)
        cross = None
        if posterior.is_kernel:
            cross = self.cross()
            if not self._by_removal:
                cross = cross[self._pool.positions(self._rows)]
        # Not through self, which keeps the posterior: a question's arrays go with it, and wait for no collector.
        stored, rows = self._stored, self._rows
        given = posterior.of_query(self._query, cross, lambda places: stored.sketches(rows[places]))
        if self._by_removal and self._pool.excluded.numel():
            return given.without(self._pool.excluded)
        return given


def rows_tensor(rows: list[int]) -> Tensor:
    """Make a tensor of rows, int64 even when empty.

    Args:
        rows: The rows.

    Returns:
        int64 [m].
    """
    return torch.tensor(rows, dtype=torch.int64)
