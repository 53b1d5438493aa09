"""The queries sketched at build: a query by row is looked up here, never sketched again."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sketchstore.arrays import Array, map_npy, map_tensor
from sketchstore.errors import (
    MissingQuerySketchError,
    QueryTableError,
    RowCountError,
    UnknownRowError,
    UnknownViewError,
    listed,
)
from sketchstore.examples import ExampleTable
from sketchstore.first_use import PublishedFiles
from sketchstore.manifest import NO_LABEL, QUERY_REPRESENTATIONS, Queries, query_file


@dataclass(frozen=True)
class _StoredQueries:
    sketches: Array
    positions: dict[tuple[int, int], int]
    targets: dict[int, list[int]]


class QueryStore:
    """Sketches of the query set, float32 in true units, one per query row, view and target label.

    Args:
        files: The files of the index directory.
        queries: The manifest's entry.
        sketch_dim: d.
        has_representations: Whether the queries' penultimate features are stored.
    """

    def __init__(
        self, files: PublishedFiles, queries: Queries, sketch_dim: int, *, has_representations: bool = False
    ) -> None:
        self.count = queries.count
        self.has_representations = has_representations
        self.examples = ExampleTable(files, "queries/examples.parquet", queries.count, "query")
        self._files = files
        self._counts = queries.sketches
        self._sketch_dim = sketch_dim
        self._views: dict[str, _StoredQueries] = {}

    @property
    def views(self) -> list[str]:
        """Views with stored query sketches."""
        return list(self._counts)

    def arrays(self, view: str) -> tuple[Array, Array, Array]:
        """Everything stored for a view, memory-mapped.

        Args:
            view: The view.

        Returns:
            Sketches float32 [M, d] in true units, their query rows [M] and target labels [M].

        Raises:
            UnknownViewError: If no query sketches are stored for this view.
        """
        if view not in self._counts:
            raise UnknownViewError(f"no query sketches for view {view!r}; there are some for {listed(self._counts)}")
        file, count = query_file(view), self._counts[view]
        path = self._files.path(file)
        sketches = map_tensor(path, file, "sketches", dtype="<f4", shape=(count, self._sketch_dim))
        rows = map_tensor(path, file, "query_rows", dtype="<i8", shape=(count,))
        targets = map_tensor(path, file, "target_labels", dtype="<i8", shape=(count,))
        return sketches, rows, targets

    def representations(self) -> Array:
        """The queries' penultimate features, memory-mapped; only where ``has_representations``.

        Returns:
            float32 [count, k].

        Raises:
            RowCountError: If the file has another shape.
        """
        file = QUERY_REPRESENTATIONS
        values = map_npy(self._files.path(file), file, dtype="<f4")
        if values.ndim != 2 or values.shape[0] != self.count:
            raise RowCountError(file, f"has shape {list(values.shape)}, must be [{self.count}, k]")
        return values

    def damage(self, view: str) -> Iterator[QueryTableError]:
        """What is wrong with the rows and targets of a view's query sketches.

        Args:
            view: The view.

        Yields:
            One error for each kind of damage.
        """
        file = query_file(view)
        _, rows, targets = self.arrays(view)
        if rows.size and (rows.min() < 0 or rows.max() >= self.count):
            yield QueryTableError(file, f"names a query row outside 0 to {self.count - 1}")
        if targets.size and targets.min() < NO_LABEL:
            yield QueryTableError(file, f"names target label {int(targets.min())}")
        if len(set(zip(rows.tolist(), targets.tolist(), strict=True))) != rows.size:
            yield QueryTableError(file, "names a query row and target twice")

    def _stored(self, view: str) -> _StoredQueries:
        if view not in self._views:
            for error in self.damage(view):
                raise error
            sketches, rows, labels = self.arrays(view)
            pairs = list(zip(rows.tolist(), labels.tolist(), strict=True))
            targets: dict[int, list[int]] = {}
            for row, label in pairs:
                targets.setdefault(row, []).append(label)
            self._views[view] = _StoredQueries(sketches, {pair: i for i, pair in enumerate(pairs)}, targets)
        return self._views[view]

    def targets(self, row: int, view: str) -> list[int]:
        """Target labels that a query row has sketches for.

        Args:
            row: The query row.
            view: The view.

        Returns:
            Labels in stored order; −1 stands for a measurement without a target.

        Raises:
            UnknownRowError: If there is no such query row.
        """
        if not 0 <= row < self.count:
            raise UnknownRowError(f"query row {row} does not exist; the query rows are 0 to {self.count - 1}")
        return list(self._stored(view).targets.get(row, []))

    def sketch(self, row: int, view: str, target_label: int = NO_LABEL) -> Tensor:
        """The sketch of one query.

        Args:
            row: The query row.
            view: The view.
            target_label: The label whose measurement was sketched; −1 for a measurement without a target.

        Returns:
            float64 [d] in true units.

        Raises:
            MissingQuerySketchError: If it was not stored; it names the targets that are.
        """
        stored = self.targets(row, view)
        if target_label not in stored:
            raise MissingQuerySketchError(
                f"query row {row} has no sketch for target label {target_label} in view {view!r}; stored are "
                f"{listed(stored)}. Ask for one of these, or send the query as an example."
            )
        entry = self._stored(view)
        return torch.tensor(entry.sketches[entry.positions[row, target_label]], dtype=torch.float64)

    def label(self, row: int) -> int:
        """The true label of a query row.

        Args:
            row: The query row.

        Returns:
            The label; −1 for none.
        """
        return self.examples.label(row)

    def predicted_label(self, row: int) -> int | None:
        """The label the model gives to a query row.

        Args:
            row: The query row.

        Returns:
            The label, or None where none was stored.
        """
        return self.examples.predicted_label(row)
