"""What a hit stands for: candidates whose kernel cosine with it exceeds 0.95, which greedy selection passes over."""

import math

import torch
from torch import Tensor

from attribution.exact_sums import inner_product_error, inner_products
from indexer.attributor.coarse import CoarseViews
from indexer.attributor.coded_rows import CodedHeads, CodedRows
from indexer.attributor.known_neighbours import KnownNeighbours
from indexer.attributor.near_heads import places_near
from indexer.attributor.pool import Pool
from indexer.attributor.stored_rows import StoredRows

COSINE = 0.95
_BLOCK_BYTES = 16 << 20


class NearDuplicates:
    """Near-duplicates among the candidates of one question.

    Args:
        pool: The question's rows.
        stored: The stored rows of the view.
        kernel: K_TT of the comparable rows, float64, or None.
        coarse: What else is cheap to multiply of the candidates, where there is no kernel; None if nothing is.
        known: What other questions found among whole partitions, shared with them; None to find everything anew.
    """

    def __init__(
        self,
        pool: Pool,
        stored: StoredRows,
        kernel: Tensor | None,
        coarse: CoarseViews | None = None,
        known: KnownNeighbours | None = None,
    ) -> None:
        self._pool = pool
        self._stored = stored
        self._kernel = kernel
        self._coarse = None if kernel is not None or coarse is None else coarse.coded(pool)
        self._norms = pool.view.squared_norms[pool.candidates].sqrt()
        self._found: dict[int, Tensor] = {}
        # What stands for what depends on the candidates; only whole partitions are asked about again and again.
        everything = pool.candidates.numel() == pool.comparable.numel()
        self._known = known if everything and kernel is None else None

    def find(self, rows: list[int]) -> None:
        """Find the near-duplicates of some candidates, all of them in one pass.

        Args:
            rows: Their rows.
        """
        wanted = [row for row in rows if row not in self._found]
        if self._known is not None:
            self._found.update(self._known.of(self._pool, wanted))
            wanted = [row for row in wanted if row not in self._found]
        if not wanted:
            return
        if self._kernel is not None:
            self._find_in_kernel(self._kernel, torch.tensor(wanted))
        else:
            self._find_among_rows(wanted)
        if self._known is not None:
            self._known.remember(self._pool, {row: self._found[row] for row in wanted})

    def _find_among_rows(self, wanted: list[int]) -> None:
        if self._coarse is not None and self._coarse.heads is not None:
            self._find_by_heads(self._coarse, self._coarse.heads, wanted)
        elif len(wanted) == 1:
            self._find_by_products(wanted[0])
        else:
            self._find_by_blocks(torch.tensor(wanted))

    def of(self, row: int) -> Tensor:
        """Give the near-duplicates of a candidate.

        Args:
            row: Its row.

        Returns:
            Rows of candidates, ascending, without itself.
        """
        self.find([row])
        return self._found[row]

    def _find_in_kernel(self, kernel: Tensor, rows: Tensor) -> None:
        positions = self._pool.positions(self._pool.candidates)
        places = self._pool.positions(rows)
        everything = positions.numel() == self._pool.comparable.numel()
        products = kernel[places] if everything else kernel[places][:, positions]
        lengths = self._pool.view.squared_norms[rows].sqrt()
        near = products > COSINE * lengths[:, None] * self._norms
        self._found.update((row, torch.empty(0, dtype=torch.int64)) for row in rows.tolist())
        for hit in near.sum(dim=1).gt(1).nonzero().squeeze(1).tolist():  # beside itself
            self._keep(int(rows[hit]), near[hit])

    def _find_by_heads(self, coarse: CodedRows, heads: CodedHeads, rows: list[int]) -> None:
        """Rule out most candidates by their heads, most others by their codes, and decide the rest in float64."""
        hits = self._stored.sketches(torch.tensor(rows))
        norms = self._norms.numpy()
        for row, hit, places in zip(rows, hits, places_near(heads, coarse.norms, hits.numpy(), COSINE), strict=True):
            least = COSINE * math.sqrt(float(self._pool.view.squared_norms[row])) * norms
            values, errors = coarse.products(hit.numpy(), places)
            places = places[values + errors >= least[places] * (1 - 1e-9)]
            close = self._pool.candidates[torch.from_numpy(places)]
            products = inner_products(self._stored.sketches(close), hit)
            near = products > torch.from_numpy(least[places])
            self._found[row] = close[near & (close != row)]

    def _find_by_products(self, row: int) -> None:
        sketch = self._stored.sketches(torch.tensor([row]))[0]
        products = self._stored.products(self._pool.candidates, sketch)
        self._keep(row, products > self._thresholds(row))

    def _find_by_blocks(self, rows: Tensor) -> None:
        """Multiply hits with blocks of candidates in float32; what that cannot tell from 0.95 is decided in float64."""
        hits = self._stored.sketches(rows)
        lengths = torch.linalg.vector_norm(hits, dim=1, keepdim=True)
        units = (hits / torch.where(lengths > 0, lengths, 1.0)).float()
        unsure = 2 * inner_product_error(self._stored.dim, torch.float32)
        found: list[list[Tensor]] = [[] for _ in rows]
        block = max(1, _BLOCK_BYTES // (4 * self._stored.dim))
        candidates = self._pool.candidates
        for top in range(0, candidates.numel(), block):
            part = candidates[top : top + block]
            norms = self._norms[top : top + block]
            values = self._stored.read(part, torch.float32)
            inverse = torch.where(norms > 0, 1.0 / norms, torch.zeros_like(norms)).float()
            cosines: Tensor = (values @ units.T) * inverse[:, None]
            near = cosines > COSINE - unsure
            for hit in near.any(dim=0).nonzero().squeeze(1).tolist():
                places = near[:, hit].nonzero().squeeze(1)
                close = part[places]
                doubtful = cosines[places, hit] < COSINE + unsure
                products = torch.full((close.numel(),), float("inf"), dtype=torch.float64)
                if bool(doubtful.any()):
                    products[doubtful] = inner_products(self._stored.sketches(close[doubtful]), hits[hit])
                found[hit].append(close[products > COSINE * lengths[hit] * norms[places]])
        for hit, row in enumerate(rows.tolist()):
            close = torch.cat([*found[hit], torch.empty(0, dtype=torch.int64)])
            self._found[row] = close[close != row]

    def _thresholds(self, row: int) -> Tensor:
        own = math.sqrt(float(self._pool.view.squared_norms[row]))
        return COSINE * own * self._norms

    def _keep(self, row: int, near: Tensor) -> None:
        close = self._pool.candidates[near]
        self._found[row] = close[close != row]
