"""Computes blocks of rows: reads them, cuts them into batches, and gives their sketches and per-row columns.

The build's own process and its worker processes all compute with this class, so that it does not matter which of them
a block falls to.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import numpy.typing as npt
import torch
from torch import Tensor

from indexer.batch_rows import batches_of
from indexer.batches import Batch, move, pad_rows, take_rows
from indexer.featurise import SketchedBatch
from indexer.jacobians import PROBE_ROWS, JacobianError
from indexer.out_of_memory import BlockMemoryError, halving
from indexer.preparation import Prepared
from indexer.reading import CollatedRows, ExampleError, ExampleReader, UnstableDataError
from indexer.representation_place import is_same, module_that_reads
from indexer.rows_alone import REPRESENTATION_ROUNDING, Changed, compare_alone, looked_at
from sketchstore.plan import Block

Columns = dict[str, npt.NDArray[Any]]


@dataclass
class ComputedBlock:
    """What the index stores of a block.

    Attributes:
        sketches: float32 [rows, d] by view.
        columns: Per-row values by column name.
        at_once: Rows that went through model and sketch together: the plan's number, or less where memory ran out.
    """

    sketches: dict[str, Tensor]
    columns: Columns
    at_once: int


def prediction_columns(outputs: Tensor, labels: Tensor | None) -> Columns:
    """What a classifier's outputs say of its rows.

    Args:
        outputs: Logits [b, C].
        labels: The label of each row, [b]; None where not all of them are outputs.

    Returns:
        ``predicted_labels``, and with labels ``one_minus_p``: 1 − p of the row's own label, exact for small values.
    """
    columns: Columns = {"predicted_labels": outputs.argmax(1).numpy()}
    if labels is not None:
        log_p = outputs.double().log_softmax(1).gather(1, labels[:, None]).squeeze(1)
        columns["one_minus_p"] = -torch.expm1(log_p).numpy()
    return columns


def _in_order(parts: list[tuple[Tensor, Tensor | None]]) -> Tensor | None:
    # Values of batches at the positions of their rows; a padded batch has more values than rows.
    if any(values is None for _, values in parts):
        return None
    count = sum(len(positions) for positions, _ in parts)
    whole: Tensor | None = None
    for positions, values in parts:
        assert values is not None
        whole = torch.empty(count, *values.shape[1:]) if whole is None else whole
        whole[positions] = values[: len(positions)]
    return whole


@dataclass
class BlockSketcher:
    """Sketches rows of one prepared recipe.

    Attributes:
        prepared: The recipe and the choices.
        note: Told what is worth knowing once.
    """

    prepared: Prepared
    note: Callable[[str], None] = field(repr=False)
    _looked: bool = field(default=False, init=False, repr=False)

    def block(self, block: Block, digest: str, labels_are_outputs: bool) -> ComputedBlock:
        """Compute one block of the training set.

        Args:
            block: The block.
            digest: Digest of its rows when they were first read.
            labels_are_outputs: Whether every training label is one of the model's outputs.

        Returns:
            Its sketches and columns.
        """
        reader = self.prepared.train
        rows = reader.collate(block.start, block.stop)
        self.check_unchanged(reader, rows, digest)
        if not self._looked:
            self._watch_representation()
            self._looked = True
        fitted, outputs, features = self.prepared.compute_rows, None, None
        sketches: dict[str, Tensor] = {}
        given_agrees = True
        for view in self.prepared.views:
            found, at_once = self._sketched(reader, rows, rows.labels, view, pad=True)
            agrees = self._given_agrees(reader, rows, rows.labels, view, found, at_once)
            given_agrees = agrees if not sketches else given_agrees  # of the view whose values are taken
            sketches[view], fitted = found.sketches, min(fitted, at_once)
            outputs = found.outputs if outputs is None else outputs
            features = found.given if features is None and given_agrees else features
        if outputs is None:
            outputs, at_once = self._fit(rows, lambda at_once: self._outputs(reader, rows, at_once))
            fitted = min(fitted, at_once)
        if features is None:
            features, at_once = self._fit(rows, lambda at_once: self._representations(reader, rows, at_once))
            fitted = min(fitted, at_once)
        self._check_finite(reader, rows, outputs)
        columns: Columns = {}
        if self.prepared.classifies:
            columns |= prediction_columns(outputs, rows.labels if labels_are_outputs else None)
        if features is not None:
            columns["representations"] = features.numpy()
        return ComputedBlock(sketches, columns, fitted)

    def check_unchanged(self, reader: ExampleReader, rows: CollatedRows, digest: str) -> None:
        """Refuse rows that are not what they were when the data set was first read.

        Args:
            reader: Where they were read.
            rows: The rows.
            digest: Their digest then.

        Raises:
            UnstableDataError: If they differ.
        """
        if reader.block_digest(rows) != digest:
            last = rows.start + len(rows.examples) - 1
            raise UnstableDataError(
                f"{reader.split} rows {rows.start} to {last} were read twice and differ: the stored example "
                "is what is sketched, so the data set must give the same one every time. Switch augmentation off"
            )

    def sketch(
        self,
        reader: ExampleReader,
        rows: CollatedRows,
        targets: Tensor,
        view: str,
        *,
        pad: bool = True,
        compare: bool = False,
    ) -> tuple[Tensor, int]:
        """Sketch rows, in parts where memory runs out.

        Args:
            reader: Where they were read.
            rows: The rows.
            targets: Labels at which to measure them, shape [b].
            view: The view.
            pad: Whether a short batch goes through products of the same sizes as a full one.
            compare: Whether some of the rows are compared with themselves alone.

        Returns:
            float32 [b, d] on the CPU, and how many rows went together.

        Raises:
            ExampleError: If one of them cannot be sketched; it names the row.
            BlockMemoryError: If one row alone does not fit into memory.
        """
        found, fitted = self._sketched(reader, rows, targets, view, pad=pad)
        if compare:
            self._given_agrees(reader, rows, targets, view, found, fitted)
        return found.sketches, fitted

    def _sketched(
        self, reader: ExampleReader, rows: CollatedRows, targets: Tensor, view: str, *, pad: bool
    ) -> tuple[SketchedBatch, int]:
        # All rows as if they had been one batch, and how many went together.
        featuriser = self.prepared.featuriser

        def compute(at_once: int) -> SketchedBatch:
            parts = []
            for positions, inputs, _ in self._batches(reader, rows, at_once):
                some = targets[positions]
                if pad:
                    inputs, some = pad_rows(inputs, at_once), cast(Tensor, pad_rows(some, at_once))
                parts.append((positions, featuriser.sketch_and_keep(inputs, some, view)))
            sketches = _in_order([(positions, part.sketches) for positions, part in parts])
            assert sketches is not None
            return SketchedBatch(
                sketches,
                _in_order([(positions, part.outputs) for positions, part in parts]),
                _in_order([(positions, part.given) for positions, part in parts]),
            )

        try:
            found: tuple[SketchedBatch, int] = self._fit(rows, compute)
            return found
        except BlockMemoryError:
            raise
        except (JacobianError, RuntimeError):
            self._blame(reader, rows, targets, view)
            raise

    def _watch_representation(self) -> None:
        # Where a module reads the representation in every pass, it comes with the sketches. The rows go through in two
        # orders: a model that sorts its batch, and puts it back at the end, leaves one of them as it was.
        prepared, last = self.prepared, self.prepared.train.num_rows - 1
        if prepared.featuriser.compute_dtype != "float32":
            return  # representations are of float32 passes
        spread = list(dict.fromkeys(last * part // (PROBE_ROWS - 1) for part in range(PROBE_ROWS)))
        found = []
        for rows in (spread, spread[::-1]):
            inputs = move(prepared.train.collate_chosen(rows).inputs, prepared.device)
            try:
                with torch.no_grad():
                    features = prepared.recipe.representation(prepared.model, inputs)
                if features is None:
                    return
                forward = partial(prepared.recipe.call, prepared.model, inputs)
                found.append(module_that_reads(prepared.model, features, forward))
            except (MemoryError, RuntimeError):
                return  # what is wrong with a row is said where it is sketched, with its number
        if found[0] is not None and found[0] is found[1]:
            prepared.featuriser.watch(found[0])

    def _given_agrees(
        self,
        reader: ExampleReader,
        rows: CollatedRows,
        targets: Tensor,
        view: str,
        found: SketchedBatch,
        at_once: int,
    ) -> bool:
        # Refuses rows that depend on their batch; says whether what the watched module was given does.
        recipe, compute_dtype = self.prepared.recipe, self.prepared.featuriser.compute_dtype
        compared = compare_alone(
            self.prepared.featuriser,
            found,
            targets,
            view,
            batches_of(len(rows.examples), at_once, reader.lengths(rows)),
            lambda row: recipe.collate([rows.examples[row]])[0],
            rows.start,
        )
        if (changed := compared.changed) is not None:
            raise ExampleError(reader.split, rows.start + changed.row, _said_of(changed, _short(compute_dtype)))
        return compared.given_agrees

    def _blame(self, reader: ExampleReader, rows: CollatedRows, targets: Tensor, view: str) -> None:
        # Rows that cannot be sketched together: an error for the outputs that are the reason, else for the first row
        # that cannot be sketched alone, if there is one.
        try:
            self._outputs(reader, rows, self.prepared.compute_rows)
        except ExampleError:
            raise
        except RuntimeError:
            pass
        for position, example in enumerate(rows.examples):
            try:
                self.prepared.featuriser.sketch([example], targets[position : position + 1], view)
            except (JacobianError, RuntimeError) as alone:
                raise ExampleError(reader.split, rows.start + position, str(alone)) from alone

    def outputs(self, reader: ExampleReader, rows: CollatedRows) -> Tensor:
        """The model's outputs for rows.

        Args:
            reader: Where they were read.
            rows: The rows.

        Returns:
            Logits [b, C], or a scalar per example [b]; float32 on the CPU.
        """
        outputs: Tensor = self._fit(rows, lambda at_once: self._outputs(reader, rows, at_once))[0]
        return outputs

    def representations(self, reader: ExampleReader, rows: CollatedRows) -> Tensor | None:
        """The penultimate features of rows.

        Args:
            reader: Where they were read.
            rows: The rows.

        Returns:
            float32 [b, k] on the CPU; None where the recipe has none.
        """
        features: Tensor | None = self._fit(rows, lambda at_once: self._representations(reader, rows, at_once))[0]
        return features

    def _fit(self, rows: CollatedRows, compute: Callable[[int], Any]) -> tuple[Any, int]:
        what = f"rows {rows.start} to {rows.start + len(rows.examples) - 1}"
        return halving(compute, self.prepared.compute_rows, what, self.note)

    def _batches(self, reader: ExampleReader, rows: CollatedRows, at_once: int) -> list[tuple[Tensor, Batch, Tensor]]:
        lengths = reader.lengths(rows)
        batches = []
        for places in batches_of(len(rows.examples), at_once, lengths):
            positions = torch.tensor(places)
            if lengths is None:
                start, stop = places[0], places[-1] + 1
                batches.append((positions, take_rows(rows.inputs, start, stop), rows.labels[start:stop]))
            else:  # collated by themselves, so that they are padded to the longest of them and no further
                batches.append((positions, *self.prepared.recipe.collate([rows.examples[i] for i in places])))
        return batches

    def _representations(self, reader: ExampleReader, rows: CollatedRows, at_once: int) -> Tensor | None:
        prepared = self.prepared
        features: Tensor | None = None
        for positions, inputs, _ in self._batches(reader, rows, at_once):
            with torch.no_grad():
                part = prepared.recipe.representation(prepared.model, move(inputs, prepared.device))
            if part is None:
                break
            if part.ndim != 2 or part.shape[0] != len(positions):
                raise ExampleError(
                    reader.split, rows.start, f"representation() gave shape {list(part.shape)}, not [b, h]"
                )
            if features is None:
                features = torch.empty(len(rows.labels), part.shape[1])
            features[positions] = part.float().cpu()
            self._check_representation(reader, rows, positions, part)
        return features

    def _check_representation(
        self, reader: ExampleReader, rows: CollatedRows, positions: Tensor, features: Tensor
    ) -> None:
        # The model may mask padding where representation() does not.
        for place in looked_at(len(positions), f"{rows.start} {int(positions[0])}"):
            row = int(positions[place])
            inputs = move(self.prepared.recipe.collate([rows.examples[row]])[0], self.prepared.device)
            with torch.no_grad():
                alone = self.prepared.recipe.representation(self.prepared.model, inputs)
            here = features[place : place + 1].float()
            if alone is None or (here.any() and not is_same(alone.float(), here, REPRESENTATION_ROUNDING)):
                raise ExampleError(
                    reader.split,
                    rows.start + row,
                    "representation() gives it other features in a batch than alone: they depend on the rows beside it "
                    "(padding that is not masked, say). RepSim compares them; mend representation(), or leave it out",
                )

    def _outputs(self, reader: ExampleReader, rows: CollatedRows, at_once: int) -> Tensor:
        found: Tensor | None = None
        for positions, inputs, _ in self._batches(reader, rows, at_once):
            part = self.prepared.featuriser.outputs_batch(inputs)
            if part.shape[0] != len(positions):
                raise ExampleError(
                    reader.split, rows.start, f"{len(positions)} examples have {part.shape[0]} rows of outputs"
                )
            if found is None:
                found = torch.empty(len(rows.examples), *part.shape[1:])
            found[positions] = part
        assert found is not None
        self._check_finite(reader, rows, found)
        return found

    def _check_finite(self, reader: ExampleReader, rows: CollatedRows, outputs: Tensor) -> None:
        bad = (~torch.isfinite(outputs.flatten(1) if outputs.ndim > 1 else outputs[:, None]).all(1)).nonzero()
        if bad.numel():
            raise ExampleError(reader.split, rows.start + int(bad[0]), "the model's outputs hold NaN or an infinity")


def _said_of(changed: Changed, short: str) -> str:
    away = f"{changed.change:.0%} of its norm away from"
    if changed.by_itself:
        return (
            f"its sketch is {away} the one that plain autograd gives of the row alone, in a batch of its own too: the "
            "model uses a parameter where neither hooks nor torch.func see it (in code of your own, or a view that was "
            f"made before the forward pass{short}). Mend the model, or leave out the parameter with --exclude"
        )
    return (
        f"its sketch in a batch of {changed.beside} rows is {away} that of the row alone: what the model makes of a "
        "row depends on the rows beside it (padding that is not masked, a batch that is put in another order or cut "
        f"up, a capacity that rows share{short}). Mend the model or collate(); `indexer check` says more, and "
        "--batch-rows 1 sketches every row alone"
    )


def _short(compute_dtype: str) -> str:
    # A router that chooses an expert may choose another one where a short type rounds a row otherwise.
    return (
        "" if compute_dtype == "float32" else f"; or a choice that turns on how {compute_dtype} rounds: float32 tells"
    )
