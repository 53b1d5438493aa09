"""Reads a recipe's data set row by row, so that whatever goes wrong names the row.

What was read is digested, so that a resumed build and a second reading provably see the same examples.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from typing import Any, Literal

import torch
from blake3 import blake3
from torch import Tensor

from indexer.batches import Batch, BatchError, map_tensors, num_rows
from indexer.recipe import UNLABELLED, Example, MapDataset, Recipe
from indexer.recipe_failure import said

Split = Literal["train", "query"]


class ExampleError(RuntimeError):
    """One example of a data set cannot be used; the message names its split and row.

    Attributes:
        split: ``"train"`` or ``"query"``.
        row: Its row.
    """

    def __init__(self, split: str, row: int, message: str) -> None:
        super().__init__(f"{split} row {row}: {message}")
        self.split = split
        self.row = row
        self.said = message

    def __reduce__(self) -> tuple[type[ExampleError], tuple[str, int, str]]:  # so that a worker process can send it
        return type(self), (self.split, self.row, self.said)


class UnstableDataError(RuntimeError):
    """A data set gave other examples when it was read again."""


@dataclass(frozen=True)
class CollatedRows:
    """Consecutive rows of a data set, as the model reads them.

    Attributes:
        start: First row.
        examples: The examples.
        inputs: The collated inputs.
        labels: Their labels, int64 [b], −1 for none.
    """

    start: int
    examples: Sequence[Example]
    inputs: Batch
    labels: Tensor


@dataclass(frozen=True)
class ReadOnce:
    """What one pass over a data set found.

    Attributes:
        labels: Labels of all rows, int64 [n].
        ids: External ids of all rows.
        block_digests: blake3 digest of each block of rows: inputs, labels and ids.
    """

    labels: Tensor
    ids: list[str]
    block_digests: list[str]

    @property
    def digest(self) -> str:
        """The digest of all rows in their order."""
        return blake3(json.dumps(self.block_digests).encode()).hexdigest()


class ExampleReader:
    """The first rows of one split of a recipe.

    Args:
        recipe: Says how to read examples.
        dataset: The split's data set.
        split: Its name.
        limit: How many rows are used; None means all.
        id_prefix: What every id begins with, before what the recipe gives.
    """

    def __init__(
        self, recipe: Recipe, dataset: MapDataset, split: Split, *, limit: int | None = None, id_prefix: str = ""
    ) -> None:
        self.recipe = recipe
        self.dataset = dataset
        self.split: Split = split
        self._id_prefix = id_prefix
        self.num_rows = len(dataset) if limit is None else min(limit, len(dataset))

    def example(self, row: int) -> Example:
        """Read one example.

        Args:
            row: Its row.

        Returns:
            The example.

        Raises:
            ExampleError: If the data set raises.
        """
        try:
            return self.dataset[row]
        except Exception as error:
            raise ExampleError(self.split, row, f"the data set raised {said(error)}") from error

    def collate(self, start: int, stop: int) -> CollatedRows:
        """Read and collate consecutive rows.

        Args:
            start: First row.
            stop: Row after the last.

        Returns:
            The rows.

        Raises:
            ExampleError: If a row cannot be read, collated, or has a label that is not an integer of −1 or more.
        """
        return self.collate_chosen(range(start, stop))

    def collate_chosen(self, rows: Sequence[int]) -> CollatedRows:
        """Read and collate any rows, as `collate` does consecutive ones.

        Args:
            rows: Their numbers, in the order they are to have.

        Returns:
            The rows.

        Raises:
            ExampleError: As `collate`.
        """
        examples = [self.example(row) for row in rows]
        try:
            inputs, labels = self._collate(examples)
        except Exception as error:
            for row, example in zip(rows, examples, strict=True):
                try:
                    self._collate([example])
                except Exception as alone:
                    raise ExampleError(
                        self.split, row, f"cannot be collated: {said(alone)}{_what_defaults_expect(example)}"
                    ) from alone
            named = f"{rows[0]} to {rows[-1]}" if isinstance(rows, range) else ", ".join(map(str, rows))
            message = f"rows {named} can be collated one by one, not together: {said(error)}"
            raise ExampleError(self.split, rows[0], message) from error
        wrong = (labels < UNLABELLED).nonzero()
        if wrong.numel():
            position = int(wrong[0])
            message = f"label {int(labels[position])}; a label is an integer from 0, or -1 for none"
            raise ExampleError(self.split, rows[position], message)
        return CollatedRows(rows[0] if len(rows) else 0, examples, inputs, labels)

    def _collate(self, examples: Sequence[Example]) -> tuple[Batch, Tensor]:
        inputs, labels = self.recipe.collate(examples)
        rows = num_rows(inputs)
        if rows != len(examples) or labels.shape != (rows,):
            raise BatchError(
                f"{len(examples)} examples were collated into {rows} rows of inputs and labels {list(labels.shape)}"
            )
        if labels.dtype != torch.int64:
            raise BatchError(f"labels are {labels.dtype}, must be torch.int64")
        return inputs, labels

    def id(self, example: Example, row: int) -> str:
        """Return the external id of a row.

        Args:
            example: The row's example.
            row: The row.

        Returns:
            The id.

        Raises:
            ExampleError: If the recipe raises or gives no text.
        """
        try:
            found = self.recipe.id(example, row, self.split)
        except Exception as error:
            raise ExampleError(self.split, row, f"id() raised {said(error)}") from error
        if not isinstance(found, str) or not found:
            raise ExampleError(self.split, row, f"id is {found!r}, must be text that is not empty")
        return self._id_prefix + found

    def metadata(self, example: Example, row: int) -> Mapping[str, Any]:
        """Return the metadata columns of a row; NaN, with which tables mark what is missing, is None.

        Args:
            example: The row's example.
            row: The row.

        Returns:
            The columns.

        Raises:
            ExampleError: If the recipe raises.
        """
        try:
            found = dict(self.recipe.metadata(example))
            return {name: None if isinstance(value, float) and isnan(value) else value for name, value in found.items()}
        except Exception as error:
            raise ExampleError(self.split, row, f"metadata() raised {said(error)}") from error

    def lengths(self, rows: CollatedRows) -> list[int] | None:
        """Return the length of each row, by which rows are put together into batches.

        Args:
            rows: The rows.

        Returns:
            The lengths; None if the recipe gives none.

        Raises:
            ExampleError: If the recipe raises, or a length is not a whole number from 0.
        """
        found: list[int] = []
        for row, example in enumerate(rows.examples, rows.start):
            try:
                length = self.recipe.length(example)
            except Exception as error:
                raise ExampleError(self.split, row, f"length() raised {said(error)}") from error
            if length is None and not found:
                return None
            if not isinstance(length, int) or isinstance(length, bool) or length < 0:
                raise ExampleError(self.split, row, f"length is {length!r}, must be a whole number from 0")
            found.append(length)
        return found

    def blocks(self, block_rows: int) -> Iterator[CollatedRows]:
        """Read all rows in blocks.

        Args:
            block_rows: Rows of a block; the last may have fewer.

        Yields:
            The blocks in order.
        """
        for start in range(0, self.num_rows, block_rows):
            yield self.collate(start, min(start + block_rows, self.num_rows))

    def block_digest(self, rows: CollatedRows) -> str:
        """Digest the inputs, labels and ids of a block.

        Args:
            rows: The block.

        Returns:
            64 hexadecimal digits.
        """
        hasher = blake3()

        def add(tensor: Tensor) -> Tensor:
            hasher.update(f"{tensor.dtype}{list(tensor.shape)}".encode())
            hasher.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
            return tensor

        if isinstance(rows.inputs, Mapping):
            hasher.update(json.dumps(list(rows.inputs)).encode())
        map_tensors(add, rows.inputs)
        add(rows.labels)
        ids = [self.id(example, row) for row, example in enumerate(rows.examples, rows.start)]
        hasher.update(json.dumps(ids).encode())
        return hasher.hexdigest()

    def read_once(self, block_rows: int, on_rows: Callable[[int], object] = int) -> ReadOnce:
        """Read every row once: labels, ids and digests.

        Args:
            block_rows: Rows of a block.
            on_rows: Told how many more rows were read.

        Returns:
            What was found.

        Raises:
            ExampleError: If two rows have the same id.
        """
        labels, ids, digests = [torch.empty(0, dtype=torch.int64)], [], []
        seen: dict[str, int] = {}
        for rows in self.blocks(block_rows):
            labels.append(rows.labels)
            digests.append(self.block_digest(rows))
            for row, example in enumerate(rows.examples, rows.start):
                name = self.id(example, row)
                if name in seen:
                    raise ExampleError(self.split, row, f"has the id {name!r} of row {seen[name]}; ids must be unique")
                seen[name] = row
                ids.append(name)
            on_rows(len(rows.examples))
        return ReadOnce(torch.cat(labels), ids, digests)


def _what_defaults_expect(example: Any) -> str:
    if isinstance(example, tuple | list):
        return ""
    return (
        f". The example is a {type(example).__name__}; by default one is a pair (inputs, label), and for others the "
        "recipe defines collate(examples) and label(example)"
    )
