"""How far the sketched kernel is from the exact one, measured at build and written into the manifest.

Nats are exact for the sketched kernel. This says what they are worth for the exact one: the error of kernel values
against what theory allows, and the nats of a few queries with both kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from indexer.agreement import compare_nats
from indexer.exact_kernel import exact_kernel, kernel_features
from indexer.featurise import Featuriser
from indexer.kernel_errors import kernel_errors, random_pairs
from indexer.kronecker_scatter import BlockScatter

PAIRS = 1000
POOL_ROWS = 300
QUERIES = 10
PICKS = 10
RELATIVE_NOISES = (0.01, 1.0, 100.0)


class DistortionError(ValueError):
    """Too few rows to measure on."""


class Examples(Protocol):
    """A map-style data set."""

    def __len__(self) -> int:
        """Number of rows."""
        ...

    def __getitem__(self, row: int, /) -> Any:
        """Example of a row."""
        ...


@dataclass(frozen=True)
class Sample:
    """Rows that a distortion is measured on; all of them comparable in the view.

    Attributes:
        pool: Rows of the training set, ascending.
        queries: Rows of the training set that stand in for queries, ascending, none of them in the pool.
        label: The label of all of them, None if the view compares all rows.
    """

    pool: list[int]
    queries: list[int]
    label: int | None


def sample_rows(labels: Tensor, comparable: str, *, pool_rows: int = POOL_ROWS, queries: int = QUERIES) -> Sample:
    """Choose rows: of the most frequent label where only a label's rows compare, else of all.

    Args:
        labels: Labels of the training set, int64 [n].
        comparable: ``label`` or ``all``.
        pool_rows: Rows of the pool wanted; fewer where there are fewer.
        queries: Rows to hold out as queries.

    Returns:
        The sample; the same for the same labels.

    Raises:
        DistortionError: If there are not at least two rows beside the queries.
    """
    label = None
    rows = torch.arange(len(labels))
    if comparable == "label":
        label = int(labels[labels >= 0].mode().values) if bool((labels >= 0).any()) else -1
        rows = (labels == label).nonzero().squeeze(1)
    if len(rows) < queries + 2:
        raise DistortionError(f"a distortion needs {queries + 2} comparable rows, there are {len(rows)}.")
    generator = torch.Generator().manual_seed(0)
    chosen = rows[torch.randperm(len(rows), generator=generator)[: pool_rows + queries]]
    return Sample(
        pool=chosen[queries:].sort().values.tolist(), queries=chosen[:queries].sort().values.tolist(), label=label
    )


def measure_distortion(
    featuriser: Featuriser,
    train_set: Examples,
    sample: Sample,
    view: str,
    *,
    sketches: Tensor | None = None,
    pairs: int = PAIRS,
    relative_noises: Sequence[float] = RELATIVE_NOISES,
    picks: int = PICKS,
) -> dict[str, Any]:
    """Compare sketched with exact kernel values and nats on a sample of the training set.

    Args:
        featuriser: The one that builds the index.
        train_set: The training set.
        sample: The rows (`sample_rows`).
        view: One of the measurement's views.
        sketches: The index's own sketches of the sample's pool rows and then its query rows, in true units, float
            [rows, d], so that storage rounding is measured too; None sketches the rows again.
        pairs: Random pairs of pool rows whose kernel values are compared.
        relative_noises: Noise variances in units of the pool's mean squared exact norm.
        picks: Size of the sets that greedy InfoGain selects for each query.

    Returns:
        A JSON object: ``kernel`` has the errors of kernel values, ``nats`` one entry per noise (see docs/sketches.md).

    Raises:
        DistortionError: If ``sketches`` are not of the sample's rows.
    """
    examples = [train_set[row] for row in (*sample.pool, *sample.queries)]
    size = len(sample.pool)
    chosen = random_pairs(size, pairs)
    scatter, slabs = None, featuriser.slabs(examples, view=view)
    if featuriser.spec.family == "kronecker":
        scatter = BlockScatter(featuriser.spec, featuriser.parameters, len(examples), device=featuriser.device)
        slabs = scatter.watch(slabs)
    exact = exact_kernel(slabs, len(examples), chosen, featuriser.sketch_ranges)
    sketches = (featuriser.sketch(examples, view=view) if sketches is None else sketches).double()
    if sketches.shape != (len(examples), featuriser.spec.dim):
        raise DistortionError(
            f"sketches of this sample have shape {[len(examples), featuriser.spec.dim]}, got {list(sketches.shape)}."
        )
    # Both kernels as rows of the same small length: the sketched one too, whose d may be thousands.
    exact_rows, sketched_rows = kernel_features(exact.kernel), kernel_features(sketches @ sketches.T)
    scale = float(exact.kernel.diagonal()[:size].mean())
    computed = {} if featuriser.compute_dtype == "float32" else {"compute": _compute_error(featuriser, examples, view)}
    return {
        "view": view,
        "label": sample.label,
        "pool_rows": size,
        "queries": len(sample.queries),
        **computed,
        "kernel": kernel_errors(featuriser.spec, exact, sketches, chosen, featuriser.parameters, scatter),
        "nats": [
            {
                "relative_noise": noise,
                "noise_variance": noise * scale,
                **compare_nats(
                    {"sketched": (sketched_rows, noise * scale), "exact": (exact_rows, noise * scale)},
                    size,
                    min(picks, size),
                ),
            }
            for noise in relative_noises
        ],
    }


def _compute_error(featuriser: Featuriser, examples: Sequence[Any], view: str) -> dict[str, Any]:
    # What the shorter type does to sketches of these rows: distance to their float32 sketches over the latter's norm
    short = featuriser.sketch(examples, view=view).double()
    with featuriser.in_float32():
        full = featuriser.sketch(examples, view=view).double()
    norms = full.norm(dim=1)
    errors = ((short - full).norm(dim=1) / norms)[norms > 0]
    return {
        "dtype": featuriser.compute_dtype,
        "sketch_error_rms": float(errors.square().mean().sqrt()) if len(errors) else 0.0,
        "sketch_error_max": float(errors.max()) if len(errors) else 0.0,
    }
