"""Builds the index of a frozen network, or opens the one that is there."""

from dataclasses import dataclass
from pathlib import Path

from experiments.frozen import frozen_network
from indexer.build import build_index
from indexer.preparation import BuildSettings
from indexer.progress import Progress
from sketchstore.manifest import StorageDtype
from sketchstore.reader import Index, open_index
from sketchstore.unfinished import partial_path

RECIPES = Path(__file__).parent / "recipes"


@dataclass(frozen=True)
class Sketched:
    """How an experiment's index is made.

    Attributes:
        measurement: ``class_logit``, ``label_logit`` or ``margin``.
        ntk: Whether tangent features have NTK scales.
        dim: d.
        family: Sketch family; sjlt costs a thousandth of dense signs and is as unbiased.
        seed: Seed of the sketch.
        views: Classes that get a view of ``class_logit``; None for all.
        dtype: Storage type.
        spectra: Whether to store the spectra, which InfoLoss and available nats need.
    """

    measurement: str
    ntk: bool
    dim: int
    family: str = "sjlt"
    seed: int = 0
    views: tuple[int, ...] | None = None
    dtype: StorageDtype = "float32"
    spectra: bool = True


def frozen_index(file: Path, out: Path, how: Sketched, progress: Progress, device: str = "cpu") -> Index:
    """Open the index at ``out``, built from a file of ``frozen.save_frozen`` if it is not there.

    No FAISS index is written: the picks of brute force are the same, and every index here is asked a few hundred times.

    Args:
        file: The frozen network.
        out: The index directory.
        how: Measurement and sketch.
        progress: Told how far a build is.
        device: Where a build computes; not part of what an index is.
    """
    if not (out / "manifest.json").exists():
        # A recipe file has one gain of NTK scales.
        name = "frozen_resnet.py" if frozen_network(file) == "resnet9" else "frozen.py"
        settings = BuildSettings(
            recipe=str(RECIPES / name),
            options={"file": str(file.resolve())},
            measurement=how.measurement,
            views=how.views,
            sketch=how.family,
            dim=how.dim,
            seed=how.seed,
            dtype=how.dtype,
            ntk=how.ntk,
            num_queries=1_000_000,
            device=device,
        )
        begun = partial_path(out).exists()
        build_index(settings, out, resume=begun, faiss=None, spectra=how.spectra, codes="none", progress=progress)
    return open_index(out)
