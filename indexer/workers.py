"""Worker processes that compute blocks of one build side by side, each with a model and data of its own.

The build's own process hands out blocks, keeps the journal and shows the progress. A worker stores a block's rows at
the block's own place in the shards and then says so; what it did not say is redone whole. Workers are spawned, not
forked: a forked process would inherit locks and thread pools in whatever state they are in.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from types import TracebackType

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from indexer.block_sketcher import BlockSketcher
from indexer.build_settings import MIB, BuildSettings
from indexer.parameters import ParameterList
from indexer.preparation import prepare
from indexer.rebuilding import sketch_of
from indexer.recipe import Recipe, RecipeCodeError, RecipeError
from indexer.recipe_failure import is_of_recipe, said
from indexer.recipe_file import load_recipe
from indexer.rows_of_recipe import ChosenRows, RowsOfRecipe
from indexer.training import cpu_threads, state_digest
from sketchstore.block_writer import BlockWriter
from sketchstore.float16 import scale_exponent_for
from sketchstore.journal import BlockLine
from sketchstore.plan import Block, BuildPlan

POLL_SECONDS = 0.2
"""How often a wish to stop is looked for while workers compute."""


class WorkerDiedError(RuntimeError):
    """A worker process ended in the middle of the build."""


@dataclass(frozen=True)
class WorkerJob:
    """What every worker of a build needs to know.

    Attributes:
        settings: The user's choices.
        plan: The build plan.
        content: The directory that becomes the index.
        weights: File of the weights that the build's own process has.
        labels_are_outputs: Whether every training label is one of the model's outputs.
        chosen: The rows of the recipe's training set that are built; None for all.
    """

    settings: BuildSettings
    plan: BuildPlan
    content: Path
    weights: Path
    labels_are_outputs: bool
    chosen: ChosenRows | None = None


@dataclass(frozen=True)
class Task:
    """One block to compute.

    Attributes:
        block: The block.
        digest: Digest of its rows when they were first read.
        scales: Scale exponents by view; None for the block that decides them.
        started: Whether other blocks, and so the columns' files, are written already.
    """

    block: Block
    digest: str
    scales: Mapping[str, int] | None
    started: bool


@dataclass(frozen=True)
class Done:
    """What a worker says of a block whose rows are on the disk.

    Attributes:
        block: The block.
        line: The journal's line.
        scales: The scale exponents it was stored with.
        seconds: Wall-clock time.
        sketch_seconds: Time in the sketch.
        gradient_seconds: Time in the gradients.
        at_once: Rows that went together.
        columns: Type and row shape of each column; equal for all blocks.
        worker: The worker's number.
    """

    block: Block
    line: BlockLine
    scales: dict[str, int]
    seconds: float
    sketch_seconds: float
    gradient_seconds: float
    at_once: int
    columns: dict[str, tuple[str, tuple[int, ...]]]
    worker: int


@dataclass(frozen=True)
class _Note:
    message: str


@dataclass(frozen=True)
class _Failed:
    error: Exception


def scales_of(sketches: Mapping[str, Tensor]) -> dict[str, int]:
    """Scale exponents that suit a block's sketches.

    Args:
        sketches: float32 [rows, d] by view.

    Returns:
        Exponents by view.
    """
    return {view: scale_exponent_for(values.numpy()) for view, values in sketches.items()}


class Workers:
    """The worker processes of one build; a context manager that ends them.

    Args:
        job: What they need to know.
        count: How many.
        note: Told what they find worth saying.
        stop_requested: Whether the user asked to stop.
    """

    def __init__(
        self, job: WorkerJob, count: int, *, note: Callable[[str], None], stop_requested: Callable[[], bool]
    ) -> None:
        self._job = job
        self._count = count
        self._note = note
        self._stop_requested = stop_requested
        self._processes: dict[Connection, SpawnProcess] = {}
        self._busy: dict[Connection, Block] = {}
        self._columns: dict[str, tuple[str, tuple[int, ...]]] | None = None

    def __enter__(self) -> Workers:
        context = multiprocessing.get_context("spawn")
        with _interrupts_ignored():
            for number in range(self._count):
                here, there = context.Pipe()
                process = context.Process(target=_work, args=(self._job, number, there), name=f"indexer-{number}")
                process.start()
                there.close()
                self._processes[here] = process
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for connection, process in self._processes.items():
            if connection in self._busy or error is not None:
                process.kill()  # nothing is lost that the journal calls finished
            connection.close()  # an idle worker ends when it can read no more
        for process in self._processes.values():
            process.join()

    def sketch(
        self, pending: Sequence[Block], digests: Sequence[str], scales: Mapping[str, int] | None
    ) -> Iterator[Done]:
        """Have blocks computed and stored, as many at once as there are workers.

        After a wish to stop, blocks in progress are still finished.

        Args:
            pending: The blocks, in row order.
            digests: Digest of the rows of every block of the plan.
            scales: Scale exponents by view; None if the first block decides them, which is then computed alone.

        Yields:
            What was finished, in the order in which it was.

        Raises:
            WorkerDiedError: If a worker ends before it is told to.
        """
        waiting = list(reversed(pending))
        idle = list(self._processes)
        started = False
        while waiting or self._busy:
            while waiting and idle and not (scales is None and self._busy) and not self._stop_requested():
                connection, block = idle.pop(), waiting.pop()
                self._busy[connection] = block
                self._send(connection, Task(block, digests[block.number], scales, started))
            if not self._busy:
                return
            for ready in wait(list(self._busy), timeout=POLL_SECONDS):
                assert isinstance(ready, Connection)
                message = self._receive(ready)
                if isinstance(message, _Note):
                    self._note(message.message)
                    continue
                if isinstance(message, _Failed):
                    raise message.error
                del self._busy[ready]
                idle.append(ready)
                self._check_columns(message)
                scales, started = message.scales, True
                yield message

    def _send(self, connection: Connection, task: Task) -> None:
        try:
            connection.send(task)
        except OSError as error:
            raise self._died(connection) from error

    def _receive(self, connection: Connection) -> Done | _Note | _Failed:
        try:
            message: Done | _Note | _Failed = connection.recv()
        except (EOFError, OSError) as error:
            raise self._died(connection) from error
        return message

    def _died(self, connection: Connection) -> WorkerDiedError:
        process, block = self._processes[connection], self._busy[connection]
        process.join(1.0)
        code = process.exitcode
        how = f"was killed by signal {-code}" if code is not None and code < 0 else f"ended with exit code {code}"
        return WorkerDiedError(
            f"worker {process.name} {how} at rows {block.start} to {block.stop - 1}; finished blocks are kept. "
            "Continue with the same command and --resume; where memory ran out (signal 9), with fewer --processes"
        )

    def _check_columns(self, done: Done) -> None:
        if self._columns is None:
            self._columns = done.columns
        elif self._columns != done.columns:
            raise RecipeError(
                f"rows {done.block.start} to {done.block.stop - 1} have columns {done.columns}, others have "
                f"{self._columns}; representation() must give the same shape for every batch"
            )


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    # A process that starts meanwhile ignores Ctrl-C from its first instruction on: stopping is this process's affair.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _work(job: WorkerJob, number: int, connection: Connection) -> None:
    """Compute the blocks that come through a connection until it closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
    try:
        if job.settings.device == "cuda":
            torch.cuda.set_device(number % torch.cuda.device_count())
        with cpu_threads(job.plan.build.num_threads):
            worker = _Worker(job, number, lambda message: connection.send(_Note(message)))
            while True:
                try:
                    task = connection.recv()
                except EOFError:
                    return
                connection.send(worker.compute(task))
    except Exception as error:
        connection.send(_Failed(_sendable(error)))


def _end_with_parent() -> None:
    # A worker whose build was killed would go on writing to a directory that another build may resume.
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _sendable(error: Exception) -> Exception:
    if is_of_recipe(error) and type(error).__module__.partition(".")[0] != "indexer":
        # Its traceback, which says where in the recipe it arose, does not survive the journey.
        return RecipeCodeError(f"the recipe's code or model raised {said(error)}")
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # an error type of the user's or a library's that does not survive the journey
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


class _Worker:
    def __init__(self, job: WorkerJob, number: int, note: Callable[[str], None]) -> None:
        self._job = job
        self._number = number
        settings, recipe = _as_planned(job), None
        if job.chosen is not None:
            whole = load_recipe(settings.recipe, data_dir=settings.data_dir, options=settings.options)
            recipe = RowsOfRecipe(whole, whole.train_set(), None, job.chosen)
        prepared = prepare(
            settings,
            recipe,
            model_of=lambda recipe: _loaded(recipe, job),
            spec=sketch_of(job.plan.sketch),
            parameters=ParameterList.of_sketch(job.plan.sketch),
        )
        self._featuriser = prepared.featuriser
        self._blocks = BlockSketcher(prepared, note)
        self._writer = BlockWriter(job.content, job.plan)

    def compute(self, task: Task) -> Done:
        begun, timed = time.perf_counter(), self._featuriser.seconds
        sketch_seconds, gradient_seconds = timed.sketch_seconds, timed.gradient_seconds
        computed = self._blocks.block(task.block, task.digest, self._job.labels_are_outputs)
        scales = dict(scales_of(computed.sketches) if task.scales is None else task.scales)
        line = self._writer.write(task.block, computed.sketches, computed.columns, scales, started=task.started)
        return Done(
            block=task.block,
            line=line,
            scales=scales,
            seconds=time.perf_counter() - begun,
            sketch_seconds=timed.sketch_seconds - sketch_seconds,
            gradient_seconds=timed.gradient_seconds - gradient_seconds,
            at_once=computed.at_once,
            columns={name: (str(values.dtype), values.shape[1:]) for name, values in computed.columns.items()},
            worker=self._number,
        )


def _as_planned(job: WorkerJob) -> BuildSettings:
    # What the build's own process found out from its threads, its GPU's memory and its first rows.
    build = job.plan.build
    budget_bytes = build.options["memory_budget_bytes"]
    assert isinstance(budget_bytes, int)
    return replace(
        job.settings,
        processes=1,
        threads=build.num_threads,
        batch_rows=build.compute_rows,
        memory_budget_mib=budget_bytes // MIB,
    )


def _loaded(recipe: Recipe, job: WorkerJob) -> nn.Module:
    # The weights that the build's own process has, whatever the recipe would train or load a second time.
    model = recipe.architecture()
    try:
        model.load_state_dict(load_file(job.weights))
    except RuntimeError as error:
        raise RecipeError(
            f"recipe {recipe.name!r}: architecture() has other modules than model(), so a worker process cannot load "
            f"its weights: {error}"
        ) from error
    found, planned = state_digest(model.state_dict()), job.plan.digests.weights
    if found != planned:
        raise RecipeError(f"recipe {recipe.name!r}: weights in a worker have digest {found}, the build's {planned}")
    return model.eval()
