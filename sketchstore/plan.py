"""The build plan: everything that decides the bytes of an index, fixed before its first row and compared on resume."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field, ValidationError, model_validator

from sketchstore.errors import IndexDirectoryError, ResumeMismatchError, listed
from sketchstore.manifest import (
    Build,
    Comparable,
    LabelKey,
    Manifest,
    Measurement,
    Recipe,
    Section,
    Sketch,
    SourceDigests,
    StorageDtype,
    ViewName,
    check_comparable,
    read_manifest,
)

MAX_SHARD_BYTES = 1 << 30
_HEADER_BYTES = 4096


@dataclass(frozen=True)
class Block:
    """Rows ``start`` to ``stop`` − 1: what is computed, written and journaled as one."""

    number: int
    start: int
    stop: int

    @property
    def rows(self) -> int:
        """How many rows the block has; the last may have fewer than the others."""
        return self.stop - self.start


class BuildPlan(Section):
    """What an index will be. ``views`` says for each view whether rows compare within a label or all together."""

    name: str
    num_rows: Annotated[int, Field(ge=1)]
    dtype: StorageDtype
    views: dict[ViewName, Comparable]
    sketch: Sketch
    measurement: Measurement
    recipe: Recipe
    build: Build
    digests: SourceDigests
    label_names: dict[LabelKey, str] | None = None

    @model_validator(mode="after")
    def _shards_fit(self) -> "BuildPlan":
        if not self.views:
            raise ValueError("views is empty; an index has at least one view")
        for view, comparable in self.views.items():
            check_comparable(view, comparable)
        size = self.build.shard_rows * self.sketch.dim * np.dtype(self.dtype).itemsize
        if self.build.shard_rows > 1 and size > MAX_SHARD_BYTES:
            raise ValueError(f"a shard of {self.build.shard_rows} rows has {size} bytes, at most {MAX_SHARD_BYTES}")
        return self

    @property
    def num_blocks(self) -> int:
        """Number of blocks."""
        return -(-self.num_rows // self.build.block_rows)

    @property
    def num_shards(self) -> int:
        """Number of shards of each view."""
        return -(-self.num_rows // self.build.shard_rows)

    def shard_size(self, number: int) -> int:
        """Rows of a shard.

        Args:
            number: The shard, from 0.

        Returns:
            ``shard_rows``, or what is left for the last one.
        """
        return min(self.build.shard_rows, self.num_rows - number * self.build.shard_rows)

    def blocks(self) -> Iterator[Block]:
        """All blocks in row order.

        Yields:
            The blocks.
        """
        for number in range(self.num_blocks):
            yield self.block(number)

    def block(self, number: int) -> Block:
        """One block.

        Args:
            number: The block, from 0.

        Returns:
            The block.
        """
        rows = self.build.block_rows
        return Block(number, number * rows, min(self.num_rows, (number + 1) * rows))

    def check_resumes(self, planned: "BuildPlan", where: str) -> None:
        """Refuse to continue a build that was planned otherwise: its rows would not belong to this index.

        Args:
            planned: The plan of the unfinished build.
            where: Its place, for the message.

        Raises:
            ResumeMismatchError: If any entry differs; it names each with both values.
        """
        old, new = _flat(planned.model_dump(mode="json")), _flat(self.model_dump(mode="json"))
        different = [key for key in dict.fromkeys([*old, *new]) if old.get(key) != new.get(key)]
        if different:
            details = [f"{key} was {old.get(key)!r}, now {new.get(key)!r}" for key in different]
            raise ResumeMismatchError(
                f"the unfinished build at {where} has another plan: {listed(details, 5)}. Build with the settings it "
                "was started with, or discard it with --overwrite."
            )


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict) and value:
        return {key: leaf for name, inner in value.items() for key, leaf in _flat(inner, f"{prefix}.{name}").items()}
    if isinstance(value, list) and value:
        return {key: leaf for n, inner in enumerate(value) for key, leaf in _flat(inner, f"{prefix}.{n}").items()}
    return {prefix.lstrip("."): value}


def shard_rows_for(block_rows: int, sketch_dim: int, dtype: StorageDtype) -> int:
    """Rows per shard: as many whole blocks as fit into 1 GiB, or as many rows where not even one block does.

    Args:
        block_rows: Rows per block.
        sketch_dim: d.
        dtype: Storage type.

    Returns:
        Rows per shard, at least 1.
    """
    fit = max(1, (MAX_SHARD_BYTES - _HEADER_BYTES) // (sketch_dim * np.dtype(dtype).itemsize))
    return fit // block_rows * block_rows if fit >= block_rows else fit


def plan_of(manifest: Manifest) -> BuildPlan:
    """The plan that a published index was built from.

    Args:
        manifest: Its manifest.

    Returns:
        The plan.
    """
    return BuildPlan(
        name=manifest.name,
        num_rows=manifest.num_rows,
        dtype=manifest.dtype,
        views={name: view.comparable for name, view in manifest.views.items()},
        sketch=manifest.sketch,
        measurement=manifest.measurement,
        recipe=manifest.recipe,
        build=manifest.build,
        digests=manifest.digests,
        label_names=manifest.labels.names,
    )


def published_from(path: Path, plan: BuildPlan) -> bool:
    """Whether the index at a path was published from this plan, and no row was added or removed since.

    Args:
        path: A directory, or nothing.
        plan: The plan.

    Returns:
        True if its manifest can be read and says so.
    """
    try:
        manifest = read_manifest(path)
        untouched = not manifest.removed and [source.rows for source in manifest.sources] in ([], [manifest.num_rows])
        return untouched and plan_of(manifest) == plan
    except (IndexDirectoryError, NotADirectoryError, ValidationError):
        return False
