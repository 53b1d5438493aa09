"""This project's passes against those of other packages: same model, rows and threads, in turns in one process.

``--peer`` names one of traker, dattri, logix, bergson and kronfluence, each in an environment of its own that has this
project as well (docs/benchmarks.md says how to make them); without it, this project's passes run alone. A comparison is

    dense      rademacher at ``--dim`` against the peer's at the same d
    gaussian   the same rademacher pass against the peer's Gaussian projection, which torch draws faster than signs
    sjlt       sjlt against the peer's
    kronecker  kronecker against the peer's two-sided projection at about the same d
    defaults   kronecker at ``--dim`` against the peer as it comes
    factors    kronecker against the factors that the peer fits instead

Where a peer would take a quarter of an hour for a batch, a part of its projection is run and the rest computed
(`PeerPass.whole_seconds`); the report says ``extrapolated``. A peer that fails is reported with its error.
``--clock cpu --threads 1`` compares processor times, which other programs on the machine hardly lengthen.

Example:
    OMP_NUM_THREADS=2 python -m benchmarks.peers --peer traker --data-dir DATA --json
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import indexing_pass
from benchmarks.indexing_pass import Workload
from benchmarks.measuring import Report, median_ratio, print_json, say, timed
from benchmarks.peer_passes.peer_pass import PeerPass, Task
from indexer.batches import take_rows
from indexer.jacobians import MEMORY_BUDGET_BYTES
from indexer.ntk import ntk_scales
from indexer.parameters import ParameterList, select_parameters
from indexer.reading import ExampleReader
from indexer.recipe_file import load_recipe
from indexer.recipes.fashion_mnist import FashionMnist
from indexer.training import cpu_threads, seeded

DISTRIBUTIONS = {
    "traker": "traker",
    "dattri": "dattri",
    "logix": "logix-ai",
    "bergson": "bergson",
    "kronfluence": "kronfluence",
}
"""The name of each peer in the registry."""
WARM_UP_ROWS = 8
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclass(frozen=True)
class Comparison:
    """What is compared.

    Attributes:
        family: This project's sketch family.
        bar: How many times as fast it shall be; None where no bar is set.
        slow: Whether one batch takes the peer or this project many seconds.
    """

    family: str
    bar: float | None
    slow: bool = False


COMPARISONS = {
    "dense": Comparison("rademacher", 10.0, slow=True),
    "gaussian": Comparison("rademacher", 10.0, slow=True),
    "sjlt": Comparison("sjlt", None),
    "kronecker": Comparison("kronecker", 1.25),
    "defaults": Comparison("kronecker", 100.0, slow=True),
    "factors": Comparison("kronecker", None),
}


def mlp(options: argparse.Namespace) -> Workload:
    """The untrained network of the fashion-mnist recipe, 784-512-256-10, on its images."""
    fraction = str(options.rows / 60_000)
    recipe = load_recipe("fashion-mnist", data_dir=options.data_dir, options={"train_fraction": fraction})
    assert isinstance(recipe, FashionMnist)
    with seeded(0):
        model = recipe.network().eval()
    parameters = select_parameters(model, scales=ntk_scales(model, recipe.ntk_gain))
    return Workload(recipe, model, ExampleReader(recipe, recipe.train_set(), "train"), parameters, options.batch_rows)


MODELS: dict[str, Callable[[argparse.Namespace], Workload]] = {"resnet9": indexing_pass.resnet9, "mlp": mlp}


class PeerMissingError(Exception):
    """This environment has no such package."""


def peer_settings(peer: str) -> dict[str, Callable[[Task], PeerPass]]:
    """Return how to make a peer's passes.

    Args:
        peer: A key of ``DISTRIBUTIONS``.

    Returns:
        Makers, by comparison.

    Raises:
        PeerMissingError: If its package, or one that it needs, is not installed.
    """
    try:
        module = importlib.import_module(f"benchmarks.peer_passes.{peer}")
    except ModuleNotFoundError as error:
        raise PeerMissingError(
            f"{DISTRIBUTIONS[peer]} cannot be imported here ({error}); make an environment for it as "
            "docs/benchmarks.md says under 'Against other packages', or leave --peer out to run this project's passes."
        ) from error
    return dict(module.SETTINGS)


class Rows:
    """A number of the workload's rows, taken a batch at a time.

    Args:
        workload: Model and rows.
        count: How many rows.
        batch_rows: Rows of a batch.
        clock: A key of ``CLOCKS``.
    """

    def __init__(self, workload: Workload, count: int, batch_rows: int, clock: str) -> None:
        self.count = min(count, workload.num_rows)
        self._workload = workload
        self._batch_rows = min(batch_rows, self.count)
        self._clock = CLOCKS[clock]

    def batch(self, start: int, rows: int | None = None) -> tuple[Any, Tensor]:
        """Return the inputs and labels of the batch that begins at a row, or of fewer of its rows."""
        stop = min(start + min(rows or self._batch_rows, self._batch_rows), self.count)
        return take_rows(self._workload.inputs, start, stop), self._workload.labels[start:stop]

    def each_batch(self, function: Callable[[Any, Tensor], object]) -> None:
        """Call a function with the inputs and labels of one batch after the other."""
        for start in range(0, self.count, self._batch_rows):
            function(*self.batch(start))

    def seconds_per_row(self, function: Callable[[Any, Tensor], object]) -> float:
        """Return how long a function takes for all batches, in seconds a row."""
        return timed(lambda: self.each_batch(function), self._clock)[0] / self.count


class OwnPass:
    """This project's pass over rows of a workload.

    Args:
        workload: Model and rows.
        comparison: Says the family.
        options: The command line.
    """

    def __init__(self, workload: Workload, comparison: Comparison, options: argparse.Namespace) -> None:
        batch_rows = options.own_batch_rows or options.batch_rows
        count = max(options.slow_rows, batch_rows) if comparison.family == "rademacher" else options.rows
        self.rows = Rows(workload, count, batch_rows, options.clock)
        workload.batch_rows = batch_rows
        budget = MEMORY_BUDGET_BYTES if options.own_memory_budget is None else options.own_memory_budget * 2**20
        self._featuriser = workload.featuriser(comparison.family, options.dim, memory_budget_bytes=budget)
        self._featuriser.sketch_batch(*self.rows.batch(0, WARM_UP_ROWS))  # compiles kernels, chooses routes

    def seconds_per_row(self) -> float:
        """Time the pass once."""
        return self.rows.seconds_per_row(self._featuriser.sketch_batch)


class PeerRun:
    """A peer's pass over rows of a workload, ready to be timed.

    Args:
        workload: Model and rows.
        comparison: Says how many rows.
        maker: Makes the pass.
        options: The command line.
        folder: Where the peer may write.
    """

    def __init__(
        self,
        workload: Workload,
        comparison: Comparison,
        maker: Callable[[Task], PeerPass],
        options: argparse.Namespace,
        folder: Path,
    ) -> None:
        count = options.slow_rows if comparison.slow else options.rows
        self.rows = Rows(workload, count, options.batch_rows, options.clock)
        num_batches = (options.turns + 1) * -(-self.rows.count // options.batch_rows)
        self.peer = maker(Task(workload.model, options.dim, num_batches, options.batch_rows, folder))
        if self.peer.gradients is not None:  # what costs little, where a whole batch costs much
            self.peer.gradients(*self.rows.batch(0, WARM_UP_ROWS))
        elif not comparison.slow:
            self.peer.sketch(*self.rows.batch(0))

    def seconds_per_row(self) -> float:
        """Time the pass once; the seconds of blocks that are not run are computed."""
        gradients = self.rows.seconds_per_row(self.peer.gradients) if self.peer.gradients is not None else 0.0
        return self.peer.whole_seconds(self.rows.seconds_per_row(self.peer.sketch), gradients)


def compare(
    workload: Workload, comparison: Comparison, maker: Callable[[Task], PeerPass] | None, options: argparse.Namespace
) -> dict[str, Any]:
    """Run this project's pass and a peer's in turns.

    Args:
        workload: Model and rows.
        comparison: What is compared.
        maker: Makes the peer's pass; None runs this project's alone.
        options: The command line.

    Returns:
        Rows a second of both, medians over the turns, and the median of the ratios of turns; ``error`` instead of the
        peer's figures where it fails.
    """
    own_pass = OwnPass(workload, comparison, options)
    own: list[float] = []
    theirs: list[float] = []
    found: dict[str, Any] = {"family": comparison.family, "dim": options.dim, "rows": own_pass.rows.count}
    with tempfile.TemporaryDirectory() as folder:
        run: PeerRun | None = None
        for turn in range(options.turns):
            own.append(own_pass.seconds_per_row())
            say(f"  turn {turn + 1}: {comparison.family} {1 / own[-1]:.4g} rows a second")
            if maker is None or "error" in found:
                continue
            try:
                run = run or PeerRun(workload, comparison, maker, options, Path(folder))
                theirs.append(run.seconds_per_row())
            except Exception as error:  # a peer fails in its own ways, and the report shall say in which
                found["error"] = f"{type(error).__name__}: {' '.join(str(error).split())}"
                continue
            say(f"  turn {turn + 1}: {run.peer.setting} {1 / theirs[-1]:.4g} rows a second")
    found["rows_per_second"] = 1 / statistics.median(own)
    if run is not None and theirs:
        found["peer"] = {
            "setting": run.peer.setting,
            "dim": run.peer.dim,
            "rows": run.rows.count,
            "batch_rows": options.batch_rows,
            "blocks": run.peer.blocks,
            "measured_blocks": run.peer.measured_blocks,
            "extrapolated": run.peer.extrapolated,
            "rows_per_second": 1 / statistics.median(theirs),
        }
        found["bar"] = comparison.bar
        found["times_as_fast"] = median_ratio(theirs, own[: len(theirs)])
        found["turns"] = [b / a for a, b in zip(own, theirs, strict=False)]
    return found


def options_of(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read a command line; None takes the process's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", choices=sorted(DISTRIBUTIONS), help="default: none, this project alone")
    parser.add_argument("--compare", nargs="+", choices=sorted(COMPARISONS), help="default: all that the peer has")
    parser.add_argument("--model", choices=sorted(MODELS), default="resnet9")
    parser.add_argument("--data-dir", type=Path, required=True, help="folder of the model's data")
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--slow-rows", type=int, default=64, help="rows where a row takes long")
    parser.add_argument("--batch-rows", type=int, default=64)
    parser.add_argument("--own-batch-rows", type=int, help="this project's, where another batch suits it better")
    parser.add_argument(
        "--own-memory-budget", type=int, metavar="MIB", help="this project's, as indexer build takes it"
    )
    parser.add_argument("--dim", type=int, default=4096)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--weights-only", action="store_true", help="leave out biases and norms, which LoGra has not")
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="wall")
    parser.add_argument("--threads", type=int, default=None, help="default: OMP_NUM_THREADS, else every core")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    options.rows = max(options.rows, options.slow_rows, options.own_batch_rows or 0)
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print.

    Args:
        arguments: Command line; None takes the process's.

    Raises:
        SystemExit: If the peer is not installed, or is not compared in what was asked for.
    """
    options = options_of(arguments)
    makers: dict[str, Callable[[Task], PeerPass]] = {}
    if options.peer is not None:
        try:
            makers = peer_settings(options.peer)
        except PeerMissingError as error:
            raise SystemExit(str(error)) from error
    chosen = options.compare or list(makers) or ["dense", "kronecker"]
    if missing := [name for name in chosen if options.peer is not None and name not in makers]:
        raise SystemExit(f"{options.peer} is not compared in {', '.join(missing)}; it has {', '.join(makers)}")
    with cpu_threads(options.threads or torch.get_num_threads()):
        workload = MODELS[options.model](options)
        if options.weights_only:
            weights = [entry for entry in workload.parameters if len(entry.shape) > 1]
            entries = [(entry.name, entry.shape, entry.ntk_scale) for entry in weights]
            workload.parameters = ParameterList.of_entries(entries)
        envelope = Report("benchmarks.peers", vars(options))
        found = {}
        for name in chosen:
            say(f"{name}:")
            found[name] = compare(workload, COMPARISONS[name], makers.get(name), options)
        version = importlib.metadata.version(DISTRIBUTIONS[options.peer]) if options.peer is not None else None
        report = envelope.finish(
            {"peer_version": version, "num_parameters": workload.parameters.num_parameters, "comparisons": found}
        )
    if options.json:
        print_json(report)
        return
    for name, line in report["comparisons"].items():
        sys.stdout.write(f"{name:10}{sentence(line)}\n")


def sentence(found: dict[str, Any]) -> str:
    """Say a comparison in a line."""
    own = f"{found['family']}, d = {found['dim']}: {found['rows_per_second']:.4g} rows a second"
    if "error" in found:
        return f"{own}; the peer failed: {found['error']}"
    if "peer" not in found:
        return own
    peer = found["peer"]
    computed = " (extrapolated)" if peer["extrapolated"] else ""
    bar = f", bar {found['bar']:g}" if found["bar"] is not None else ""
    theirs = f"{peer['setting']}, d = {peer['dim']}: {peer['rows_per_second']:.4g}{computed}"
    return f"{own}; {theirs}: {found['times_as_fast']:.4g} times as fast{bar}"


if __name__ == "__main__":
    main()
