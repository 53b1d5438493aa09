"""Which experiments there are: one line each."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments import (
    backdoor,
    backdoor_kernel,
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

#: The one configuration of an experiment that does not name any.
DEFAULT = "default"


@dataclass(frozen=True)
class Experiment:
    """One program.

    Attributes:
        title: What it shows.
        configurations: Data set and network by name, the default first; for each, settings by size: ``small``,
            ``paper``, and ``smoke`` for the tests.
        run: Does it: (settings, data folder, output folder, progress) → report.
        check: Refuses settings that cannot be run, before anything is written.
    """

    title: str
    configurations: Mapping[str, Mapping[str, Any]]
    run: Callable[[Any, Path | None, Path, Progress], Report]
    check: Callable[[Any], None]


def experiments() -> dict[str, Experiment]:
    """Return every experiment by name, the longest in its small size first: so two side by side end together."""
    modules = {
        "panels-text": panels_text,
        "brittleness": brittleness,
        "noise-tuning": noise_tuning,
        "coreset": coreset,
        "backdoor": backdoor,
        "relative-information": information_sweeps,
        "lds": lds,
        "backdoor-kernel": backdoor_kernel,
        "stability": stability,
        "panels": panels,
        "mislabelled": mislabelled,
    }
    return {
        name: Experiment(
            module.TITLE,
            getattr(module, "CONFIGURATIONS", {DEFAULT: module.SIZES}),
            module.run,
            getattr(module, "check", lambda settings: None),
        )
        for name, module in modules.items()
    }
