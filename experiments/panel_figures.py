"""Draws panels: pictures in a grid of methods and ranks, texts in boxes."""

import io
import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from experiments.plots import style_of

Preview = tuple[str, bytes] | None
COLUMNS = 62
"""Letters of a line in a box."""
MOST_LINES = 5


@dataclass(frozen=True)
class Panel:
    """One query with the answers of all methods.

    Attributes:
        query: Preview of the query: media type and content.
        title: Its label in words, and where it stands.
        picks: By method, in order: the preview of a pick, and whether its kernel value with the query is positive.
    """

    query: Preview
    title: str
    picks: Mapping[str, Sequence[tuple[Preview, bool]]]


def draw_panels(path: Path, panels: Sequence[Panel]) -> None:
    """Draw panels of pictures side by side, or the first panel of texts.

    Args:
        path: The PNG.
        panels: At least one; all have the same methods.
    """
    import matplotlib

    matplotlib.use("Agg")  # no display is needed, and none is opened
    from matplotlib import pyplot

    pictures = panels[0].query is not None and panels[0].query[0] == "image/png"
    figure = _pictures(pyplot, panels) if pictures else _texts(pyplot, panels[0])
    try:
        figure.savefig(path)
    finally:
        pyplot.close(figure)


def _pictures(pyplot: Any, panels: Sequence[Panel]) -> Any:
    methods = list(panels[0].picks)
    ranks = max(len(picks) for picks in panels[0].picks.values())
    figure = pyplot.figure(
        figsize=(1.5 + len(panels) * (ranks * 0.78 + 0.2), 0.3 + (len(methods) + 1.3) * 0.8), dpi=110
    )
    names, *parts = figure.subfigures(1, 1 + len(panels), width_ratios=[1.8, *[ranks + 0.25] * len(panels)])
    heights = {"height_ratios": [1.3, *[1.0] * len(methods)]}
    box = {"left": 0.04, "right": 0.96, "bottom": 0.01, "top": 0.94, "hspace": 0.12, "wspace": 0.08}
    for axis, method in zip(
        names.subplots(len(methods) + 1, 1, gridspec_kw=heights | box), ["query", *methods], strict=True
    ):
        axis.set_axis_off()
        style = style_of(method)
        title, colour = ("query", "black") if method == "query" else (style.title, style.colour)
        axis.text(1.0, 0.5, title, ha="right", va="center", fontsize=9, color=colour, transform=axis.transAxes)
    for part, panel in zip(parts, panels, strict=True):
        part.suptitle(panel.title, fontsize=10)
        grid = part.subplots(len(methods) + 1, ranks, squeeze=False, gridspec_kw=heights | box)
        for axis in grid.flat:
            axis.set_axis_off()
        _show(grid[0][ranks // 2], panel.query)
        for line, method in zip(grid[1:], methods, strict=True):
            for axis, (preview, positive) in zip(line, panel.picks[method], strict=False):
                _show(axis, preview)
                if not positive:
                    axis.text(0.06, 0.8, "−", color="red", fontsize=13, transform=axis.transAxes)
    return figure


def _show(axis: Any, preview: Preview) -> None:
    assert preview is not None, "the index has previews"
    axis.imshow(np.asarray(Image.open(io.BytesIO(preview[1]))), cmap="gray", vmin=0, vmax=255)


def _texts(pyplot: Any, panel: Panel) -> Any:
    methods = list(panel.picks)
    blocks = {method: _block(panel.picks[method]) for method in methods}
    lines = -(-len(methods) // 2)
    heights = [
        1.5 + max(blocks[method].count("\n") + 1 for method in methods[2 * line : 2 * line + 2])
        for line in range(lines)
    ]
    query = _said(panel.query, 2 * COLUMNS)
    head = query.count("\n") + 3.0
    inches = 0.152 * (head + sum(heights)) + 0.3
    figure = pyplot.figure(figsize=(10.5, inches), dpi=110)
    grid = figure.add_gridspec(
        lines + 1,
        2,
        height_ratios=[head, *heights],
        left=0.02,
        right=0.99,
        bottom=0.01,
        top=0.99,
        hspace=0,
        wspace=0.02,
    )
    _box(figure.add_subplot(grid[0, :]), panel.title, query, "black")
    for place, method in enumerate(methods):
        axis = figure.add_subplot(grid[1 + place // 2, place % 2])
        _box(axis, style_of(method).title, blocks[method], style_of(method).colour)
    return figure


def _box(axis: Any, title: str, text: str, colour: str) -> None:
    axis.set_axis_off()
    axis.text(0, 1, title, va="top", fontsize=9, fontweight="bold", color=colour, transform=axis.transAxes)
    size = axis.get_window_extent().height / axis.figure.dpi * 72
    axis.text(0, 1 - 13 / size, text, va="top", fontsize=7.5, family="monospace", transform=axis.transAxes)


def _block(picks: Sequence[tuple[Preview, bool]]) -> str:
    # Picks as numbered paragraphs; the sign is that of the kernel value with the query.
    written = []
    for rank, (preview, positive) in enumerate(picks, start=1):
        first, *others = _said(preview, COLUMNS).split("\n")
        mark = f"{rank}{'+' if positive else '−'} "
        written += [f"{mark}{first}", *(f"{' ' * len(mark)}{line}" for line in others)]
    return "\n".join(written)


def _said(preview: Preview, columns: int) -> str:
    # Every text of an example on lines of its own, long ones cut.
    if preview is None:
        return "(no preview)"
    media_type, content = preview
    texts = (
        [content.decode()] if media_type.startswith("text/") else [str(each) for each in json.loads(content).values()]
    )
    lines = []
    for text in texts:
        # A dollar begins a formula in matplotlib.
        plain = "".join(letter if letter.isprintable() else " " for letter in text).replace("$", r"\$")
        lines += textwrap.wrap(plain, columns, max_lines=MOST_LINES, placeholder=" …", subsequent_indent="  ")
    return "\n".join(lines)
