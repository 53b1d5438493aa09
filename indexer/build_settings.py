"""What a user chooses for an index, as typed: nothing of it is resolved against a recipe yet."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from indexer.batch_rows import default_budget
from indexer.featurise import COMPUTE_ROWS
from indexer.jacobians import MEMORY_BUDGET_BYTES
from indexer.parameters import Layers
from indexer.precision import COMPUTE_DTYPES, ComputeDtype
from indexer.recipe import OptionValue
from sketchstore.manifest import StorageDtype
from sketchstore.unfinished import partial_path, refuse_what_is_there

MIB = 1024**2


class BuildSettingsError(ValueError):
    """A choice for a build that cannot be made, or two that contradict each other."""


@dataclass(frozen=True)
class BuildSettings:
    """What a user chooses for an index; None leaves the choice to the recipe or to a default that depends on it.

    Attributes:
        recipe: Built-in name or path of the recipe's file.
        data_dir: Folder of the data files.
        options: The recipe's options.
        measurement: ``label_logit``, ``class_logit``, ``margin`` or ``custom``; None takes the recipe's own function,
            else the recipe's default.
        views: Classes of ``class_logit`` that get a view; None means all.
        sketch: Family; None takes identity where P ≤ 4096 and ``dim`` is None, else rademacher.
        dim: d; None means 4096 (P for identity).
        seed: Key of the sketch's generator; None means 0.
        buckets: Signed buckets per parameter of an sjlt sketch.
        sketch_like: An index whose sketch is taken as it is, parts of a kronecker sketch included.
        dtype: Storage type.
        ntk: NTK scaling; None switches it on where the recipe has an ``ntk_gain``.
        include: Globs of modules to keep.
        exclude: Globs of modules to drop.
        layers: ``linear`` or ``all``; None takes the recipe's default.
        block_rows: Rows computed, written and journaled as one.
        limit: Only the first rows of the training set.
        id_prefix: What the ids of the training rows begin with, before what the recipe gives.
        num_queries: How many rows of the query set are sketched; None means up to 1,000.
        weights: Whether the index carries the model's weights.
        previews: Whether it carries previews.
        device: ``cpu`` or ``cuda``.
        threads: CPU threads of each process; None means torch's number, shared among the processes.
        processes: Worker processes that compute blocks side by side; 1 computes in the build's own process.
        compute_dtype: Type of the model's passes and of what the sketch multiplies; sums are always float32.
        memory_budget_mib: What gradients and activations of a batch may take, in MiB; None means 512 on a CPU and a
            quarter of a GPU's memory.
        batch_rows: Rows that go through model and sketch together; None means what the memory budget allows.
    """

    recipe: str
    data_dir: Path | None = None
    options: Mapping[str, OptionValue] = field(default_factory=dict)
    measurement: str | None = None
    views: tuple[int, ...] | None = None
    sketch: str | None = None
    dim: int | None = None
    seed: int | None = None
    buckets: int | None = None
    sketch_like: Path | None = None
    dtype: StorageDtype = "float32"
    ntk: bool | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    layers: Layers | None = None
    block_rows: int = COMPUTE_ROWS
    limit: int | None = None
    id_prefix: str = ""
    num_queries: int | None = None
    weights: bool = True
    previews: bool = True
    device: str = "cpu"
    threads: int | None = None
    processes: int = 1
    compute_dtype: ComputeDtype = "float32"
    memory_budget_mib: int | None = None
    batch_rows: int | None = None

    def check(self) -> None:
        """Refuse values out of range, before anything is loaded.

        Raises:
            BuildSettingsError: If a number is too small, the device is not there, or a sketch is chosen twice.
        """
        for flag, value, least in (
            ("--dim", self.dim, 1),
            ("--block-rows", self.block_rows, 1),
            ("--limit", self.limit, 1),
            ("--num-queries", self.num_queries, 0),
            ("--threads", self.threads, 1),
            ("--processes", self.processes, 1),
            ("--memory-budget", self.memory_budget_mib, 1),
            ("--batch-rows", self.batch_rows, 1),
        ):
            if value is not None and value < least:
                raise BuildSettingsError(f"{flag} {value} must be at least {least}")
        values = {"--sketch": self.sketch, "--dim": self.dim, "--buckets": self.buckets, "--seed": self.seed}
        chosen = [flag for flag, value in values.items() if value is not None]
        if self.sketch_like is not None and chosen:
            raise BuildSettingsError(f"--sketch-like takes the sketch from an index: leave out {', '.join(chosen)}")
        if self.compute_dtype not in COMPUTE_DTYPES:
            raise BuildSettingsError(f"--compute-dtype {self.compute_dtype!r} must be {', '.join(COMPUTE_DTYPES)}")
        if self.device not in ("cpu", "cuda"):
            raise BuildSettingsError(f"--device {self.device!r} must be cpu or cuda")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise BuildSettingsError("--device cuda: torch sees no CUDA device here; use --device cpu")

    @property
    def sketch_seed(self) -> int:
        """Key of the sketch's generator."""
        return 0 if self.seed is None else self.seed

    @property
    def num_threads(self) -> int:
        """CPU threads of each process."""
        return max(1, torch.get_num_threads() // self.processes) if self.threads is None else self.threads

    @property
    def memory_budget_bytes(self) -> int:
        """What gradients and activations of a batch may take."""
        if self.memory_budget_mib is None:
            return default_budget(self.device, MEMORY_BUDGET_BYTES)
        return self.memory_budget_mib * MIB


def check_target(out: Path, *, resume: bool, overwrite: bool, note: Callable[[str], None]) -> None:
    """Refuse a place where an index cannot be published.

    Args:
        out: Where it shall be.
        resume: Whether an unfinished build there is continued.
        overwrite: Whether what is there is replaced.
        note: Told what is worth knowing before the work begins.

    Raises:
        BuildSettingsError: If both are asked for, or nothing can be written there.
    """
    if resume and overwrite:
        raise BuildSettingsError(
            "--resume continues an unfinished build, --overwrite discards it; give one of them. A build begun with "
            "--overwrite still replaces the index there when it is resumed"
        )
    refuse_what_is_there(out, resume=resume, overwrite=overwrite)
    folder = next(parent for parent in out.parents if os.path.lexists(parent))
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise BuildSettingsError(f"--out {out}: {folder} is no folder that can be written to")
    partial = partial_path(out)
    if resume and not os.path.lexists(out) and not partial.exists():
        note(f"nothing to resume: {partial} does not exist. Building from the start")
