"""Examples in, sketches out: the one function that sketches training rows at build and queries in the service.

A query is comparable with an index only if it went through the same model, parameters, measurement and sketch; the
featuriser holds all four, so that nothing can be mixed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from indexer.batches import Batch, move, num_rows, pad_rows, take_rows
from indexer.jacobians import MEMORY_BUDGET_BYTES, FactoredSlab, JacobianError, Slab, TangentFeatures
from indexer.measurement import Measurement, MeasurementError, make_measurement
from indexer.parameters import ParameterList, ParameterSelectionError
from indexer.precision import ComputeDtype, Precision
from indexer.sketches import KroneckerSketch, SketchSpec, SketchSpecError, make_sketch, sketch_spec
from indexer.sketches.kronecker_pass import KroneckerPass
from indexer.sketches.sjlt import SjltSketch
from indexer.training import state_digest
from sketchstore.errors import IncompatibleSketchError
from sketchstore.manifest import Manifest

COMPUTE_ROWS = 1024
"""Rows that go through the model and the sketch together where nobody says otherwise."""


class RecipeCalls(Protocol):
    """What the featuriser needs of a recipe."""

    def call(self, model: nn.Module, inputs: Any) -> Any:
        """Run the model on collated inputs."""
        ...

    def outputs(self, model_output: Any) -> Tensor:
        """Logits [b, C], or a scalar per example [b], of what ``call`` gave."""
        ...

    def collate(self, examples: Sequence[Any]) -> tuple[Any, Tensor]:
        """Inputs and labels [b] of some examples."""
        ...


@dataclass
class SketchSeconds:
    """Where the time went, summed over calls.

    Attributes:
        rows: Rows sketched, each view counted.
        gradient_seconds: Time in forward and backward passes and in forming gradients.
        sketch_seconds: Time in the sketch, its random numbers included.
    """

    rows: int = 0
    gradient_seconds: float = 0.0
    sketch_seconds: float = 0.0

    @property
    def sketch_share(self) -> float:
        """Part of the time that the sketch took, 0 before the first row."""
        total = self.gradient_seconds + self.sketch_seconds
        return self.sketch_seconds / total if total else 0.0


@dataclass(frozen=True)
class SketchedBatch:
    """What the passes of a batch gave, all of it float32 on the CPU.

    Attributes:
        sketches: [b, d].
        outputs: The model's outputs, [b, C] or [b], as `Featuriser.outputs_batch` gives them up to rounding; None where
            gradients come from vmap alone, which runs no plain forward pass.
        given: What the module of `Featuriser.watch` was given, [b, …]; None there too, and where none is watched.
    """

    sketches: Tensor
    outputs: Tensor | None
    given: Tensor | None


class Featuriser:
    """Sketches of examples under one model, parameter list, measurement and sketch. Calls from threads take turns.

    Attributes:
        features: The tangent features.
        spec: The sketch's spec.
        seconds: Where the time went so far.
        compute_rows: Most rows that are computed together.
        model: The model.
        device: Where it computes.
    """

    def __init__(
        self,
        recipe: RecipeCalls,
        model: nn.Module,
        spec: SketchSpec,
        measurement: Measurement,
        parameters: ParameterList,
        *,
        device: str | torch.device = "cpu",
        compute_rows: int = COMPUTE_ROWS,
        num_threads: int | None = None,
        memory_budget_bytes: int = MEMORY_BUDGET_BYTES,
        compute_dtype: ComputeDtype = "float32",
    ) -> None:
        """Tie a recipe's model to a sketch.

        Args:
            recipe: Says how to collate examples and call the model.
            model: The trained model in eval mode; moved to ``device``.
            spec: Family, dimension, seed.
            measurement: The scalar to differentiate.
            parameters: The coordinates of the tangent features.
            device: Where to compute.
            compute_rows: Most rows that are computed together.
            num_threads: Threads of the sketch's kernels; None takes torch's number.
            memory_budget_bytes: What gradients and kept activations may take.
            compute_dtype: Type of the model's passes and of what the sketch multiplies; sums are always float32.

        Raises:
            JacobianError: If the model is in train mode.
        """
        if any(module.training for module in model.modules()):
            raise JacobianError(
                "the model is in train mode, where dropout and batch statistics make gradients depend on chance and "
                "on the rest of the batch; call model.eval() in the recipe's model()."
            )
        self.spec = spec
        self.seconds = SketchSeconds()
        self._recipe = recipe
        self.device = torch.device(device)
        self.compute_rows = compute_rows
        self.model = model
        self._lock = threading.Lock()
        self._precision = Precision(compute_dtype, self.device.type)
        self.features = TangentFeatures(
            model.to(self.device),
            parameters,
            measurement,
            self._precision.call(recipe.call),
            recipe.outputs,
            memory_budget_bytes=memory_budget_bytes,
            # Where random numbers are cheap, what counts on a CPU is that gradients do not leave its cache.
            many_rows=spec.family in ("rademacher", "gaussian") or self.device.type != "cpu",
        )
        self._sketch = make_sketch(spec, parameters.num_parameters, num_threads, parameters, compute_dtype)

    @classmethod
    def from_manifest(
        cls,
        manifest: Manifest,
        recipe: RecipeCalls,
        model: nn.Module,
        *,
        device: str | torch.device = "cpu",
        num_threads: int | None = None,
        memory_budget_bytes: int = MEMORY_BUDGET_BYTES,
    ) -> Featuriser:
        """The featuriser that built an index, to sketch queries that compare with its rows.

        Args:
            manifest: The index's manifest.
            recipe: The recipe it was built with.
            model: The recipe's model with the index's weights, in eval mode.
            device: Where to compute.
            num_threads: Threads of the sketch's kernels; None takes torch's number.
            memory_budget_bytes: What gradients and kept activations may take.

        Returns:
            The featuriser.

        Raises:
            IncompatibleSketchError: If parameters, weights, measurement or sketch are not those of the index.
        """
        sketch = manifest.sketch
        own = getattr(recipe, "measurement", None) if manifest.measurement.name == "custom" else None
        classes = [int(view) for view in manifest.views] if manifest.measurement.name == "class_logit" else None
        try:
            parameters = ParameterList.of_sketch(sketch)
            parameters.check_model(model)
            measurement = make_measurement(manifest.measurement.name, classes=classes, function=own)
            options = cast(Mapping[str, Any], sketch.options)
            spec = sketch_spec(sketch.family, sketch.dim, parameters.num_parameters, sketch.seed, options)
        except (ParameterSelectionError, MeasurementError, SketchSpecError) as error:
            raise IncompatibleSketchError(f"index {manifest.name!r} does not fit this recipe: {error}") from error
        weights = state_digest(model.state_dict())
        if manifest.digests.weights not in (None, weights):
            raise IncompatibleSketchError(
                f"index {manifest.name!r} was sketched at weights with digest {manifest.digests.weights}, the model "
                f"has {weights}; sketches taken at different weights mean nothing to each other. Load the index's "
                "model.safetensors into the recipe's architecture, or rebuild the index."
            )
        return cls(
            recipe,
            model,
            spec,
            measurement,
            parameters,
            device=device,
            compute_rows=manifest.build.compute_rows,
            num_threads=num_threads,
            memory_budget_bytes=memory_budget_bytes,
            compute_dtype=cast(ComputeDtype, manifest.build.options.get("compute_dtype", "float32")),
        )

    @property
    def compute_dtype(self) -> ComputeDtype:
        """Type of the model's passes and of what the sketch multiplies."""
        return self._precision.dtype

    @contextmanager
    def in_float32(self) -> Iterator[None]:
        """Compute in float32 within the block, to see what a shorter type does.

        Yields:
            Nothing.
        """
        with self._precision.full():
            yield

    def probe(self, inputs: Batch, targets: Tensor, view: str) -> None:
        """Find out, in float32, which routes the gradients of this model take.

        Which rows are asked decides how many go through a backward pass together, so every process of a build asks
        the same ones before its first row.

        Args:
            inputs: A batch of few examples, unlike each other (`jacobians.PROBE_ROWS`).
            targets: Labels that the measurement can be taken at, shape [b].
            view: One of the measurement's views.
        """
        inputs, targets = move(inputs, self.device), targets.to(self.device)
        with self._lock:
            with self._precision.full():
                next(self.features.slabs(inputs, targets, view), None)
            if self.compute_dtype != "float32":
                self.features.probe_type(inputs, targets, view)

    @property
    def parameters(self) -> ParameterList:
        """The coordinates of the tangent features."""
        return self.features.parameters

    @property
    def measurement(self) -> Measurement:
        """The scalar that is differentiated."""
        return self.features.measurement

    @property
    def sketch_ranges(self) -> list[list[tuple[int, int]]]:
        """Coordinates of the parts that the sketch treats apart; empty where it treats all alike."""
        return self._sketch.ranges() if isinstance(self._sketch, KroneckerSketch) else []

    def sketch(
        self, examples: Sequence[Any], targets: Tensor | None = None, view: str = "own", *, pad: bool = False
    ) -> Tensor:
        """Sketch examples: φ(x) = R g(x).

        Args:
            examples: Items of the recipe's data sets.
            targets: Labels at which to measure them, shape [b]; None takes the examples' own.
            view: One of the measurement's views; a class view measures every row at its class, whatever the targets.
            pad: Whether to repeat the last example up to ``compute_rows``, so that a short last block of a build goes
                through the same sizes of products as a full one.

        Returns:
            float32 [b, d] on the CPU.
        """
        inputs, labels = self._recipe.collate(examples)
        return self.sketch_batch(inputs, labels if targets is None else targets, view, pad=pad)

    def sketch_batch(self, inputs: Batch, labels: Tensor, view: str = "own", *, pad: bool = False) -> Tensor:
        """Sketch a collated batch; see `sketch`.

        Args:
            inputs: A batch of b examples.
            labels: Labels at which to measure them, shape [b].
            view: One of the measurement's views.
            pad: Whether to repeat the last row up to ``compute_rows``.

        Returns:
            float32 [b, d] on the CPU.

        Raises:
            JacobianError: If a gradient is not finite.
        """
        return self.sketch_and_keep(inputs, labels, view, pad=pad).sketches

    def watch(self, module: nn.Module) -> None:
        """Keep what a module of the model is given in the passes of a batch (`SketchedBatch.given`).

        Args:
            module: The module, called once in a forward pass.
        """
        self.features.watch(module)

    def sketch_and_keep(self, inputs: Batch, labels: Tensor, view: str = "own", *, pad: bool = False) -> SketchedBatch:
        """Sketch a collated batch, and keep what its forward passes gave; see `sketch_batch`.

        Args:
            inputs: A batch of b examples.
            labels: Labels at which to measure them, shape [b].
            view: One of the measurement's views.
            pad: Whether to repeat the last row up to ``compute_rows``.

        Returns:
            The sketches and what came with them.

        Raises:
            JacobianError: If a gradient is not finite.
        """
        rows = num_rows(inputs)
        parts: list[Tensor] = []
        outputs: list[Tensor] = []
        given: list[Tensor] = []
        for start in range(0, rows, self.compute_rows):
            stop = min(start + self.compute_rows, rows)
            part, part_labels = take_rows(inputs, start, stop), labels[start:stop]
            if pad:
                part = pad_rows(part, self.compute_rows)
                part_labels = cast(Tensor, pad_rows(part_labels, self.compute_rows))
            with self._lock:
                parts.append(self._sketch_together(part, part_labels, view)[: stop - start])
                for kept, last in ((outputs, self.features.last_outputs), (given, self.features.last_given)):
                    if last is not None:
                        kept.append(last[: stop - start].float().cpu())
            self.seconds.rows += stop - start
        sketches = parts[0] if len(parts) == 1 else torch.cat([torch.empty(0, self.spec.dim), *parts])
        bad = _first_not_finite(sketches)
        if bad is not None:
            raise JacobianError(
                f"the tangent features of row {bad} of the batch are not finite; the model overflows there."
            )
        whole = [torch.cat(kept) if kept and len(kept) == len(parts) else None for kept in (outputs, given)]
        return SketchedBatch(sketches, *whole)

    def outputs(self, examples: Sequence[Any]) -> Tensor:
        """The model's outputs for examples.

        Args:
            examples: Items of the recipe's data sets.

        Returns:
            Logits [b, C], or a scalar per example [b]; float32 on the CPU.
        """
        inputs, _ = self._recipe.collate(examples)
        return self.outputs_batch(inputs)

    def outputs_batch(self, inputs: Batch) -> Tensor:
        """The model's outputs for a collated batch.

        Args:
            inputs: A batch of b examples.

        Returns:
            Logits [b, C], or a scalar per example [b]; float32 on the CPU.
        """
        with self._lock:
            return self.features.outputs(move(inputs, self.device)).float().cpu()

    def slabs(self, examples: Sequence[Any], targets: Tensor | None = None, view: str = "own") -> Iterator[Slab]:
        """Unsketched tangent features in float32, every slab with all rows: for exact kernels of a few hundred rows.

        No more rows go through the model together than where they are sketched.

        Args:
            examples: Items of the recipe's data sets.
            targets: Labels at which to measure them, shape [b]; None takes the examples' own.
            view: One of the measurement's views.

        Yields:
            Slabs with float32 gradients [b, p].
        """
        inputs, labels = self._recipe.collate(examples)
        labels = labels if targets is None else targets
        with self._lock, self._precision.full():
            yield from self.features.slabs(
                move(inputs, self.device), labels.to(self.device), view, all_rows=True, most_rows=self.compute_rows
            )

    def _sketch_together(self, inputs: Batch, labels: Tensor, view: str) -> Tensor:
        inputs, labels = move(inputs, self.device), labels.to(self.device)
        self.features.settle(inputs, labels, view)
        while True:
            served = self.features.hooked_parameters
            out = self._sketched_once(inputs, labels, view)
            # A parameter that left the hooks amid the batch may be in some of its rows already, or in a part's sum.
            if self.features.hooked_parameters == served:
                return out.cpu()

    def _sketched_once(self, inputs: Batch, labels: Tensor, view: str) -> Tensor:
        out = torch.zeros(num_rows(inputs), self.spec.dim, device=self.device)
        begun = self._now()
        slabs: Iterator[Slab | FactoredSlab]
        if isinstance(self._sketch, KroneckerSketch):
            sketch = self._sketch
            slabs = self.features.pass_layers(
                inputs, labels, view, lambda start, stop: KroneckerPass(sketch, out[start:stop])
            )
        elif isinstance(self._sketch, SjltSketch) and self.device.type == "cpu" and self.compute_dtype == "float32":
            slabs = self.features.factored_slabs(inputs, labels, view)
        else:
            slabs = self.features.slabs(inputs, labels, view)
        for slab in slabs:
            formed = self._now()
            if isinstance(slab, FactoredSlab):
                assert isinstance(self._sketch, SjltSketch)
                rows = slice(slab.first_row, slab.first_row + slab.factors.left.shape[0])
                self._sketch.add_factored(slab.factors, slab.offset, out[rows])
            else:
                rows = slice(slab.first_row, slab.first_row + slab.gradients.shape[0])
                self._sketch.add(self._precision.rounded(slab.gradients), slab.offset, out[rows])
            done = self._now()
            self.seconds.gradient_seconds += formed - begun
            self.seconds.sketch_seconds += done - formed
            begun = done
        # A kronecker sketch grows within the passes; they count as gradients altogether.
        self.seconds.gradient_seconds += self._now() - begun
        return out

    def sketch_plainly(self, inputs: Batch, labels: Tensor, view: str = "own") -> SketchedBatch:
        """Sketch one row by plain autograd and its whole gradient: what the faster ways must agree with.

        Args:
            inputs: A batch of one example.
            labels: Its label, shape [1].
            view: One of the measurement's views.

        Returns:
            Its sketch, and what came with it.
        """
        inputs, labels = move(inputs, self.device), labels.to(self.device)
        with self._lock:
            found = self.features.plain_gradients(inputs, labels, view)
            out = torch.zeros(1, self.spec.dim, device=self.device)
            for place in self.parameters:
                if place.name in found:
                    gradient = found[place.name].reshape(1, -1).float() * place.ntk_scale
                    self._sketch.add(self._precision.rounded(gradient), place.offset, out)
            kept = [
                None if last is None else last.float().cpu()
                for last in (self.features.last_outputs, self.features.last_given)
            ]
        return SketchedBatch(out.cpu(), *kept)

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def _first_not_finite(sketches: Tensor) -> int | None:
    # One NaN or infinity makes its row's sum one, so a single read clears nearly every batch. A sum of finite numbers
    # can overflow as well: such a row is looked at number by number.
    suspects = (~torch.isfinite(sketches.sum(dim=1))).nonzero().squeeze(1)
    bad = suspects[~torch.isfinite(sketches[suspects]).all(dim=1)]
    return int(bad[0]) if bad.numel() else None
