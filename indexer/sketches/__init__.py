"""Sketch families: how tangent features become the short vectors that an index stores."""

from __future__ import annotations

from indexer.parameters import ParameterList
from indexer.sketches.base import Sketch
from indexer.sketches.gaussian import GaussianSketch
from indexer.sketches.identity import IdentitySketch
from indexer.sketches.kronecker import KroneckerSketch
from indexer.sketches.rademacher import RademacherSketch
from indexer.sketches.sjlt import SjltSketch
from indexer.sketches.spec import FAMILIES, Family, SketchSpec, SketchSpecError, sketch_spec

__all__ = [
    "FAMILIES",
    "Family",
    "KroneckerSketch",
    "Sketch",
    "SketchSpec",
    "SketchSpecError",
    "make_sketch",
    "sketch_spec",
]


def make_sketch(
    spec: SketchSpec,
    num_parameters: int,
    num_threads: int | None = None,
    parameters: ParameterList | None = None,
    compute_dtype: str = "float32",
) -> Sketch:
    """Sketch of a spec for a model with this many parameters.

    Args:
        spec: Family, dimension, seed and options.
        num_parameters: P, the length of the tangent features.
        num_threads: Threads of the compiled kernels; None takes torch's number. The bits of R do not depend on it.
        parameters: The parameters by name and shape; kronecker alone needs them.
        compute_dtype: ``float32``, ``bfloat16`` or ``float16``: the type that a GPU's kernel may multiply in, for slabs
            that are rounded to it already.

    Returns:
        The sketch; it holds no part of R.

    Raises:
        SketchSpecError: If a kronecker sketch comes without its parameters.
    """
    if spec.family == "kronecker":
        if parameters is None:
            raise SketchSpecError("a kronecker sketch is made of the parameters' names and shapes; give them.")
        return KroneckerSketch(spec, parameters, num_threads)
    if spec.family == "identity":
        return IdentitySketch(spec, num_parameters)
    if spec.family == "gaussian":
        return GaussianSketch(spec, num_parameters, num_threads)
    if spec.family == "sjlt":
        return SjltSketch(spec, num_parameters, num_threads)
    return RademacherSketch(spec, num_parameters, num_threads, compute_dtype)
