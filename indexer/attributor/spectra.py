"""Posteriors given a whole partition, or what is left of one: loaded or computed once, kept while memory allows."""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from typing import Generic, TypeVar

import torch
from torch import Tensor

from attribution.leverage_curves import KnownLeverages, LeverageCurves
from attribution.posterior import SetPosterior, Spectrum, spectrum_of_blocks
from attribution.spectrum import gram_of_blocks
from indexer.attributor.compiled_filter import spectral_filter
from indexer.attributor.stored_rows import StoredRows
from sketchstore.errors import MissingDerivedError
from sketchstore.leverages import read_curves, read_leverages
from sketchstore.reader import Index
from sketchstore.view import View

#: Largest Gram matrix computed while a question waits: 4096 × 4096 float64 and its eigenvectors are 268 MB.
MAX_COMPUTED_SIZE = 4096
#: Every block costs a pass over the Gram matrix besides its products.
_BLOCK_BYTES = 64 << 20

Value = TypeVar("Value")


class Kept(Generic[Value]):
    """A bounded cache of expensive values: each made once, however many threads ask; the least recently used leaves.

    Args:
        capacity_bytes: Total size kept; a single value larger than that is kept alone.
        size: Bytes of a value.
    """

    def __init__(self, capacity_bytes: int, size: Callable[[Value], int]) -> None:
        self._capacity = capacity_bytes
        self._size = size
        self._values: OrderedDict[Hashable, Value] = OrderedDict()
        self._making: dict[Hashable, threading.Lock] = {}
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """Give a value, made now if it is not kept.

        Args:
            key: Its name.
            make: Makes it; never called by two threads at once for one key.

        Returns:
            The value.
        """
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
            making = self._making.setdefault(key, threading.Lock())
        with making:
            with self._lock:
                if key in self._values:
                    return self._values[key]
            value = make()
            with self._lock:
                self._values[key] = value
                self._making.pop(key, None)
                while len(self._values) > 1 and sum(map(self._size, self._values.values())) > self._capacity:
                    self._values.popitem(last=False)
            return value

    def peek(self, key: Hashable) -> Value | None:
        """Give a value only if it is kept.

        Args:
            key: Its name.

        Returns:
            The value, or None.
        """
        with self._lock:
            return self._values.get(key)


def _spectrum_bytes(spectrum: Spectrum) -> int:
    # The gram form keeps its eigenvectors by rows as well.
    matrices = 2 if spectrum.form == "kernel" else 3
    return matrices * spectrum.gram.numel() * spectrum.gram.element_size()


def _posterior_bytes(posterior: SetPosterior) -> int:
    # Its leverages, and a matrix: it may be all that keeps its spectrum in memory.
    leverages = 0 if posterior.leverages is None else posterior.leverages.num_bytes
    return posterior.spectrum.gram.numel() * 8 + leverages


class Spectra:
    """Spectra and posteriors of one index, by partition or by set of rows.

    Args:
        index: The index.
        capacity_bytes: What spectra, and posteriors, may each occupy.
        max_computed_size: Largest Gram matrix, in rows, computed while a question waits.
    """

    def __init__(self, index: Index, capacity_bytes: int, max_computed_size: int = MAX_COMPUTED_SIZE) -> None:
        self.max_computed_size = max_computed_size
        self._index = index
        self._spectra: Kept[Spectrum] = Kept(capacity_bytes, _spectrum_bytes)
        self._grams: Kept[Tensor] = Kept(capacity_bytes, lambda gram: gram.numel() * gram.element_size())
        # Of the stored spectra in use: which leverages belong to them.
        self._digests: dict[tuple[str, int | None], str] = {}
        self._posteriors: Kept[SetPosterior] = Kept(capacity_bytes, _posterior_bytes)

    def available(self, view: View, label: int | None) -> bool:
        """Say whether a partition's spectrum is stored, or small enough to compute.

        Args:
            view: The view.
            label: The partition.

        Returns:
            Whether :meth:`posterior` works.
        """
        size = min(view.partition_rows(label).numel(), view.sketch_dim)
        return size <= self.max_computed_size or self.stored(view, label)

    def stored(self, view: View, label: int | None) -> bool:
        """Say whether a partition's spectrum is stored with the index, or kept from an earlier question.

        Args:
            view: The view.
            label: The partition.

        Returns:
            Whether it is at hand.
        """
        if self._spectra.peek((view.name, label)) is not None:
            return True
        return self._index.derived.entry("spectrum", view.name, label) is not None

    def kernel(self, view: View, label: int | None) -> Tensor | None:
        """Give K_TT of a partition, if it is at hand.

        Args:
            view: The view.
            label: The partition.

        Returns:
            float64 [n, n], measurement², or None.
        """
        spectrum = self._spectra.peek((view.name, label))
        if spectrum is None:
            if not self.stored(view, label):
                return None
            spectrum = self.spectrum(view, label)
        return spectrum.gram if spectrum.form == "kernel" else None

    def gram(self, view: View, label: int | None) -> Tensor:
        """Give a partition's Gram matrix, which costs a tenth of its spectrum where that is not at hand.

        Args:
            view: The view.
            label: The partition.

        Returns:
            K_TT when there are at most d rows, else ΦᵀΦ; float64, measurement².
        """
        if self.stored(view, label):
            return self.spectrum(view, label).gram
        return self._grams.get((view.name, label), lambda: compute_gram(view, view.partition_rows(label)))

    def spectrum(self, view: View, label: int | None) -> Spectrum:
        """Give a partition's spectrum: stored, or computed now.

        Args:
            view: The view.
            label: The partition.

        Returns:
            The spectrum.
        """
        return self._spectra.get((view.name, label), lambda: self._load(view, label))

    def posterior(self, view: View, label: int | None, noise_variance: float) -> SetPosterior:
        """Give the posterior given a whole partition.

        Args:
            view: The view.
            label: The partition.
            noise_variance: σ².

        Returns:
            The posterior, shared by all who ask with this σ².
        """
        spectrum = self.spectrum(view, label)

        def make() -> SetPosterior:
            return SetPosterior(
                spectrum, noise_variance, self._stored_leverages(view, label, spectrum, noise_variance), spectral_filter
            )

        return self._posteriors.get((view.name, label, noise_variance), make)

    def posterior_of_rows(self, view: View, rows: Tensor, noise_variance: float) -> SetPosterior:
        """Give the posterior given some rows, computed now.

        Args:
            view: The view.
            rows: The rows, ascending.
            noise_variance: σ².

        Returns:
            The posterior; positions in it are places in ``rows``.
        """
        digest = hashlib.blake2b(rows.numpy().tobytes(), digest_size=16).digest()
        spectrum = self._spectra.get((view.name, digest), lambda: compute_spectrum(view, rows))
        return self._posteriors.get(
            (view.name, digest, noise_variance),
            lambda: SetPosterior(spectrum, noise_variance, filtered=spectral_filter),
        )

    def _load(self, view: View, label: int | None) -> Spectrum:
        try:
            found = self._index.derived.spectrum(view.name, label)
        except MissingDerivedError:
            return compute_spectrum(view, view.partition_rows(label))
        entry = self._index.derived.entry("spectrum", view.name, label)
        if entry is not None:
            self._digests[view.name, label] = entry.blake3
        return Spectrum(found.form, found.gram, found.eigenvalues, found.eigenvectors)

    def _stored_leverages(
        self, view: View, label: int | None, spectrum: Spectrum, noise_variance: float
    ) -> KnownLeverages | None:
        digest = self._digests.get((view.name, label))
        if digest is None:  # the spectrum was computed here
            return None
        curves = read_curves(self._index.derived, view.name, label, digest)
        if curves is not None:
            known = LeverageCurves(curves.nodes, curves.values, curves.product_errors).at(spectrum, noise_variance)
            if known is not None:
                return known
        found = read_leverages(self._index.derived, view.name, label, noise_variance, digest)
        return None if found is None else KnownLeverages(found.values, found.relative_error * found.values)


def compute_spectrum(view: View, rows: Tensor) -> Spectrum:
    """Accumulate the Gram matrix of some rows in float64 and decompose it.

    Args:
        view: The view.
        rows: The rows, ascending.

    Returns:
        The spectrum: of K when there are at most d rows, of ΦᵀΦ otherwise.
    """
    return spectrum_of_blocks(_blocks(view, rows), rows.numel(), view.sketch_dim)


def compute_gram(view: View, rows: Tensor) -> Tensor:
    """Accumulate the Gram matrix of some rows in float64.

    Args:
        view: The view.
        rows: The rows, ascending.

    Returns:
        K when there are at most d rows, ΦᵀΦ otherwise.
    """
    return gram_of_blocks(_blocks(view, rows), rows.numel(), view.sketch_dim)


def _blocks(view: View, rows: Tensor) -> Callable[[], Iterator[Tensor]]:
    stored = StoredRows(view)
    block = max(1, _BLOCK_BYTES // (8 * view.sketch_dim))
    return lambda: (stored.read(part, torch.float64) for part in torch.split(rows, block))
