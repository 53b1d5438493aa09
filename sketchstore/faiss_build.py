"""Building the derived FAISS index of a partition, with its recall measured where it does not keep every value."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import JsonValue
from torch import Tensor

from sketchstore.arrays import widened
from sketchstore.brute_force import BruteForceSearch
from sketchstore.derived_manifest import Entry
from sketchstore.errors import FaissFactoryError
from sketchstore.faiss_search import FaissSearch, is_exact, load_faiss
from sketchstore.reader import Index
from sketchstore.storing import storing
from sketchstore.view import View

TRAINING_ROWS = 65_536
RECALL_RESULTS = 10
RECALL_QUERIES = 32
_RABITQ_FASTSCAN_MAX_DIM = 4095


def write_faiss(index: Index, view: str, label: int | None = None, factory: str = "Flat") -> Path:
    """Build the FAISS index of a partition by inner product and list it among the derived entries.

    A Flat index is streamed to the disk. Any other is built in memory and trained on at most 65,536 rows; IVF probes
    an eighth of its lists. Where the factory does not keep every stored value, recall@10 of ± residuals against the
    exact scan is measured and stored.

    Args:
        index: The open index directory.
        view: The view.
        label: The partition's label, or None for all rows.
        factory: FAISS factory string.

    Returns:
        The file.
    """
    chosen = index.view(view)
    faiss = load_faiss()
    check_factory(factory, chosen.sketch_dim)
    options: dict[str, JsonValue] = {"factory": factory, "faiss_version": str(faiss.__version__)}
    target = index.path / "derived" / "faiss" / view / f".{chosen.partition(label)}.build"
    measured: dict[str, JsonValue] | None = None
    try:
        if factory == "Flat":
            with storing(target):
                target.parent.mkdir(parents=True, exist_ok=True)
                _stream_flat(faiss, chosen, chosen.partition_rows(label), target)
        else:
            built = _build(faiss, chosen, chosen.partition_rows(label), factory)
            target.parent.mkdir(parents=True, exist_ok=True)
            faiss.write_index(built, str(target))
            if not is_exact(factory, chosen.storage_dtype.name):
                measured = _measure_recall(index, chosen, label, built, options)
        return index.derived.write("faiss", view, label, options, lambda temporary: target.replace(temporary), measured)
    finally:
        target.unlink(missing_ok=True)


def check_factory(factory: str, sketch_dim: int) -> None:
    """Refuse a factory string that FAISS does not know, has no inner product for, or is silently wrong with.

    Args:
        factory: FAISS factory string.
        sketch_dim: d.

    Raises:
        FaissFactoryError: If it is one of these.
    """
    faiss = load_faiss()
    if "RaBitQfs" in factory and sketch_dim > _RABITQ_FASTSCAN_MAX_DIM:
        raise FaissFactoryError(f"FAISS's RaBitQfs gives wrong results at d = {sketch_dim} ≥ 4096; use RaBitQ")
    if "IDMap" in factory:
        raise FaissFactoryError(f"factory {factory!r}: row numbers are kept by the index directory; leave out IDMap")
    try:
        empty = faiss.index_factory(sketch_dim, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        reason = str(error).rsplit("Error: ", maxsplit=1)[-1]
        raise FaissFactoryError(f"FAISS refuses the factory {factory!r} for inner products: {reason}") from error
    if empty.metric_type != faiss.METRIC_INNER_PRODUCT:
        raise FaissFactoryError(f"factory {factory!r} does not search by inner product")


def _build(faiss: Any, view: View, rows: Tensor, factory: str) -> Any:
    built = faiss.index_factory(view.sketch_dim, factory, faiss.METRIC_INNER_PRODUCT)
    try:
        if not built.is_trained:
            chosen = np.random.default_rng(0).permutation(rows.numel())[:TRAINING_ROWS]
            built.train(view.stored(rows[torch.from_numpy(np.sort(chosen))]).astype(np.float32))
        for part in torch.split(rows, 4096):
            built.add(widened(view.stored(part), torch.float32).numpy())
    except RuntimeError as error:
        reason = str(error).rsplit("Error: ", maxsplit=1)[-1]
        raise FaissFactoryError(f"FAISS cannot build {factory!r} from {rows.numel()} rows: {reason}") from error
    if hasattr(built, "nprobe"):
        built.nprobe = max(1, built.nlist // 8)
    if hasattr(built, "hnsw"):
        built.hnsw.efSearch = max(128, built.hnsw.efSearch)
    return built


def _stream_flat(faiss: Any, view: View, rows: Tensor, path: Path) -> None:
    """Write what faiss.write_index would write for a Flat index, without holding the vectors in memory.

    The file is the serialised empty index, with ntotal at byte 8 and the number of floats in the last 8 bytes, and
    then the vectors. The result is read back and compared, because the layout is FAISS's own.

    Raises:
        FaissFactoryError: If this version of FAISS reads back something else.
    """
    head = bytearray(faiss.serialize_index(faiss.IndexFlatIP(view.sketch_dim)).tobytes())
    head[8:16] = rows.numel().to_bytes(8, "little")
    head[-8:] = (rows.numel() * view.sketch_dim).to_bytes(8, "little")
    with path.open("wb") as stream:
        stream.write(head)
        for part in torch.split(rows, 1024):
            stream.write(widened(view.stored(part), torch.float32).numpy().astype("<f4", copy=False).tobytes())
    written = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
    for position in {0, rows.numel() - 1}:
        expected = view.stored(rows[position : position + 1]).astype(np.float32)[0]
        if written.ntotal != rows.numel() or not np.array_equal(written.reconstruct(position), expected):
            raise FaissFactoryError(
                f"FAISS {faiss.__version__} does not read back the Flat index written to {path}; use the brute_force "
                "engine (--faiss none) and report this version"
            )


def _measure_recall(
    index: Index, view: View, label: int | None, built: Any, options: dict[str, JsonValue]
) -> dict[str, JsonValue]:
    # Recall@10 against the exact scan, of ±φ_* and of ±r after the three best rows are conditioned on.
    entry = Entry(
        kind="faiss",
        view=view.name,
        partition="",
        rows=0,
        options=options,
        built_from="0" * 64,
        bytes=0,
        blake3="0" * 64,
    )
    scan = BruteForceSearch(view, view.partition_rows(label))
    search = FaissSearch(view, entry, built, label)
    queries = _recall_queries(index, view, label)
    noise_variance = view.mean_squared_norm(label) or 1.0
    residuals = []
    for query in queries:
        both = scan.search(torch.stack([query, -query]), 3)
        best = both.rows.ravel()[both.scores.ravel().argsort(descending=True)]
        acquired = view.sketches(torch.tensor(list(dict.fromkeys(best[best >= 0].tolist()))[:3], dtype=torch.int64))
        gram = acquired @ acquired.T + noise_variance * torch.eye(acquired.shape[0], dtype=torch.float64)
        residuals += [query, query - acquired.T @ torch.linalg.solve(gram, acquired @ query)]
    stacked = torch.stack([*residuals, *(-residual for residual in residuals)])
    exact = scan.search(stacked, RECALL_RESULTS)
    found = search.search(stacked, RECALL_RESULTS)
    hits = sum(
        len(set(truth[truth >= 0].tolist()) & set(seen.tolist()))
        for truth, seen in zip(exact.rows, found.rows, strict=True)
    )
    return {
        "recall": hits / int((exact.rows >= 0).sum()),
        "num_results": RECALL_RESULTS,
        "residuals": stacked.shape[0],
    }


def _recall_queries(index: Index, view: View, label: int | None) -> Tensor:
    # Stored query sketches of the partition where there are any, else training rows.
    if index.queries is not None and view.name in index.queries.views:
        sketches, _, targets = index.queries.arrays(view.name)
        chosen = sketches if label is None else sketches[targets == label]
        if len(chosen):
            return torch.tensor(np.asarray(chosen[:RECALL_QUERIES]), dtype=torch.float64)
    rows = view.partition_rows(label)
    step = max(1, rows.numel() // RECALL_QUERIES)
    return view.sketches(rows[::step][:RECALL_QUERIES])
