"""Search through a derived FAISS index, on the CPU or a GPU: same results as brute force, checked the same way."""

import importlib
import importlib.util
import math
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from sketchstore.brute_force import BruteForceSearch
from sketchstore.derived_manifest import Entry
from sketchstore.errors import EngineUnavailableError
from sketchstore.reader import Index
from sketchstore.search_results import (
    PAD,
    SearchResults,
    check_search,
    contiguous,
    intersect,
    padded,
    relative_error,
    to_float32,
    top,
)
from sketchstore.view import View

GPU_MAX_RESULTS = 2048
HALF_ROUNDOFF = 2.0**-11


def load_faiss() -> Any:
    """The faiss module, imported when first needed: it takes a fifth of a second and is an optional extra.

    Returns:
        The module.

    Raises:
        EngineUnavailableError: If it is not installed.
    """
    if importlib.util.find_spec("faiss") is None:
        raise EngineUnavailableError("faiss is not installed; install nattribute[cpu], or use the brute_force engine")
    return importlib.import_module("faiss")


def is_exact(factory: str, storage_dtype: str) -> bool:
    """Whether a factory string keeps every stored value, so that its search is a full exact scan.

    Args:
        factory: FAISS factory string.
        storage_dtype: "float32" or "float16": a float16 value survives the fp16 scalar quantiser unchanged.

    Returns:
        True for such a factory.
    """
    return factory == "Flat" or (factory == "SQfp16" and storage_dtype == "float16")


class FaissSearch:
    """Search over one partition of a view through its derived FAISS index.

    FAISS holds the stored values, without the view's scale, in the order of the partition's rows. An index that keeps
    them all is searched exactly. Any other only nominates rows: their scores are recomputed from the stored sketches,
    so that scores obey ``relative_error`` whatever the factory, and only recall is lost (``recall``, measured at
    build). Do not fork a process after a search: FAISS's threads do not survive it; spawn.

    Args:
        view: The view.
        entry: The derived entry.
        index: The FAISS index.
        label: The partition's label, or None for all rows.
        gpu: Whether ``index`` lives on a GPU.
    """

    engine = "faiss"

    def __init__(self, view: View, entry: Entry, index: Any, label: int | None = None, *, gpu: bool = False) -> None:
        self.view = view
        self.rows = view.partition_rows(label)
        self.factory = str(entry.options["factory"])
        self.exact = is_exact(self.factory, view.storage_dtype.name)
        measured = (entry.measured or {}).get("recall")
        self.recall = 1.0 if self.exact else float(measured) if isinstance(measured, float) else math.nan
        self.gpu = gpu
        self.local = not gpu
        self.relative_error = relative_error(view.sketch_dim)
        if gpu and view.storage_dtype.name == "float16" and self.exact:
            # The GPU rounds the query to half precision too; entries below its normal range lose at most 2⁻²⁵ each.
            self.relative_error += HALF_ROUNDOFF * 2 + math.sqrt(view.sketch_dim) * 2.0**-24
        self._index = index

    @cached_property
    def _scan(self) -> BruteForceSearch:
        return BruteForceSearch(self.view, self.rows)

    def search(self, residuals: Tensor, num_results: int, rows_allowed: Tensor | None = None) -> SearchResults:
        """Rows with the largest signed inner product with each residual.

        A limit to some rows uses a selector only where FAISS obeys one: its GPU indexes and IVF ignore it in silence
        or find nothing, so there more rows are fetched and the others dropped, or the allowed rows are scanned.

        Args:
            residuals: [b, d] in true units. Stack r and −r to search by absolute value and merge.
            num_results: How many rows per residual.
            rows_allowed: Limit to these rows, int64 ascending.

        Returns:
            Scores in true units, each within ``relative_error · ‖φ‖ · ‖r‖``, and rows, best first.
        """
        check_search(residuals, num_results, self.view.sketch_dim)
        total = self.rows.numel()
        allowed = intersect(self.rows, rows_allowed)
        limited = allowed.numel() < total
        wanted = min(num_results, allowed.numel())
        if wanted == 0:
            return padded([(torch.empty(0), torch.empty(0, dtype=torch.int64))] * residuals.shape[0], num_results, 0, 0)
        if self.exact and not self.gpu:
            if limited:
                return self._fetch(residuals, wanted, num_results, parameters=self._selector(allowed), allowed=allowed)
            return self._fetch(residuals, wanted, num_results)
        share = allowed.numel() / total
        fetch = min(total, math.ceil(wanted / share * 1.5) + 16) if limited else wanted
        if (self.gpu and fetch > GPU_MAX_RESULTS) or share < 0.5:
            return self._scan.search(residuals, num_results, rows_allowed)
        results = self._fetch(residuals, fetch, num_results, allowed=allowed if limited else None)
        if limited and bool((results.rows[:, :wanted] == PAD).any()):
            return self._scan.search(residuals, num_results, rows_allowed)
        return results

    def _selector(self, allowed: Tensor) -> Any:
        # Rows become positions in the partition; a range is cheaper to test than a bitmap.
        faiss = load_faiss()
        positions = torch.searchsorted(self.rows, allowed)
        piece = contiguous(positions)
        if piece is not None:
            return faiss.SearchParameters(sel=faiss.IDSelectorRange(piece.start, piece.stop))
        bits = torch.zeros(-(-self.rows.numel() // 8) * 8, dtype=torch.uint8)
        bits[positions] = 1
        powers = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8)
        packed = (bits.view(-1, 8) * powers).sum(dim=1, dtype=torch.uint8).numpy()
        return faiss.SearchParameters(sel=faiss.IDSelectorBitmap(packed))

    def _fetch(
        self,
        residuals: Tensor,
        fetch: int,
        num_results: int,
        *,
        parameters: Any = None,
        allowed: Tensor | None = None,
    ) -> SearchResults:
        queries, factors = to_float32(residuals)
        # FAISS counts its threads anew in every thread that calls it, from all cores.
        load_faiss().omp_set_num_threads(torch.get_num_threads())
        found, positions = self._index.search(queries.numpy(), fetch, params=parameters)
        if parameters is not None and allowed is not None:
            scored = allowed.numel() * residuals.shape[0]
        else:
            scored = self._rows_scored(queries)
        lists = []
        for i in range(residuals.shape[0]):
            valid = torch.from_numpy(positions[i] >= 0)
            rows = self.rows[torch.from_numpy(positions[i])[valid]]
            scores = torch.from_numpy(found[i])[valid].to(torch.float64) * (factors[i] * self.view.scale)
            if not self.exact:
                scores = self.view.sketches(rows) @ residuals[i].to(torch.float64)
            if allowed is not None and parameters is None:
                inside = torch.isin(rows, allowed)
                rows, scores = rows[inside], scores[inside]
            order = torch.argsort(rows)
            lists.append(top(scores[order], rows[order], num_results))
        read = 0 if self.gpu else scored * self._bytes_per_row()
        return padded(lists, num_results, scored, read)

    def _bytes_per_row(self) -> int:
        # Graphs and transformed indexes do not say: their rows are taken for float32.
        return int(getattr(self._index, "code_size", 4 * self.view.sketch_dim))

    def _rows_scored(self, queries: Tensor) -> int:
        # The rows of the lists that IVF probes, every row otherwise (an upper bound for HNSW).
        inverted = getattr(self._index, "invlists", None)
        if inverted is None or self.gpu:
            return int(self._index.ntotal) * queries.shape[0]
        _, lists = self._index.quantizer.search(queries.numpy(), self._index.nprobe)
        return sum(int(inverted.list_size(int(number))) for number in lists.ravel() if number >= 0)


def open_faiss(index: Index, view: str, label: int | None = None, *, device: str = "cpu") -> FaissSearch:
    """Open a derived FAISS index, checked against its digest before FAISS parses it, and mapped without a copy.

    Args:
        index: The open index directory.
        view: The view.
        label: The partition's label, or None for all rows.
        device: "cpu", or "cuda" with faiss-gpu and a device.

    Returns:
        The search.
    """
    faiss = load_faiss()
    path, entry = index.derived.file("faiss", view, label)
    # IO_FLAG_MMAP_IFC maps the vectors; plain IO_FLAG_MMAP copies a Flat index into memory.
    found = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
    chosen = index.view(view)
    if device == "cpu":
        return FaissSearch(chosen, entry, found, label)
    return FaissSearch(chosen, entry, _to_gpu(faiss, found, chosen), label, gpu=True)


def _to_gpu(faiss: Any, index: Any, view: View) -> Any:
    if not hasattr(faiss, "StandardGpuResources") or faiss.get_num_gpus() == 0:
        raise EngineUnavailableError(
            "no GPU search here: faiss-gpu (nattribute[gpu]) and a CUDA device are needed. Use device cpu."
        )
    options = faiss.GpuClonerOptions()
    options.useFloat16 = view.storage_dtype.name == "float16"  # half the memory, and no value changes
    on_gpu = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, index, options)
    return on_gpu
