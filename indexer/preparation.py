"""Everything a build needs before its first row: the user's choices resolved against the recipe, its model and data."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from indexer.batch_rows import default_budget, plan_batches
from indexer.featurise import COMPUTE_ROWS, Featuriser
from indexer.jacobians import MEMORY_BUDGET_BYTES
from indexer.kronecker_dims import fitted_kronecker_spec
from indexer.measurement import Measurement, make_measurement
from indexer.ntk import ntk_scales
from indexer.out_of_memory import RULE
from indexer.parameters import Layers, ParameterList, select_parameters
from indexer.precision import COMPUTE_DTYPES, ComputeDtype
from indexer.reading import ExampleError, ExampleReader, ReadOnce
from indexer.recipe import OptionValue, Recipe, RecipeError
from indexer.recipe_file import load_recipe
from indexer.sketches import SketchSpec, sketch_spec
from indexer.training import state_digest
from sketchstore.manifest import Build, Parameter, Sketch, SourceDigests, StorageDtype
from sketchstore.manifest import Measurement as MeasurementEntry
from sketchstore.manifest import Recipe as RecipeEntry
from sketchstore.plan import BuildPlan, shard_rows_for
from sketchstore.unfinished import partial_path, refuse_what_is_there

DEFAULT_DIM = 4096
NUM_QUERIES = 1000
BUILD_VERSION = "2"
"""Raised when a change in this package changes the bytes of an index."""
MIB = 1024**2
BYTES_DECIDED_BY = ("torch", "numpy", "numba", "pyarrow", "pillow")
"""Packages whose version can change them too; recorded in the plan and compared on resume."""


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
        seed: Key of the sketch's generator.
        buckets: Signed buckets per parameter of an sjlt sketch.
        dtype: Storage type.
        ntk: NTK scaling; None switches it on where the recipe has an ``ntk_gain``.
        include: Globs of modules to keep.
        exclude: Globs of modules to drop.
        layers: ``linear`` or ``all``; None takes the recipe's default.
        block_rows: Rows computed, written and journaled as one.
        limit: Only the first rows of the training set.
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
    seed: int = 0
    buckets: int | None = None
    dtype: StorageDtype = "float32"
    ntk: bool | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    layers: Layers | None = None
    block_rows: int = COMPUTE_ROWS
    limit: int | None = None
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
            BuildSettingsError: If a number is too small, or the device is not there.
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
        if self.compute_dtype not in COMPUTE_DTYPES:
            raise BuildSettingsError(f"--compute-dtype {self.compute_dtype!r} must be {', '.join(COMPUTE_DTYPES)}")
        if self.device not in ("cpu", "cuda"):
            raise BuildSettingsError(f"--device {self.device!r} must be cpu or cuda")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise BuildSettingsError("--device cuda: torch sees no CUDA device here; use --device cpu")

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


@dataclass(frozen=True)
class Prepared:
    """A recipe made ready: loaded model, chosen parameters, measurement and sketch.

    Attributes:
        settings: The user's choices.
        recipe: The recipe.
        model: Its trained model in eval mode.
        train: The training rows.
        queries: The query rows, None without a query set.
        num_outputs: C, or 1 for a scalar output.
        classifies: Whether outputs are logits of at least two classes.
        measurement: What is differentiated.
        views: Names of the views.
        parameters: The coordinates of the tangent features.
        ntk_gain: Gain of the NTK scaling, None where it is off.
        spec: The sketch.
        featuriser: What sketches training rows and queries.
        model_seconds: What the recipe took to give its model, by training or by loading it.
        compute_rows: Rows that go through model and sketch together.
    """

    settings: BuildSettings
    recipe: Recipe
    model: nn.Module
    train: ExampleReader
    queries: ExampleReader | None
    num_outputs: int
    classifies: bool
    measurement: Measurement
    views: list[str]
    parameters: ParameterList
    ntk_gain: float | None
    spec: SketchSpec
    featuriser: Featuriser
    model_seconds: float
    compute_rows: int

    @property
    def device(self) -> torch.device:
        """Where to compute."""
        return torch.device(self.settings.device)

    @property
    def block_rows(self) -> int:
        """Rows per block: as asked for, but never more than there are."""
        return min(self.settings.block_rows, self.train.num_rows)


@dataclass(frozen=True)
class Part:
    """Rows built to join a published index; what is measured of a whole index is not measured of them.

    Attributes:
        recipe: Gives these rows and no other, and the index's own model.
        check_plan: Refuses a plan whose rows would not compare with those of the index, before any is sketched.
        spec: The index's sketch; of a kronecker sketch the rows at hand would give another.
    """

    recipe: Recipe
    check_plan: Callable[[BuildPlan], object]
    spec: SketchSpec


def prepare(
    settings: BuildSettings,
    recipe: Recipe | None = None,
    *,
    model_of: Callable[[Recipe], nn.Module] | None = None,
    spec: SketchSpec | None = None,
) -> Prepared:
    """Load a recipe and resolve a user's choices against it. Trains the model if nothing is cached.

    Args:
        settings: The choices.
        recipe: The recipe where it is loaded already; None loads the one that the choices name.
        model_of: Gives the recipe's trained model; None asks the recipe.
        spec: The sketch where it is settled already; None takes the one that the choices name.

    Returns:
        What build, plan and check work with.

    Raises:
        BuildSettingsError: If a choice is impossible here.
        RecipeError: If the training set is empty.
    """
    settings.check()
    if recipe is None:
        recipe = load_recipe(settings.recipe, data_dir=settings.data_dir, options=settings.options)
    train = ExampleReader(recipe, recipe.train_set(), "train", limit=settings.limit)
    if train.num_rows == 0:
        raise RecipeError(f"recipe {recipe.name!r}: the training set is empty")
    begun = time.perf_counter()
    model = recipe.model() if model_of is None else model_of(recipe)
    model_seconds = time.perf_counter() - begun
    query_set = recipe.query_set() if settings.num_queries != 0 else None
    if query_set is None and settings.num_queries:
        raise BuildSettingsError(f"--num-queries {settings.num_queries}: recipe {recipe.name!r} has no query_set()")
    limit = NUM_QUERIES if settings.num_queries is None else settings.num_queries
    queries = None if query_set is None else ExampleReader(recipe, query_set, "query", limit=limit)
    num_outputs, classifies = _outputs_of(recipe, model, train)
    measurement = _measurement(settings, recipe)
    gain = _ntk_gain(settings, recipe)
    parameters = select_parameters(
        model,
        include=settings.include,
        exclude=settings.exclude,
        layers=settings.layers or recipe.default_layers,
        scales=None if gain is None else ntk_scales(model, gain),
    )
    if spec is None and settings.sketch == "kronecker":
        if settings.buckets is not None:
            raise BuildSettingsError("--buckets belongs to --sketch sjlt; a kronecker sketch has none")
        spec = fitted_kronecker_spec(
            recipe,
            model,
            measurement,
            parameters,
            train,
            num_outputs,
            dim=DEFAULT_DIM if settings.dim is None else settings.dim,
            seed=settings.seed,
            device=settings.device,
            num_threads=settings.num_threads,
        )
    elif spec is None:
        spec = _spec(settings, parameters.num_parameters)
    featuriser = Featuriser(
        recipe,
        model,
        spec,
        measurement,
        parameters,
        device=settings.device,
        compute_rows=min(settings.block_rows, train.num_rows, COMPUTE_ROWS),
        num_threads=settings.num_threads,
        memory_budget_bytes=settings.memory_budget_bytes,
        compute_dtype=settings.compute_dtype,
    )
    views = measurement.views(num_outputs)
    compute_rows = plan_batches(
        featuriser,
        train,
        views[0],
        num_outputs,
        block_rows=min(settings.block_rows, train.num_rows),
        budget_bytes=settings.memory_budget_bytes,
        wanted=settings.batch_rows,
    )
    return Prepared(
        settings=settings,
        recipe=recipe,
        model=model,
        train=train,
        queries=queries,
        num_outputs=num_outputs,
        classifies=classifies and measurement.name != "custom",
        measurement=measurement,
        views=views,
        parameters=parameters,
        ntk_gain=gain,
        spec=spec,
        featuriser=featuriser,
        model_seconds=model_seconds,
        compute_rows=compute_rows,
    )


def build_plan(prepared: Prepared, name: str, train: ReadOnce, queries: ReadOnce | None) -> BuildPlan:
    """Write down everything that decides the bytes of the index.

    Args:
        prepared: The recipe and the choices.
        name: Name of the index.
        train: What one pass over the training rows found.
        queries: The same for the query rows.

    Returns:
        The plan.
    """
    settings, recipe = prepared.settings, prepared.recipe
    options: dict[str, Any] = {
        "limit": settings.limit,
        "ntk_gain": prepared.ntk_gain,
        "include": list(settings.include),
        "exclude": list(settings.exclude),
        "layers": settings.layers or recipe.default_layers,
        "num_queries": 0 if prepared.queries is None else prepared.queries.num_rows,
        "queries_digest": None if queries is None else queries.digest,
        "previews": settings.previews,
        "weights": settings.weights,
        "out_of_memory": RULE,
        "memory_budget_bytes": settings.memory_budget_bytes,
        "compute_dtype": settings.compute_dtype,
    }
    names = recipe.label_names
    return BuildPlan(
        name=name,
        num_rows=prepared.train.num_rows,
        dtype=settings.dtype,
        views=dict.fromkeys(prepared.views, prepared.measurement.comparable),
        sketch=Sketch(
            family=prepared.spec.family,
            seed=prepared.spec.seed,
            dim=prepared.spec.dim,
            num_parameters=prepared.parameters.num_parameters,
            parameters=tuple(
                Parameter(name=parameter.name, shape=parameter.shape, ntk_scale=parameter.ntk_scale)
                for parameter in prepared.parameters
            ),
            options=dict(prepared.spec.options),
        ),
        measurement=MeasurementEntry(
            name=prepared.measurement.name,
            options={} if settings.views is None else {"views": [*sorted(settings.views)]},
        ),
        recipe=RecipeEntry(
            name=recipe.name, builtin=recipe.builtin, options=dict(recipe.options), file_digest=recipe.file_digest
        ),
        build=Build(
            block_rows=prepared.block_rows,
            shard_rows=shard_rows_for(prepared.block_rows, prepared.spec.dim, settings.dtype),
            compute_rows=prepared.compute_rows,
            num_threads=settings.num_threads,
            device=settings.device,
            versions={"build": BUILD_VERSION, **{name: version(name) for name in BYTES_DECIDED_BY}},
            options=options,
        ),
        digests=SourceDigests(weights=state_digest(prepared.model.state_dict()), data_order=train.digest),
        label_names=None if names is None else {str(label): name for label, name in enumerate(names)},
    )


def check_labels(prepared: Prepared, found: ReadOnce) -> None:
    """Refuse training labels that the measurement cannot be taken at, naming the row.

    Args:
        prepared: The recipe and the choices.
        found: What one pass over the training rows found.

    Raises:
        ExampleError: If a label is missing or is not an output of the model.
    """
    if prepared.measurement.name not in ("label_logit", "margin"):
        return
    wrong = ((found.labels < 0) | (found.labels >= prepared.num_outputs)).nonzero()
    if wrong.numel():
        row = int(wrong[0])
        raise ExampleError(
            "train",
            row,
            f"label {int(found.labels[row])} is not an output of the model, which has 0 to {prepared.num_outputs - 1}; "
            f"the measurement {prepared.measurement.name} is taken at each row's own label",
        )


def _outputs_of(recipe: Recipe, model: nn.Module, train: ExampleReader) -> tuple[int, bool]:
    count = min(2, train.num_rows)
    rows = train.collate(0, count)
    with torch.no_grad():
        outputs = recipe.outputs(recipe.call(model, rows.inputs))
    if outputs.shape[:1] != (count,) or outputs.ndim > 2:
        raise RecipeError(
            f"recipe {recipe.name!r}: the outputs of {count} examples have shape {list(outputs.shape)}; outputs() must "
            "give logits [b, C] or one scalar per example [b]"
        )
    num_outputs = outputs.shape[1] if outputs.ndim == 2 else 1
    return num_outputs, num_outputs >= 2


def _measurement(settings: BuildSettings, recipe: Recipe) -> Measurement:
    name = settings.measurement
    if name is None:
        name = recipe.default_measurement if recipe.measurement is None else "custom"
    if name == "custom" and recipe.measurement is None:
        raise BuildSettingsError(f"--measurement custom: recipe {recipe.name!r} defines no measurement(outputs, label)")
    return make_measurement(name, classes=settings.views, function=recipe.measurement if name == "custom" else None)


def _ntk_gain(settings: BuildSettings, recipe: Recipe) -> float | None:
    wanted = recipe.ntk_gain is not None if settings.ntk is None else settings.ntk
    if not wanted:
        return None
    return 1.0 if recipe.ntk_gain is None else recipe.ntk_gain


def _spec(settings: BuildSettings, num_parameters: int) -> SketchSpec:
    family: str | None = settings.sketch
    if family is None:
        family = "identity" if settings.dim is None and num_parameters <= DEFAULT_DIM else "rademacher"
    dim = settings.dim
    if dim is None and family != "identity":
        dim = DEFAULT_DIM
    options = {} if settings.buckets is None else {"buckets": settings.buckets}
    return sketch_spec(family, dim, num_parameters, settings.seed, options)
