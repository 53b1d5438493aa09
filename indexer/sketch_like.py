"""The sketch of an index for another build: rows that are built apart and shall be merged need one sketching matrix.

Family, dimension and seed could be typed again; the parts of a kronecker sketch follow from the rows at hand, and those
of another build's rows would be others.
"""

from __future__ import annotations

from indexer.build_settings import BuildSettingsError
from indexer.parameters import ParameterList
from indexer.rebuilding import sketch_of
from indexer.sketches import SketchSpec
from sketchstore.reader import Index


def sketch_like(index: Index, parameters: ParameterList) -> SketchSpec:
    """Take the sketch of an index, if it is one of these parameters.

    Args:
        index: The open index.
        parameters: The coordinates of the build.

    Returns:
        Its family, dimension, seed and options.

    Raises:
        BuildSettingsError: If names, shapes, NTK scales or the order of the parameters differ; it names the first.
    """
    theirs = [(each.name, tuple(each.shape), each.ntk_scale) for each in index.manifest.sketch.parameters]
    ours = [(each.name, tuple(each.shape), each.ntk_scale) for each in parameters]
    if ours == theirs:
        return sketch_of(index.manifest.sketch)
    place = next(
        (place for place, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]),
        min(len(ours), len(theirs)),
    )
    raise BuildSettingsError(
        f"--sketch-like {index.path}: parameter {place} is {_said(ours, place)} here, {_said(theirs, place)} in index "
        f"{index.name!r}; a sketch serves the parameters that it was made for. Choose them as there, by the recipe's "
        "options, --layers, --include, --exclude and --ntk (`indexer info --json` shows what was chosen)."
    )


def _said(parameters: list[tuple[str, tuple[int, ...], float]], place: int) -> str:
    if place >= len(parameters):
        return "missing"
    name, shape, scale = parameters[place]
    return f"{name!r} of shape {list(shape)} and NTK scale {scale:g}"
