"""How the programs here measure: wall times in one process, medians of paired runs, and what ran beside them.

A machine that others use makes every time wrong by an unknown factor, but two runs a moment apart by nearly the same
one. So programs take what they compare in turns, divide within a turn, and report the median over the turns.
"""

import importlib.metadata
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from sketchstore.faiss_search import load_faiss
from sketchstore.view import View

Result = TypeVar("Result")

PACKAGES = ("torch", "numpy", "faiss-cpu", "faiss-gpu", "numba", "simsimd", "numkong")
LIBRARY_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


def timed(function: Callable[[], Result], clock: Callable[[], float] = time.perf_counter) -> tuple[float, Result]:
    """Run something and return how many seconds of a clock it took, and what it returned."""
    begun = clock()
    result = function()
    return clock() - begun, result


def quantile(values: Sequence[float], share: float) -> float:
    """Return the value below which a share of the values lies, by rank."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def median_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """Return the median of ratios taken pair by pair."""
    return statistics.median(above / below for above, below in zip(numerators, denominators, strict=True))


class FullScans:
    """The two scans that everything is measured in: reading every float32 byte once, and one plain product Φ r.

    Args:
        pieces: The rows, float32 [m, d] each.
        repeats: How often a scan is timed for one figure; the median counts.

    Attributes:
        num_rows: N.
        sketch_dim: d.
        float32_bytes: Bytes of one scan.
        residual: r, float32 [d].
        products: |Φ r| of the last product, float32 [N].
    """

    def __init__(self, pieces: Sequence[Tensor], repeats: int = 3) -> None:
        self._pieces = list(pieces)
        self._repeats = repeats
        self.num_rows = sum(piece.shape[0] for piece in self._pieces)
        self.sketch_dim = self._pieces[0].shape[1]
        self.float32_bytes = 4 * self.num_rows * self.sketch_dim
        self.residual = torch.randn(self.sketch_dim, generator=torch.Generator().manual_seed(0))
        self.products = torch.empty(self.num_rows)

    def read(self) -> None:
        """Read every byte once: a sum runs at the speed of the memory, so nothing exact is faster without indexes."""
        for piece in self._pieces:
            piece.sum()

    def product(self) -> None:
        """Multiply every row with a residual: |Φ r|, by torch.mv in float32."""
        start = 0
        for piece in self._pieces:
            stop = start + piece.shape[0]
            torch.mv(piece, self.residual, out=self.products[start:stop])
            start = stop
        self.products.abs_()

    def seconds(self) -> tuple[float, float]:
        """Return the median seconds of a read-only pass and of a plain product, taken in turns."""
        reads, products = [], []
        for _ in range(self._repeats):
            reads.append(timed(self.read)[0])
            products.append(timed(self.product)[0])
        return statistics.median(reads), statistics.median(products)


def stored_pieces(view: View) -> list[Tensor]:
    """Return the rows of a view as float32 pieces: the memory map itself, or a widened copy of float16."""
    return [torch.from_numpy(view.shard(number)).to(torch.float32) for number in range(view.num_shards)]


def machine() -> dict[str, Any]:
    """Describe what measures: processor, memory, versions and thread counts."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": platform.platform(),
        "versions": versions,
        "threads": {
            "torch": torch.get_num_threads(),
            "faiss": load_faiss().omp_get_max_threads(),
            **{name: os.environ.get(name) for name in LIBRARY_THREADS},
        },
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


class Report:
    """The envelope of a program's figures: what was run where and when, and how busy the machine was around it.

    Args:
        program: The module that measures.
        arguments: Its command line as parsed, for the record.
    """

    def __init__(self, program: str, arguments: dict[str, Any]) -> None:
        self._envelope = {
            "program": program,
            "arguments": {name: str(value) if isinstance(value, Path) else value for name, value in arguments.items()},
            "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": machine(),
        }
        self._load_before = os.getloadavg()[0]

    def finish(self, figures: dict[str, Any]) -> dict[str, Any]:
        """Put the figures into the envelope."""
        load = {"before": round(self._load_before, 2), "after": round(os.getloadavg()[0], 2)}
        return {**self._envelope, "load": load, **figures}


def say(line: str) -> None:
    """Tell whoever waits how far a program is; standard output holds the result alone."""
    print(line, file=sys.stderr, flush=True)


def print_json(report: dict[str, Any]) -> None:
    """Print a report as JSON."""
    print(json.dumps(report, indent=2))


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out a markdown table, so that no figure of the documentation is typed by hand."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
