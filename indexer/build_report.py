"""What a build did and on what machine: for the terminal, and for build-log.jsonl, which no digest covers."""

from __future__ import annotations

import os
import platform
import resource
import sys
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from pydantic import JsonValue

from indexer.planned import BYTES_DECIDED_BY


@dataclass(frozen=True)
class BuildReport:
    """What a build did.

    Attributes:
        path: The index directory.
        name: Its name.
        revision: Its revision.
        num_rows: Training rows.
        num_queries: Query rows.
        sketch_dim: d.
        num_parameters: P.
        views: Names of the views.
        dtype: Storage type.
        sketch_bytes: Bytes below ``sketches/``.
        total_bytes: Bytes of the whole directory.
        built_rows: Rows that this process sketched; fewer than ``num_rows`` after a resume.
        examples_per_second: Rows of the training set that this process sketched a second, all views; None if none.
        sketch_share: Part of that time spent in the sketch rather than in gradients; None if no row was sketched.
        seconds: Wall-clock seconds by phase.
        peak_memory_bytes: Largest resident size of the process.
        accuracy: Share of labelled rows that the model predicts rightly, by split (`accuracies`).
        distortion: As in the manifest.
        notes: What was said on the way.
    """

    path: Path
    name: str
    revision: str
    num_rows: int
    num_queries: int
    sketch_dim: int
    num_parameters: int
    views: list[str]
    dtype: str
    sketch_bytes: int
    total_bytes: int
    built_rows: int
    examples_per_second: float | None
    sketch_share: float | None
    seconds: dict[str, float]
    peak_memory_bytes: int
    accuracy: dict[str, float]
    distortion: JsonValue
    notes: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return {**asdict(self), "path": str(self.path)}


def host_facts() -> dict[str, JsonValue]:
    """Say where a build ran.

    Returns:
        Host, processors, threads and versions.
    """
    return {
        "host": platform.node(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "versions": {name: version(name) for name in BYTES_DECIDED_BY},
    }


def peak_memory_bytes() -> int:
    """Say how much memory this process took at most.

    Returns:
        Its largest resident size so far.
    """
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux kibibytes
