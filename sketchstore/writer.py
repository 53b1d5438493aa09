"""Writing an index directory: blocks of sketches into shards, journaled, resumable, published by one rename."""

import json
import os
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

import filelock
import numpy as np
import numpy.typing as npt
import safetensors.torch
from pydantic import JsonValue
from torch import Tensor

from sketchstore.arrays import Array, npy_header, tensor_file_bytes
from sketchstore.block_files import BlockFiles
from sketchstore.block_writer import BlockWriter
from sketchstore.border import as_column, as_queries
from sketchstore.digests import digest_file
from sketchstore.errors import (
    AlreadyPublishedError,
    IncompleteBuildError,
    IndexExistsError,
    SketchBlockError,
    listed,
)
from sketchstore.float16 import check_subnormals
from sketchstore.journal import BlockLine, FileLine, Journal
from sketchstore.layout import finish_file, sync_file, write_file
from sketchstore.manifest import BUILD_LOG, QUERY_REPRESENTATIONS, column_file, query_file
from sketchstore.plan import Block, BuildPlan, published_from
from sketchstore.publish import publish
from sketchstore.storing import storing
from sketchstore.tables import ExampleRow, write_examples_table
from sketchstore.unfinished import (
    CONTENT,
    JOURNAL,
    PLAN,
    REPLACES,
    SCALES,
    clear,
    partial_path,
    prepare,
    put_back,
    read_scales,
    refuse_what_is_there,
    take_lock,
    was_published,
    write_scales,
)

SHARED_WEIGHTS = "weights.safetensors"


class IndexWriter:
    """An index being built in ``name.partial/``. Use ``create`` as a context manager.

    Leaving it without ``publish`` keeps what was written. Blocks may be written in any order; everything else may be
    written again, which replaces it.
    """

    def __init__(self, path: Path, plan: BuildPlan, lock: filelock.BaseFileLock) -> None:
        self.path = path
        self.plan = plan
        self._partial = partial_path(path)
        self._content = self._partial / CONTENT
        self._lock = lock
        self._blocks = BlockFiles(self._content, plan)
        self.block_writer = BlockWriter(self._content, plan)
        self._scales = read_scales(self._partial / SCALES, plan)
        self._journal = Journal.open(self._partial / JOURNAL)
        self._overwrite = False

    @classmethod
    def create(
        cls, path: str | os.PathLike[str], plan: BuildPlan, *, resume: bool = False, overwrite: bool = False
    ) -> "IndexWriter":
        """Start a build, or continue one.

        The plan is on the disk before the first row. On resume it must equal the plan of the unfinished build, and
        every block and file that the journal calls finished is checked against its digest; what fails is redone.

        Args:
            path: Where the index will be published.
            plan: What it will be.
            resume: Continue the unfinished build there, if there is one; it replaces what it was begun to replace.
            overwrite: Replace a published index at publication; without ``resume``, discard an unfinished build.

        Returns:
            The writer, holding the build's lock.

        Raises:
            AlreadyPublishedError: If resuming, and the index there was published from this plan.
            IndexExistsError: If there is something at ``path`` and ``overwrite`` is not set.
        """
        target = Path(path).absolute()
        partial = partial_path(target)
        started = (partial / PLAN).exists()
        if resume and not started and published_from(target, plan):
            if partial.exists():  # of a kill, or of somebody who is changing the index now and holds the lock
                with take_lock(partial):
                    clear(partial, target)
            raise AlreadyPublishedError(f"{target} is already published from this plan; nothing is left to build.")
        if resume and not started and os.path.lexists(target) and not overwrite:
            raise IndexExistsError(
                f"{target} exists, and is not what this build would publish. Choose another --out, or replace it with "
                "--overwrite."
            )
        refuse_what_is_there(target, resume=resume, overwrite=overwrite)
        replaces = overwrite or (resume and (partial / REPLACES).exists())
        partial.mkdir(parents=True, exist_ok=True)
        lock = take_lock(partial)
        try:
            put_back(partial, target)
            if started and resume and was_published(target, partial):
                clear(partial, target)
                raise AlreadyPublishedError(f"{target} is already published from this plan; nothing is left to build.")
            prepare(partial, plan, keep=started and resume, replaces=replaces)
            writer = cls(target, plan, lock)
            writer._overwrite = replaces
            writer._drop_unsound()
        except BaseException:
            lock.release()
            raise
        return writer

    def __enter__(self) -> "IndexWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the lock; what was written stays for ``resume``."""
        self._lock.release()

    def _drop_unsound(self) -> None:
        for number in [number for number, line in self._journal.blocks.items() if not self._blocks.holds(line)]:
            del self._journal.blocks[number]
        for file, digest in list(self._journal.files.items()):
            target = self._content / file
            if not target.is_file() or digest_file(target) != digest:
                del self._journal.files[file]

    # Blocks

    @property
    def scales(self) -> dict[str, int] | None:
        """The scale exponents by view once they are set; zeros for float32."""
        return None if self._scales is None else dict(self._scales)

    def set_scales(self, exponents: Mapping[str, int]) -> None:
        """Fix the power-of-two scale of every view, once, before its first block is written.

        Args:
            exponents: e by view: what is stored is value × 2^−e.

        Raises:
            SketchBlockError: If the views are not the plan's, a float32 view has a scale, or other scales are set.
        """
        wanted = dict(exponents)
        if set(wanted) != set(self.plan.views):
            raise SketchBlockError(f"scales for views {listed(wanted)}, the plan has {listed(self.plan.views)}")
        if self.plan.dtype == "float32" and any(wanted.values()):
            raise SketchBlockError(f"float32 sketches are stored as they are; scale exponents {wanted} must be 0")
        if self._scales is not None and self._scales != wanted:
            raise SketchBlockError(f"scales are already {self._scales} and blocks may be written with them")
        write_scales(self._partial / SCALES, wanted)
        self._scales = wanted

    def pending_blocks(self) -> list[Block]:
        """Blocks that are still to be written.

        Returns:
            The blocks, in row order.
        """
        return [block for block in self.plan.blocks() if block.number not in self._journal.blocks]

    def write_block(
        self,
        block: Block,
        sketches: Mapping[str, npt.NDArray[np.float32] | Tensor],
        columns: Mapping[str, Array | Tensor] | None = None,
    ) -> None:
        """Store the sketches of one block, and per-row values computed with them.

        Data are synced before the journal says so: a block is there whole or redone whole.

        Args:
            block: The block.
            sketches: float32 [rows, d] in true units, for every view of the plan.
            columns: Per-row values by column name, first axis the block's rows; the same columns for every block.

        Raises:
            SketchBlockError: If an array has another shape or type than the plan says, or scales are not set.
        """
        if self._scales is None:
            raise SketchBlockError("float16 needs its scales first: call set_scales after the probe block")
        line = self.block_writer.write(block, sketches, columns, self._scales, started=self.has_blocks)
        self.add_block(line)

    @property
    def has_blocks(self) -> bool:
        """Whether some block is finished, so that the files of the columns are there."""
        return bool(self._journal.blocks)

    def add_block(self, line: BlockLine) -> None:
        """Say in the journal that a block is finished, once its data are synced, here or by another process.

        Args:
            line: What `BlockWriter.write` gave.
        """
        for view, here in line.subnormal.items():
            self._check_subnormals(view, here, line.block)
        self._journal.append(line)

    def _check_subnormals(self, view: str, here: int, number: int) -> None:
        # Counted against the whole view, so a block is refused only when the finished view would be.
        others = sum(line.subnormal[view] for line in self._journal.blocks.values() if line.block != number)
        assert self._scales is not None
        check_subnormals(here + others, self.plan.num_rows * self.plan.sketch.dim, view, self._scales[view])

    # Whole files

    def written(self, file: str) -> bool:
        """Whether a whole file was finished, here or before the build was resumed.

        Args:
            file: Path inside the index directory, such as ``examples.parquet`` or ``queries/own.safetensors``.

        Returns:
            True if it is there with the digest the journal has.
        """
        return file in self._journal.files

    def _finished(self, file: str) -> None:
        self._journal.append(FileLine(file=file, blake3=digest_file(self._content / file)))

    def write_columns(self, columns: Mapping[str, Array | Tensor]) -> None:
        """Store whole per-row columns: ``labels``, ``predicted_labels``, ``one_minus_p``, ``representations``, ….

        Args:
            columns: Arrays of int64, float32 or float64 by name, first axis all rows.
        """
        for name, values in columns.items():
            array = as_column(name, values, self.plan.num_rows)
            header = npy_header(array.dtype, array.shape)
            write_file(self._content / column_file(name), header + array.tobytes())
            self._finished(column_file(name))

    def column(self, name: str) -> Array:
        """A column as far as it is written, here or before the build was resumed.

        Args:
            name: The column.

        Returns:
            All rows, memory-mapped; rows of blocks that are still pending hold no values yet.
        """
        values: Array = np.load(self._content / column_file(name), mmap_mode="r", allow_pickle=False)
        return values

    def write_examples(self, rows: Iterable[ExampleRow]) -> None:
        """Store ids, labels, metadata and previews of the training set.

        Args:
            rows: One per row, in row order; previews are not kept in memory.
        """
        self._write_table("examples.parquet", rows, self.plan.num_rows)

    def _write_table(self, file: str, rows: Iterable[ExampleRow], count: int) -> None:
        target = self._content / file
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.tmp")
        with storing(target):
            write_examples_table(temporary, rows, count)
        sync_file(temporary)
        finish_file(temporary, target)
        self._finished(file)

    def write_queries(
        self,
        rows: Iterable[ExampleRow],
        count: int,
        sketches: Mapping[str, tuple[Array, Array, Array]],
        representations: Array | None = None,
    ) -> None:
        """Store the query set and its sketches.

        Args:
            rows: The queries, in row order.
            count: How many.
            sketches: By view: sketches float32 [M, d] in true units, query rows int64 [M], target labels int64 [M]
                (−1 for a measurement without a target).
            representations: Penultimate features, float32 [count, k], if there are any.

        Raises:
            SketchBlockError: If a view is not one of the plan's.
        """
        if not set(sketches) <= set(self.plan.views):
            raise SketchBlockError(f"query sketches for {listed(sketches)}, the plan has {listed(self.plan.views)}")
        for view, (values, query_rows, targets) in sketches.items():
            file = query_file(view)
            data = as_queries(file, values, query_rows, targets, count, self.plan.sketch.dim)
            write_file(self._content / file, tensor_file_bytes(data))
            self._finished(file)
        if representations is not None:
            array = as_column("representations", representations, count)
            write_file(self._content / QUERY_REPRESENTATIONS, npy_header(array.dtype, array.shape) + array.tobytes())
            self._finished(QUERY_REPRESENTATIONS)
        self._write_table("queries/examples.parquet", rows, count)

    def write_model(self, tensors: Mapping[str, Tensor]) -> None:
        """Store the weights that the sketches were taken at.

        Args:
            tensors: The model's state dict.
        """
        write_file(self._content / "model.safetensors", safetensors.torch.save(_whole(tensors)))
        self._finished("model.safetensors")

    @property
    def content(self) -> Path:
        """The directory that becomes the index, for processes that store blocks in it."""
        return self._content

    def share_weights(self, tensors: Mapping[str, Tensor]) -> Path:
        """Have the weights in a file, for processes that help with the build.

        Args:
            tensors: The model's state dict.

        Returns:
            The index's own model.safetensors where it is written, else a file that is not published.
        """
        if self.written("model.safetensors"):
            return self._content / "model.safetensors"
        shared = self._partial / SHARED_WEIGHTS
        write_file(shared, safetensors.torch.save(_whole(tensors)))
        return shared

    def log(self, facts: Mapping[str, JsonValue]) -> None:
        """Add a line to build-log.jsonl: times, rates, host and versions, covered by no digest.

        Args:
            facts: What to say; the time is added.
        """
        line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **facts}
        with storing(self._content / BUILD_LOG), (self._content / BUILD_LOG).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")

    def publish(self, *, distortion: JsonValue = None, default_relative_noise: float | None = None) -> Path:
        """Write norms and manifest, sync everything, and give the directory its name in one step.

        Args:
            distortion: Measured distortion of the sketched kernel, for the manifest.
            default_relative_noise: The tuned default; None for untuned.

        Returns:
            The published directory.

        Raises:
            IncompleteBuildError: If a block, one of its columns or the examples table is missing.
        """
        pending = self.pending_blocks()
        if pending:
            raise IncompleteBuildError(f"{len(pending)} of {self.plan.num_blocks} blocks are not written yet")
        if not self.written("examples.parquet"):
            raise IncompleteBuildError("examples.parquet is not written yet")
        block_columns = {frozenset(line.columns) for line in self._journal.blocks.values()}
        if len(block_columns) > 1:
            raise IncompleteBuildError(
                f"blocks were written with different columns: {listed(map(sorted, block_columns))}"
            )
        assert self._scales is not None
        for view, exponent in self._scales.items():
            subnormal = sum(line.subnormal[view] for line in self._journal.blocks.values())
            check_subnormals(subnormal, self.plan.num_rows * self.plan.sketch.dim, view, exponent)
        finished = publish(
            self._partial,
            self._content,
            self.path,
            self.plan,
            self._scales,
            distortion=distortion,
            default_relative_noise=default_relative_noise,
            overwrite=self._overwrite,
            written={*self._journal.files, *map(column_file, next(iter(block_columns)))},
        )
        clear(self._partial, self.path)
        self.close()
        return finished


def _whole(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    # safetensors refuses tensors that share memory or are not contiguous
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
