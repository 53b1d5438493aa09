"""One view of an index: its sketches in true units, read through memory maps, and the rows that may be compared."""

from collections.abc import Iterator
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sketchstore.arrays import Array, map_npy, map_tensor, widened
from sketchstore.errors import UnknownLabelError, UnknownRowError, listed
from sketchstore.first_use import PublishedFiles
from sketchstore.manifest import Comparable, Manifest, column_file

BLOCK_BYTES = 8 << 20


def partition_name(label: int | None) -> str:
    """Name of a partition in derived/.

    Args:
        label: The label, or None for all rows.

    Returns:
        ``label-3`` or ``all``.
    """
    return "all" if label is None else f"label-{label}"


class View:
    """The sketches of one view.

    A sketch in measurement units is the stored value times ``scale``, a power of two, so the product is exact in
    float32 and float64. Nothing is read at construction but the per-row norms and labels it is given.

    Args:
        files: The files of the index directory.
        manifest: Its manifest.
        name: The view.
        labels: Label of every row, int64.

    Attributes:
        num_rows: Rows that are left; where some were removed, the shards hold more.
        shard_starts: First place of every shard, and the number of places, int64 [shards + 1].
    """

    def __init__(self, files: PublishedFiles, manifest: Manifest, name: str, labels: Tensor) -> None:
        entry = manifest.views[name]
        self.name = name
        self.num_rows = manifest.num_rows
        self.sketch_dim = manifest.sketch_dim
        self.comparable: Comparable = entry.comparable
        self.scale = 2.0**entry.scale_exponent
        self.storage_dtype: np.dtype[np.floating] = np.dtype(manifest.dtype)
        self._files = files
        self._entry = entry
        self._labels = labels
        self._kept = manifest.kept
        self.shard_starts = np.cumsum([0, *(shard.rows for shard in entry.shards)])
        self._shards: dict[int, Array] = {}
        self._partitions: dict[int | None, Tensor] = {}

    def __repr__(self) -> str:
        return f"View({self.name!r}, {self.num_rows} rows, d = {self.sketch_dim}, {self.storage_dtype})"

    @cached_property
    def squared_norms(self) -> Tensor:
        """Squared norm of every stored sketch in true units, float64 [n]."""
        file = column_file(f"squared_norms.{self.name}")
        norms = map_npy(self._files.path(file), file, dtype="<f8", shape=(self._kept.num_places,))
        return torch.from_numpy(self._kept.take(norms))

    def mean_squared_norm(self, label: int | None = None) -> float:
        """The unit of relative noise: mean squared norm of the comparable rows.

        Args:
            label: Over the rows of this label; None for all rows.

        Returns:
            The mean, in squared units of the measurement.

        Raises:
            UnknownLabelError: If no row has this label.
        """
        if label is None:
            return self._entry.mean_squared_norm
        if (mean := self._entry.mean_squared_norm_by_label.get(str(label))) is None:
            raise self._unknown_label(label)
        return mean

    def _unknown_label(self, label: int) -> UnknownLabelError:
        labels = sorted(map(int, self._entry.mean_squared_norm_by_label))
        return UnknownLabelError(f"no row has label {label}; the labels are {listed(labels)}")

    @property
    def partitions(self) -> list[int | None]:
        """The labels that split the comparable rows, ascending; ``[None]`` where all rows are comparable."""
        if self.comparable == "all":
            return [None]
        return [*sorted(int(label) for label in self._entry.mean_squared_norm_by_label)]

    def partition(self, label: int | None = None) -> str:
        """Name of a partition in derived/.

        Args:
            label: The label, or None for all rows.

        Returns:
            ``label-3`` or ``all``.
        """
        return partition_name(label)

    def partition_rows(self, label: int | None = None) -> Tensor:
        """The rows of a partition.

        Args:
            label: The label, or None for all rows.

        Returns:
            Rows, int64, ascending.

        Raises:
            UnknownLabelError: If no row has this label.
        """
        if label not in self._partitions:
            if label is None:
                rows = torch.arange(self.num_rows)
            elif str(label) not in self._entry.mean_squared_norm_by_label:
                raise self._unknown_label(label)
            else:
                rows = torch.nonzero(self._labels == label).squeeze(1)
            self._partitions[label] = rows
        return self._partitions[label]

    def shard(self, number: int) -> Array:
        """Stored values of one shard, memory-mapped, those of removed rows included.

        Args:
            number: The shard, from 0.

        Returns:
            Array [places, d] of the storage dtype, without the scale.
        """
        if number not in self._shards:
            shard = self._entry.shards[number]
            self._shards[number] = map_tensor(
                self._files.path(shard.file),
                shard.file,
                "sketches",
                dtype=self.storage_dtype,
                shape=(shard.rows, self.sketch_dim),
            )
        return self._shards[number]

    @property
    def num_shards(self) -> int:
        """Number of shards."""
        return len(self._entry.shards)

    def places(self, rows: Tensor) -> npt.NDArray[np.int64]:
        """Where rows lie in the shards, counted through all of them.

        Args:
            rows: Row numbers, int64 in any order.

        Returns:
            Their places, int64; the rows themselves where none was removed.

        Raises:
            UnknownRowError: If a row is negative or not below ``num_rows``.
        """
        wanted: npt.NDArray[np.int64] = rows.numpy()
        if wanted.size and (wanted.min() < 0 or wanted.max() >= self.num_rows):
            bad = int(wanted[(wanted < 0) | (wanted >= self.num_rows)][0])
            raise UnknownRowError(f"row {bad} does not exist; the rows are 0 to {self.num_rows - 1}")
        return self._kept.places(wanted)

    def stored(self, rows: Tensor | slice) -> Array:
        """Stored values of some rows, without the scale and in the storage dtype.

        A slice inside one shard is returned as a piece of the map; anything else is copied.

        Args:
            rows: Row numbers, int64 in any order, or a slice of step 1.

        Returns:
            Array [m, d].

        Raises:
            UnknownRowError: If a row is negative or not below ``num_rows``.
        """
        if isinstance(rows, slice):
            start, stop, step = rows.indices(self.num_rows)
            if step != 1:
                raise UnknownRowError(f"slices of sketches have step 1, not {step}")
            if start >= stop:
                return np.empty((0, self.sketch_dim), self.storage_dtype)
            first, last = self._kept.place(start), self._kept.place(stop - 1)
            if last - first == stop - 1 - start:  # nothing removed in between
                return self._stored_range(first, last + 1)
            rows = torch.arange(start, stop)
        wanted = self.places(rows)
        if self.num_shards == 1:
            return np.asarray(self.shard(0)[wanted])
        result = np.empty((wanted.size, self.sketch_dim), self.storage_dtype)
        shards = np.searchsorted(self.shard_starts, wanted, side="right") - 1
        for number in np.unique(shards):
            here = shards == number
            result[here] = self.shard(int(number))[wanted[here] - self.shard_starts[number]]
        return result

    def _stored_range(self, start: int, stop: int) -> Array:
        first = int(np.searchsorted(self.shard_starts, start, side="right")) - 1
        pieces = []
        for number in range(first, self.num_shards):
            begin, end = int(self.shard_starts[number]), int(self.shard_starts[number + 1])
            if begin >= stop:
                break
            pieces.append(self.shard(number)[max(start, begin) - begin : min(stop, end) - begin])
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def sketches(self, rows: Tensor | slice, dtype: torch.dtype = torch.float64) -> Tensor:
        """Sketches of some rows in true units.

        Args:
            rows: Row numbers, int64 in any order, or a slice of step 1.
            dtype: torch.float64 or torch.float32; both hold the stored values exactly.

        Returns:
            A copy, shape [m, d].
        """
        return self._in_units(self.stored(rows), dtype)

    def _in_units(self, stored: Array, dtype: torch.dtype) -> Tensor:
        values = widened(stored, dtype)
        if values.dtype == torch.from_numpy(stored[:0]).dtype:
            values = values.clone()  # the scaling below must not touch the map
        return values.mul_(self.scale)

    def blocks(
        self, block_rows: int | None = None, dtype: torch.dtype = torch.float64, rows: Tensor | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Sketches in true units, block by block, so that memory stays flat whatever the number of rows.

        Args:
            block_rows: Rows per block; by default as many as make 8 MiB.
            dtype: torch.float64 or torch.float32.
            rows: Row numbers to visit, in this order; None for all.

        Yields:
            Row numbers [m] and their sketches [m, d].
        """
        size = block_rows or max(1, BLOCK_BYTES // (self.sketch_dim * dtype.itemsize))
        total = self.num_rows if rows is None else rows.numel()
        for start in range(0, total, size):
            stop = min(total, start + size)
            if rows is None:
                yield torch.arange(start, stop), self.sketches(slice(start, stop), dtype)
            else:
                yield rows[start:stop], self.sketches(rows[start:stop], dtype)
