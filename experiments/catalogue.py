"""Which experiments there are: one line each."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments import (
    backdoor,
    brittleness,
    coreset,
    information_sweeps,
    lds,
    mislabelled,
    noise_tuning,
    panels,
    panels_text,
    stability,
)
from experiments.report import Report
from indexer.progress import Progress


@dataclass(frozen=True)
class Experiment:
    """One program.

    Attributes:
        title: What it shows.
        sizes: Settings by size: ``small``, ``paper``, and ``smoke`` for the tests.
        run: Does it: (settings, data folder, output folder, progress) → report.
    """

    title: str
    sizes: Mapping[str, Any]
    run: Callable[[Any, Path | None, Path, Progress], Report]


def experiments() -> dict[str, Experiment]:
    """Return every experiment by name."""
    modules = {
        "relative-information": information_sweeps,
        "brittleness": brittleness,
        "backdoor": backdoor,
        "coreset": coreset,
        "lds": lds,
        "mislabelled": mislabelled,
        "noise-tuning": noise_tuning,
        "panels": panels,
        "panels-text": panels_text,
        "stability": stability,
    }
    return {name: Experiment(module.TITLE, module.SIZES, module.run) for name, module in modules.items()}
