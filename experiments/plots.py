"""Colours and names of the methods, the same in every plot, and the one kind of plot most experiments draw."""

from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from experiments.chosen_methods import EACH_SIZE

_POINTS_AN_INCH = 72
#: How far two methods' points of the same value stand apart.
_POINTS_BESIDE = 1.5


class Style(NamedTuple):
    """How a method is drawn.

    Attributes:
        title: Its name.
        colour: A colour of matplotlib's default cycle.
        line: Solid for information methods, dashed for baselines, dotted for variants.
        marker: A marker of matplotlib; methods that often lie on each other have different ones.
    """

    title: str
    colour: str
    line: str
    marker: str = "o"


STYLES = {
    "infogain": Style("InfoGain", "tab:blue", "-"),
    "infogain_approx": Style("InfoGain (approx)", "tab:cyan", "-", "^"),
    "infoloss": Style("InfoLoss", "tab:orange", "-", "s"),
    "infoloss_own_label": Style("InfoLoss, D = own label", "tab:orange", ":", "s"),
    "infogain_unscaled": Style("InfoGain, no NTK scales", "tab:blue", ":"),
    "infogain_approx_unscaled": Style("InfoGain (approx), no NTK scales", "tab:cyan", ":", "^"),
    "infoloss_unscaled": Style("InfoLoss, no NTK scales, D = own label", "tab:olive", ":", "s"),
    "random": Style("Random", "black", "--", "x"),
    "repsim": Style("RepSim", "tab:green", "--", "P"),
    "graddot": Style("GradDot", "tab:red", "--", "v"),
    "infogain_margin": Style("InfoGain of the margin, no NTK scales", "tab:blue", ":"),
    "infoloss_margin": Style("InfoLoss of the margin, no NTK scales", "tab:orange", "-.", "s"),
    "infoloss_proponents": Style("InfoLoss, proponents only", "tab:orange", "--", "s"),
    "trak_undamped": Style("TRAK, λ = 0", "tab:purple", ":", "D"),
    "relatif_undamped": Style("RelatIF, λ = 0", "tab:brown", ":", "s"),
    "ekfac_undamped": Style("EK-FAC, damping 1e-8", "tab:pink", ":", "*"),
    "trak": Style("TRAK", "tab:purple", "--", "D"),
    "relatif": Style("RelatIF", "tab:brown", "-.", "s"),
    "ekfac": Style("EK-FAC", "tab:pink", "--", "*"),
    "cosine": Style("kernel cosine", "tab:olive", "--"),
    "inner_product": Style("|inner product|", "tab:gray", "--"),
}


def style_of(method: str) -> Style:
    """Return how a method is drawn; METHOD@NOISE dotted, and one without an entry grey under its own name."""
    rule, at, noise = method.partition("@")
    if at and rule in STYLES:
        named = "noise tuned at each size" if noise == EACH_SIZE else f"noise {noise}"
        return STYLES[rule]._replace(title=f"{STYLES[rule].title}, {named}", line=":")
    return STYLES.get(method, Style(method, "tab:gray", "--"))


@contextmanager
def figure(path: Path, panels: int, *, width: float = 5.2, height: float = 4.0) -> Any:
    """Give a row of axes to draw on, and save it as a PNG of moderate size.

    Args:
        path: The file.
        panels: How many axes.
        width: Width of each, inches.
        height: Height, inches.

    Yields:
        The axes, a list.
    """
    import matplotlib

    matplotlib.use("Agg")  # no display is needed, and none is opened
    from matplotlib import pyplot

    drawn, axes = pyplot.subplots(
        1, panels, figsize=(width * panels, height), dpi=110, layout="constrained", squeeze=False
    )
    try:
        yield list(axes[0])
        for axis in axes[0]:
            axis.spines[["top", "right"]].set_visible(False)
            axis.grid(alpha=0.3)
        drawn.savefig(path)
    finally:
        pyplot.close(drawn)


def draw_lines(
    axis: Any, rows: Sequence[Mapping[str, Any]], *, x: str, y: str, label: str = "method", legend: bool = True
) -> None:
    """Draw one line per method with its standard errors, each a little beside the one before: equal ones are all seen.

    Args:
        axis: Where.
        rows: The table; rows without a value of ``y`` are left out.
        x: Column along the axis.
        y: Column of the means.
        label: Column of the method.
        legend: Whether to name the lines.
    """
    from matplotlib.transforms import ScaledTranslation

    methods = list(dict.fromkeys(str(row[label]) for row in rows))
    for number, method in enumerate(methods):
        beside = _POINTS_BESIDE * (number - (len(methods) - 1) / 2) / _POINTS_AN_INCH
        moved = axis.transData + ScaledTranslation(beside, 0, axis.figure.dpi_scale_trans)
        style = style_of(method)
        mine = [row for row in rows if row[label] == method and row[y] is not None]
        errors = [row.get(f"{y}_standard_error") or 0.0 for row in mine]
        drawn = axis.errorbar(
            [row[x] for row in mine], [row[y] for row in mine], yerr=errors, label=style.title, color=style.colour,
            linestyle=style.line, marker=style.marker, markersize=4, capsize=2, linewidth=1.3, elinewidth=0.7,
        )  # fmt: skip
        for artist in drawn.get_children():
            artist.set_transform(moved)
    axis.set_xlabel(x.replace("_", " "))
    axis.set_ylabel(y.replace("_", " "))
    if legend:
        axis.legend(fontsize=7.5)
