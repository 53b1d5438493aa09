"""Index directories of any size with sketches like those of real models: decaying spectrum, clusters, uneven norms.

A row is

    φ = e^(0.3 g) Σ_k s_k z_k u_k,    s_k ∝ k^(−α), Σ_k s_k² = 1,    z = √ρ z_cluster + √(1 − ρ) z_own,

with g, z_cluster and z_own standard normal, 1,000 clusters, ρ = 0.5, and u_k the columns of a random rotation, so that
every stored value carries a part of every direction. 60,000 margin sketches of Fashion-MNIST (d = 4096) have α = 0.5 to
0.7 and a spread of log ‖φ‖ of 0.32. Rows are drawn in blocks with a seed each: a smaller index is the beginning of a
larger one, as a training set grows by more of the same.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sketchstore.float16 import scale_exponent_for
from sketchstore.manifest import Build, Measurement, Recipe, Sketch, SourceDigests
from sketchstore.plan import BuildPlan, shard_rows_for
from sketchstore.reader import Index, open_index
from sketchstore.tables import ExampleRow
from sketchstore.writer import IndexWriter

BLOCK_ROWS = 8192
NUM_CLUSTERS = 1000
CLUSTER_SHARE = 0.5
NORM_SPREAD = 0.3
VIEW = "custom"


@dataclass(frozen=True)
class Spectrum:
    """What sketches are drawn from.

    Attributes:
        sketch_dim: d.
        decay: α of s_k ∝ k^(−α).
        seed: Of everything.
    """

    sketch_dim: int
    decay: float
    seed: int = 0

    def directions(self) -> NDArray[np.float32]:
        """Return s_k u_k as rows, float32 [d, d]."""
        rng = np.random.default_rng([self.seed, 0])
        rotation, _ = np.linalg.qr(rng.standard_normal((self.sketch_dim, self.sketch_dim)))
        lengths = np.arange(1, self.sketch_dim + 1) ** -self.decay
        lengths /= np.linalg.norm(lengths)
        scaled: NDArray[np.float32] = (lengths[:, None] * rotation.T).astype(np.float32)
        return scaled

    def clusters(self) -> NDArray[np.float32]:
        """Return z of every cluster, float32 [clusters, d]."""
        rng = np.random.default_rng([self.seed, 1])
        return rng.standard_normal((NUM_CLUSTERS, self.sketch_dim), dtype=np.float32)

    def blocks(self, num_rows: int, first: int = 0) -> Iterator[NDArray[np.float32]]:
        """Draw rows block by block.

        Args:
            num_rows: How many.
            first: Number of the first block; blocks never share a draw.

        Yields:
            float32 [rows, d].
        """
        directions, clusters = self.directions(), self.clusters()
        for start in range(0, num_rows, BLOCK_ROWS):
            rng = np.random.default_rng([self.seed, 2, first + start // BLOCK_ROWS])
            members = rng.integers(NUM_CLUSTERS, size=BLOCK_ROWS)
            factors = np.exp(NORM_SPREAD * rng.standard_normal((BLOCK_ROWS, 1))).astype(np.float32)
            own = rng.standard_normal((BLOCK_ROWS, self.sketch_dim), dtype=np.float32)
            mixed = math.sqrt(CLUSTER_SHARE) * clusters[members] + math.sqrt(1 - CLUSTER_SHARE) * own
            yield ((mixed @ directions) * factors)[: num_rows - start]


def write_index(
    path: Path, spectrum: Spectrum, num_rows: int, *, num_queries: int, dtype: Literal["float32", "float16"] = "float32"
) -> Index:
    """Write, publish and open an index directory of synthetic sketches; it needs no recipe and has no previews.

    Args:
        path: Where.
        spectrum: What its sketches are drawn from.
        num_rows: N.
        num_queries: Stored queries, at most a block, drawn as the rows are.
        dtype: Storage type.

    Returns:
        The open index.
    """
    dim = spectrum.sketch_dim
    plan = BuildPlan(
        name=path.name,
        num_rows=num_rows,
        dtype=dtype,
        views={VIEW: "all"},
        sketch=Sketch(family="gaussian", seed=spectrum.seed, dim=dim, num_parameters=dim),
        measurement=Measurement(name="custom"),
        recipe=Recipe(name="synthetic", builtin=False),
        build=Build(
            block_rows=BLOCK_ROWS,
            shard_rows=shard_rows_for(BLOCK_ROWS, dim, dtype),
            compute_rows=BLOCK_ROWS,
            versions={"synthetic": "1"},
        ),
        digests=SourceDigests(weights="0" * 64, data_order="0" * 64),
    )
    [queries] = spectrum.blocks(num_queries, first=1 << 32)
    with IndexWriter.create(path, plan) as writer:
        for block, values in zip(plan.blocks(), spectrum.blocks(num_rows), strict=True):
            if writer.scales is None:
                writer.set_scales({VIEW: scale_exponent_for(values)})
            writer.write_block(block, {VIEW: values})
        writer.write_examples(ExampleRow(id=f"train:{row}") for row in range(num_rows))
        pairs = np.arange(num_queries), np.full(num_queries, -1)
        examples = [ExampleRow(id=f"query:{row}") for row in range(num_queries)]
        writer.write_queries(examples, num_queries, {VIEW: (queries, *pairs)})
        writer.publish()
    return open_index(path, check="sizes")
