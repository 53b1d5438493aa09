"""Everything a build needs before its first row: the user's choices resolved against the recipe, its model and data."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from indexer.batch_rows import plan_batches
from indexer.build_settings import BuildSettings, BuildSettingsError
from indexer.featurise import COMPUTE_ROWS, Featuriser
from indexer.kronecker_dims import fitted_kronecker_spec
from indexer.measurement import Measurement, make_measurement
from indexer.ntk import ntk_scales
from indexer.out_of_memory import is_out_of_memory
from indexer.parameters import ParameterList, select_parameters
from indexer.reading import ExampleError, ExampleReader
from indexer.recipe import Recipe, RecipeError
from indexer.recipe_failure import said
from indexer.recipe_file import load_recipe
from indexer.rows_of_recipe import RowsOfRecipe
from indexer.sketch_like import sketch_like
from indexer.sketches import SketchSpec, sketch_spec
from sketchstore.plan import BuildPlan
from sketchstore.reader import open_index

log = logging.getLogger("indexer.preparation")

DEFAULT_DIM = 4096
NUM_QUERIES = 1000


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
        parameters: The index's coordinates; the model at hand has them, but not the flags by which they were chosen.
    """

    recipe: RowsOfRecipe
    check_plan: Callable[[BuildPlan], object]
    spec: SketchSpec
    parameters: ParameterList


def prepare(
    settings: BuildSettings,
    recipe: Recipe | None = None,
    *,
    model_of: Callable[[Recipe], nn.Module] | None = None,
    spec: SketchSpec | None = None,
    parameters: ParameterList | None = None,
) -> Prepared:
    """Load a recipe and resolve a user's choices against it. Trains the model if nothing is cached.

    Args:
        settings: The choices.
        recipe: The recipe where it is loaded already; None loads the one that the choices name.
        model_of: Gives the recipe's trained model; None asks the recipe.
        spec: The sketch where it is settled already; None takes the one that the choices name.
        parameters: The coordinates where they are settled already; None chooses them from the model. What is frozen,
            and which parameter comes first, may differ between ``model()`` and ``architecture()``.

    Returns:
        What build, plan and check work with.

    Raises:
        BuildSettingsError: If a choice is impossible here.
        RecipeError: If the training set is empty.
    """
    settings.check()
    like = None if settings.sketch_like is None or spec is not None else open_index(settings.sketch_like, check="sizes")
    if recipe is None:
        recipe = load_recipe(settings.recipe, data_dir=settings.data_dir, options=settings.options)
    train = ExampleReader(recipe, recipe.train_set(), "train", limit=settings.limit, id_prefix=settings.id_prefix)
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
    shape = _outputs_of(recipe, model, train)
    num_outputs = shape[0] if shape else 1
    classifies = num_outputs >= 2
    measurement = _measurement(settings, recipe)
    if measurement.name != "custom" and not shape:
        raise BuildSettingsError(
            f"--measurement {measurement.name} is of logits, one for each class, and the outputs of recipe "
            f"{recipe.name!r} are one number an example. A recipe of your own defines measurement(outputs, label) "
            "to say which scalar is explained; of causal-lm, leave --measurement out or choose --option unit=token"
        )
    gain = _ntk_gain(settings, recipe)
    if parameters is None:
        parameters = select_parameters(
            model,
            include=settings.include,
            exclude=settings.exclude,
            layers=settings.layers or recipe.default_layers,
            scales=None if gain is None else ntk_scales(model, gain),
        )
        if not any(parameter.requires_grad for parameter in model.parameters()):
            log.warning(
                "every parameter of the model is frozen, so that says nothing: --include chooses what is measured"
            )
    else:
        parameters.check_model(model)
    _say_short_weights(model, parameters)
    if like is not None:
        spec = sketch_like(like, parameters)
    elif spec is None and settings.sketch == "kronecker":
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
            seed=settings.sketch_seed,
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
        views,
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


def check_labels(prepared: Prepared, labels: Tensor) -> None:
    """Refuse training labels that the measurement cannot be taken at, naming the row.

    Args:
        prepared: The recipe and the choices.
        labels: Labels of the first training rows, or of all, int64 [n].

    Raises:
        ExampleError: If a label is missing or is not an output of the model.
    """
    if prepared.measurement.name not in ("label_logit", "margin"):
        return
    wrong = ((labels < 0) | (labels >= prepared.num_outputs)).nonzero()
    if wrong.numel():
        row = int(wrong[0])
        raise ExampleError(
            "train",
            row,
            f"label {int(labels[row])} is not an output of the model, which has 0 to {prepared.num_outputs - 1}; "
            f"the measurement {prepared.measurement.name} is taken at each row's own label. Number the labels from 0, "
            "give the model an output for each, or choose --measurement class_logit, which needs no labels",
        )


def _say_short_weights(model: nn.Module, parameters: ParameterList) -> None:
    held = dict(model.named_parameters())
    short = {held[name].dtype for name in parameters.names} & {torch.bfloat16, torch.float16}
    if short:
        log.warning(
            "the model's weights are %s, and so are its gradients, with two or three digits; return model.float() from "
            "model(), and choose --compute-dtype for passes in a short type whose sums are float32",
            " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in short)),
        )


def _outputs_of(recipe: Recipe, model: nn.Module, train: ExampleReader) -> tuple[int, ...]:
    # The shape of one example's outputs: (C,) of logits, () of a scalar
    count = min(2, train.num_rows)
    rows = train.collate(0, count)
    try:
        with torch.no_grad():
            outputs = recipe.outputs(recipe.call(model, rows.inputs))
    except RecipeError:
        raise
    except Exception as error:  # the user's code may raise anything
        if is_out_of_memory(error):
            raise
        dtypes = ", ".join(sorted({str(each.dtype).removeprefix("torch.") for each in model.parameters()})) or "none"
        raise RecipeError(
            f"recipe {recipe.name!r}: the model cannot be called on the first {count} training rows: "
            f"{said(error)}. It gets what collate() gives, here {_shape_of(rows.inputs)}, and its "
            f"parameters are {dtypes}; define collate(examples) or call(model, inputs) where that must be otherwise"
        ) from error
    if outputs.shape[:1] != (count,) or outputs.ndim > 2:
        raise RecipeError(
            f"recipe {recipe.name!r}: the outputs of {count} examples have shape {list(outputs.shape)}; outputs() must "
            "give logits [b, C] or one scalar per example [b]"
        )
    return tuple(outputs.shape[1:])


def _shape_of(inputs: Any) -> str:
    if isinstance(inputs, torch.Tensor):
        return f"{str(inputs.dtype).removeprefix('torch.')} {list(inputs.shape)}"
    if isinstance(inputs, Mapping):
        return "{" + ", ".join(f"{name}: {_shape_of(each)}" for name, each in inputs.items()) + "}"
    if isinstance(inputs, list | tuple):
        return "(" + ", ".join(map(_shape_of, inputs)) + ")"
    return type(inputs).__name__


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
    return sketch_spec(family, dim, num_parameters, settings.sketch_seed, options)
