"""Finds out on a few rows, alone and together, whether a recipe is sound.

Sound means that there is such a thing as *the* gradient of one example, which the whole line takes for granted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from indexer.architecture import check_architecture
from indexer.batches import Batch, move, take_rows
from indexer.build_settings import BuildSettings
from indexer.out_of_memory import is_out_of_memory
from indexer.plain_gradients import plain_gradients
from indexer.preparation import Prepared, check_labels, prepare
from indexer.previews import preview_of
from indexer.progress import Progress, Silent
from indexer.reading import CollatedRows, ExampleError, ExampleReader
from indexer.recipe import Example, RecipeError
from indexer.recipe_failure import is_of_recipe, said
from indexer.sketches import make_sketch
from indexer.terminal import counted
from indexer.training import cpu_threads

ROWS = 8
"""Rows of a batch; whether rows see their batch-mates is looked at on twice as many, from all over the data set."""
OUTPUT_TOLERANCE = 1e-4
"""Relative change of an output that float32 rounding in another batch size can explain, generously."""
GRADIENT_TOLERANCE = 1e-3
"""The same for a gradient, in its norm: a batch norm in train mode or a shared mask changes it by whole percents."""
SHORT_TOLERANCE = 0.2
"""The same for sketches computed in a shorter type: some percents are usual; this much moves every kernel value."""


@dataclass(frozen=True)
class Finding:
    """The outcome of one check.

    Attributes:
        check: What was checked, in a few words.
        ok: Whether it is sound.
        detail: What was found, and what to do where it is not sound.
    """

    check: str
    ok: bool
    detail: str


def check_recipe(settings: BuildSettings, *, progress: Progress | None = None) -> list[Finding]:
    """Check a recipe; later checks that need an earlier one are left out when that one fails.

    Args:
        settings: The choices a build would be made with.
        progress: Told what is being checked.

    Returns:
        The findings, in the order of the checks.
    """
    progress = progress or Silent()
    progress.phase("loading the recipe, its model and its data", 0)
    with cpu_threads(settings.num_threads):
        try:
            prepared = prepare(settings)
        except Exception as error:  # the user's code may raise anything, and what it raises is the finding
            return [Finding("the recipe loads", False, _raised(error))]
        progress.phase("checking a few rows, alone and together", 0)
        return _Check(prepared).findings()


def refuse_unsound(prepared: Prepared) -> None:
    """Refuse a model whose outputs or gradients of an example depend on those beside it, or whose architecture differs.

    Args:
        prepared: What a build is about to sketch.

    Raises:
        RecipeError: If they do, since sketches of such a model would be of no single example; or if ``architecture()``
            is another function than the model.
    """
    check = _Check(prepared)
    for look in (check._outputs_alone, check._gradients_alone, check._architecture):
        try:
            look()
        except _UnsoundError as error:
            raise RecipeError(f"{prepared.recipe.name}: {error}") from None


class _Check:
    """The checks on one prepared recipe."""

    def __init__(self, prepared: Prepared) -> None:
        self.prepared = prepared
        self.found: list[Finding] = []
        self.reached = set[str]()  # parameters that autograd led to, were it with a gradient of zero

    def findings(self) -> list[Finding]:
        prepared = self.prepared
        queries = "no query set" if prepared.queries is None else counted(prepared.queries.num_rows, "query", "queries")
        rows = counted(prepared.train.num_rows, "training row")
        self._add(
            "the recipe loads",
            True,
            f"{rows}, {queries}, {counted(prepared.num_outputs, 'output')}, "
            f"{counted(prepared.parameters.num_parameters, 'parameter')} in "
            f"{counted(len(prepared.parameters), 'tensor')}",
        )
        readable = self._attempt("examples can be read", self._examples)
        readable = self._attempt("examples are the same when read again", self._stable) and readable
        if readable and self._attempt("outputs are finite and deterministic", self._outputs):
            alone = self._attempt("outputs do not depend on the rest of the batch", self._outputs_alone)
            if not alone and self._batch_norms():  # of which the other checks would say the same
                return self.found
            self._attempt("gradients do not depend on the rest of the batch", self._gradients_alone)
            self._attempt("architecture() is the model without its weights", self._architecture)
            self._attempt("tangent features are finite, deterministic and those of autograd", self._features)
            if (dtype := prepared.settings.compute_dtype) != "float32":
                self._attempt(f"sketches computed in {dtype} are near those in float32", self._shorter_type)
        return self.found

    def _add(self, check: str, ok: bool, detail: str) -> bool:
        self.found.append(Finding(check, ok, detail))
        return ok

    def _attempt(self, name: str, check: Callable[[], str]) -> bool:
        try:
            return self._add(name, True, check())
        except _UnsoundError as error:
            return self._add(name, False, str(error))
        except Exception as error:  # as above
            return self._add(name, False, _raised(error))

    # The batches: the first rows, and rows from all over

    def _batch(self, reader: ExampleReader | None = None) -> CollatedRows:
        reader = reader or self.prepared.train
        return reader.collate(0, min(ROWS, reader.num_rows))

    def _where_rows_fit(self, look: Callable[[list[int]], str], reader: ExampleReader | None = None) -> str:
        # At rows from all over, where lengths differ if they do anywhere: data sets may be sorted by length
        last, count = (reader or self.prepared.train).num_rows - 1, 2 * ROWS
        while True:
            try:
                return look(list(dict.fromkeys(last * part // (count - 1) for part in range(count))))
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error) or count == 2:
                    raise
                count //= 2

    def _collated(self, example: Example) -> tuple[Batch, Tensor]:
        return self.prepared.recipe.collate([example])

    def _examples(self) -> str:
        said = []
        for reader in (self.prepared.train, self.prepared.queries):
            if reader is None or reader.num_rows == 0:
                continue
            rows = self._batch(reader)
            keys = None
            for row, example in enumerate(rows.examples):
                metadata = reader.metadata(example, row)
                if keys is not None and set(metadata) != keys:
                    raise _UnsoundError(
                        f"{reader.split} row {row} has metadata {sorted(metadata)}, row 0 {sorted(keys)}"
                    )
                keys = set(metadata)
                preview_of(reader, example, row)
                reader.id(example, row)
            labels = rows.labels
            if reader.split == "train":
                check_labels(self.prepared, labels)
            said.append(f"{reader.split} rows 0 to {len(rows.examples) - 1}: labels {labels.tolist()}")
        return "; ".join(said)

    def _stable(self) -> str:
        reader = self.prepared.train
        if reader.block_digest(self._batch()) != reader.block_digest(self._batch()):
            raise _UnsoundError("the same rows gave different inputs the second time: switch augmentation off")
        return "the same bytes twice"

    def _outputs(self) -> str:
        featuriser, rows = self.prepared.featuriser, self._batch()
        outputs, again = featuriser.outputs_batch(rows.inputs), featuriser.outputs_batch(rows.inputs)
        bad = (~torch.isfinite(outputs)).reshape(len(outputs), -1).any(dim=1).nonzero().flatten().tolist()
        if bad:
            dtype = featuriser.compute_dtype
            shorter = "" if dtype == "float32" else f" in {dtype}; bfloat16 has float32's range, float16 ends at 65,504"
            raise _UnsoundError(
                f"train row {bad[0]}: the model's outputs hold NaN or an infinity{shorter}, as those of {len(bad)} of "
                f"the {len(outputs)} rows looked at. Look at the row's inputs and the model's weights: both must be "
                "finite"
            )
        if not torch.equal(outputs, again):
            raise _UnsoundError(
                "the same batch gave different outputs the second time: something in the model is random in eval mode"
            )
        return f"shape {list(outputs.shape)}, the same bits twice"

    def _outputs_alone(self) -> str:
        queries = self.prepared.queries
        of_rows = self._where_rows_fit(self._outputs_of)
        if queries is not None and queries.num_rows > 1:  # their lengths may differ where those of rows do not
            self._where_rows_fit(lambda order: self._outputs_of(order, queries), queries)
        return of_rows

    def _outputs_of(self, order: list[int], reader: ExampleReader | None = None) -> str:
        reader = reader or self.prepared.train
        featuriser, rows = self.prepared.featuriser, reader.collate_chosen(order)
        with featuriser.in_float32():  # a shorter type may round a row otherwise in a batch of another size
            together = featuriser.outputs_batch(rows.inputs)
            try:
                # Collated by itself: a slice of the batch would be padded as the batch is
                alone = torch.cat([featuriser.outputs_batch(self._collated(example)[0]) for example in rows.examples])
            except ValueError as error:  # what torch says of one row: "expected more than 1 value per channel"
                if not self._batch_norms():
                    raise
                raise _UnsoundError(self._batch_mates()) from error
        if alone.shape != together.shape:
            raise _UnsoundError(
                f"{len(together)} rows have outputs of shape {list(together.shape)} together and {list(alone.shape)} "
                f"one by one. {self._batch_mates()}"
            )
        change = float((together - alone).abs().max() / together.abs().max().clamp_min(1e-30))
        if change > OUTPUT_TOLERANCE:
            raise _UnsoundError(
                f"outputs of a {'query' if reader.split == 'query' else 'row'} alone and among others differ by "
                f"{change:.1%}. {self._batch_mates()}"
            )
        return f"largest relative change {change:.1e}"

    def _batch_norms(self) -> list[str]:
        # Batch norms that use the batch's own mean and variance in eval mode too
        return [
            f"{name or 'the model'} ({type(module).__name__})"
            for name, module in self.prepared.model.named_modules()
            if isinstance(module, _BatchNorm) and module.running_mean is None and module.running_var is None
        ]

    def _batch_mates(self) -> str:
        norms = self._batch_norms()
        by_frequency = [
            name
            for name, module in self.prepared.model.named_modules()
            if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.scale_grad_by_freq
        ]
        if by_frequency:
            return (
                f"{', '.join(by_frequency)} divides gradients by how often a token occurs in the batch "
                "(scale_grad_by_freq=True): set it to False in model(), which changes no output"
            )
        if not norms:
            return _BATCH_MATES
        keeps = "keeps" if len(norms) == 1 else "keep"
        return (
            f"{', '.join(norms[:5])}{' …' if len(norms) > 5 else ''} {keeps} no running statistics "
            "(track_running_stats=False), so even in eval mode what it gives an example depends on the examples beside "
            "it, and one row alone has nothing to be normalised by: no example has a gradient of its own. Train with "
            "track_running_stats=True, torch's default, or with a norm over each example (LayerNorm, GroupNorm)"
        )

    def _gradients_alone(self) -> str:
        return self._where_rows_fit(self._gradients_of)

    @property
    def _views(self) -> list[str]:
        # Another view may lead to other parameters, such as the head of another class
        views = self.prepared.views
        return list(dict.fromkeys([views[0], views[len(views) // 2], views[-1]]))

    def _gradients_of(self, order: list[int]) -> str:
        change, changed = 0.0, order[0]
        some = dict.fromkeys([order[0], order[len(order) // 2], order[-1]])
        for view, row in product(self._views, some):
            first = [row, *(other for other in order if other != row)]  # autograd differentiates the first of a batch
            together = self.prepared.train.collate_chosen(first)
            alone = self._autograd(*self._collated(together.examples[0]), view)
            found = _relative(alone, self._autograd(together.inputs, together.labels, view))
            if found > change:
                change, changed = found, row
        idle = [repr(name) for name in self.prepared.parameters.names if name not in self.reached]
        if len(idle) == len(self.prepared.parameters):
            raise _UnsoundError(_NO_GRADIENT)
        if change > GRADIENT_TOLERANCE:
            raise _UnsoundError(
                f"the gradient of row {changed} changes by {change:.1%} with the other rows of its batch. "
                f"{self._batch_mates()}"
            )
        shown = f"{', '.join(idle[:3])}{f' and {len(idle) - 3} more' if len(idle) > 3 else ''}"
        unused = f"; no part in the measurement of the rows looked at: {shown}" if idle else ""
        return f"largest relative change {change:.1e}{unused}"

    def _architecture(self) -> str:
        inputs = move(self.prepared.train.collate(0, 1).inputs, self.prepared.device)
        return check_architecture(self.prepared.recipe, self.prepared.model, inputs)

    def _features(self) -> str:
        for view in self._views:
            self._features_of(view)
        notes = self.prepared.featuriser.features.notes
        return "; ".join(notes) if notes else "per-example gradients come from one backward pass a batch"

    def _features_of(self, view: str) -> None:
        featuriser, rows = self.prepared.featuriser, self._batch()
        last = len(rows.examples) - 1
        tangents = {row: torch.zeros(self.prepared.parameters.num_parameters) for row in (0, last // 2, last)}
        for slab in featuriser.slabs(rows.examples, rows.labels, view):
            stop = slab.offset + slab.gradients.shape[1]
            for row, features in tangents.items():
                if 0 <= row - slab.first_row < len(slab.gradients):
                    features[slab.offset : stop] = slab.gradients[row - slab.first_row].cpu()
        for row, features in tangents.items():
            if not torch.isfinite(features).all():
                raise _UnsoundError(f"row {row}: the tangent features hold NaN or an infinity")
            alone = take_rows(rows.inputs, row, row + 1)
            change = _relative(self._autograd(alone, rows.labels[row : row + 1], view, scaled=True), features)
            if change > GRADIENT_TOLERANCE:
                raise _UnsoundError(f"tangent features of row {row} are {change:.1%} off torch.autograd's")
        features = tangents[0]
        sketches = featuriser.sketch(rows.examples, rows.labels, view)
        if not torch.equal(sketches, featuriser.sketch(rows.examples, rows.labels, view)):
            raise _UnsoundError("the same batch gave different sketches the second time")
        if self.prepared.spec.family == "kronecker":
            sketch = make_sketch(
                self.prepared.spec, len(features), self.prepared.settings.num_threads, self.prepared.parameters
            )
            formed = torch.zeros(1, self.prepared.spec.dim)
            sketch.add(features[None], 0, formed)
            with featuriser.in_float32():
                change = _relative(formed[0], featuriser.sketch(rows.examples, rows.labels, view)[0])
            if change > GRADIENT_TOLERANCE:
                raise _UnsoundError(f"the kronecker sketch of row 0 is {change:.1%} off the sketch of its gradient")

    def _shorter_type(self) -> str:
        featuriser, rows, view = self.prepared.featuriser, self._batch(), self.prepared.views[0]
        short = featuriser.sketch(rows.examples, rows.labels, view)
        with featuriser.in_float32():
            full = featuriser.sketch(rows.examples, rows.labels, view)
        if not torch.isfinite(short).all():
            raise _UnsoundError(
                f"they hold NaN or an infinity: something in the model leaves the range of {featuriser.compute_dtype}; "
                "choose bfloat16, whose range is float32's, or float32"
            )
        change = _relative(full, short)
        if change > SHORT_TOLERANCE:
            raise _UnsoundError(f"they are {change:.1%} of their norm away: choose float32")
        return f"{change:.2%} of their norm away"

    def _autograd(self, inputs: object, labels: Tensor, view: str, *, scaled: bool = False) -> Tensor:
        # Gradient of row 0's measurement by plain autograd through the whole batch, float32 [P]
        prepared, device = self.prepared, torch.device(self.prepared.settings.device)

        def measured() -> Tensor:
            outputs = prepared.recipe.outputs(prepared.recipe.call(prepared.model, move(inputs, device)))  # type: ignore[arg-type]
            targets = prepared.measurement.targets(view, labels.to(device))
            return prepared.measurement.value(outputs[0], targets[0])

        try:
            found = plain_gradients(prepared.model, prepared.parameters, measured)
        except RuntimeError as error:
            if is_out_of_memory(error) or is_of_recipe(error):
                raise
            raise _UnsoundError(f"torch.autograd cannot differentiate the measurement: {said(error)}") from error
        self.reached.update(found)
        parts = []
        for entry in prepared.parameters:
            gradient = found.get(entry.name, torch.zeros(entry.shape))
            parts.append(gradient.flatten().float().cpu() * (entry.ntk_scale if scaled else 1.0))
        return torch.cat(parts)


class _UnsoundError(Exception):
    """A check failed; the message is its finding."""


_BATCH_MATES = (
    "An example must not see its batch-mates: put the model into eval mode (batch norm uses running statistics there), "
    "mask padding, and leave out normalisation over the batch"
)
_NO_GRADIENT = (
    "no gradient reaches the chosen parameters from any row that was looked at: the model runs under torch.no_grad() "
    "or torch.inference_mode(), detaches what it gives, checkpoints with use_reentrant=True, or --include, --exclude "
    "and --layers leave parameters only that take no part in the measurement"
)


def _raised(error: Exception) -> str:
    return str(error) if isinstance(error, RecipeError | ExampleError) else said(error)


def _relative(expected: Tensor, found: Tensor) -> float:
    return float((expected - found).norm() / expected.norm().clamp_min(1e-30))
