"""Draw one answer, a query and the training images that inform it, in the terminal and as a PNG.

The last word of the line, for people. Used by the demo; an index whose previews are small grey images can be drawn.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

Picture = NDArray[np.uint8]  # [height, width], 0 = black
SHADES = " ░▒▓█"  # what a terminal without colours has
PIXELS_PER_CARD = 14


@dataclass(frozen=True)
class Card:
    """One training example of an answer.

    Attributes:
        picture: Its image.
        rank: Order of selection, from 1.
        example_id: External id.
        label: Its label in words.
        covariance: Signed posterior covariance with the query before it was picked, squared measurement units.
        step_nats: What it adds to those before it.
        cumulative_nats: What all up to it give together.
    """

    picture: Picture
    rank: int
    example_id: str
    label: str
    covariance: float
    step_nats: float
    cumulative_nats: float


@dataclass(frozen=True)
class DrawnAnswer:
    """An answer with the images that belong to it.

    Attributes:
        query: The query's image.
        title: What was asked about: the prediction.
        facts: Short lines about the query.
        cards: The selected examples in order.
        sentence: What they carry of everything the training set knows.
        available_nats: InfoGain of the whole conditioning set.
        footer: How the answer was found: engine, exactness, queries, time.
    """

    query: Picture
    title: str
    facts: tuple[str, ...]
    cards: tuple[Card, ...]
    sentence: str
    available_nats: float
    footer: tuple[str, ...]


def in_colour(picture: Picture, width: int) -> Text:
    """Draw with upper half blocks, two pixels a character: foreground is the upper one, background the lower."""
    pixels = np.asarray(Image.fromarray(picture).resize((width, width), Image.Resampling.BILINEAR), dtype=int)
    text = Text(no_wrap=True)
    for upper, lower in zip(pixels[0::2], pixels[1::2], strict=True):
        for above, below in zip(upper, lower, strict=True):
            text.append("▀", style=f"rgb({above},{above},{above}) on rgb({below},{below},{below})")
        text.append("\n")
    text.rstrip()
    return text


def in_shades(picture: Picture, width: int) -> Text:
    """Draw with five shades, one character for a cell twice as high as wide."""
    pixels = np.asarray(Image.fromarray(picture).resize((width, width // 2), Image.Resampling.BILINEAR), dtype=int)
    lines = ["".join(SHADES[min(value * len(SHADES) // 256, len(SHADES) - 1)] for value in row) for row in pixels]
    return Text("\n".join(lines), no_wrap=True)


def print_answer(console: Console, answer: DrawnAnswer, *, columns: int = 5) -> None:
    """Print the whole answer; 80 columns are enough.

    Args:
        console: Where to print. Without colours the images are drawn in five shades.
        answer: What to print.
        columns: Cards side by side.
    """
    draw = in_colour if console.color_system in ("256", "truecolor") else in_shades

    head = Table.grid(padding=(0, 3))
    head.add_row(draw(answer.query, 16), Group(Text(answer.title, style="bold"), Text(), *map(Text, answer.facts)))

    grid = Table.grid(padding=(0, 1), expand=False)
    for _ in range(columns):
        grid.add_column(width=PIXELS_PER_CARD, no_wrap=True)
    for start in range(0, len(answer.cards), columns):
        row: list[RenderableType] = []
        for card in answer.cards[start : start + columns]:
            sign = "+" if card.covariance >= 0 else "−"
            row.append(
                Group(
                    draw(card.picture, PIXELS_PER_CARD),
                    Text(f"{card.rank}. {card.label} ({sign})", style="bold"),
                    Text(card.example_id, style="dim"),
                    Text(f"{card.step_nats:+.3f} nats"),
                    Text(f"Σ {card.cumulative_nats:.3f}", style="dim"),
                    Text(),
                )
            )
        grid.add_row(*row)

    console.print()
    console.print(head)
    console.print()
    console.print(grid)
    console.print(Panel(Text(answer.sentence, style="bold"), expand=False))
    for line in answer.footer:
        console.print(Text(line, style="dim"))


def write_png(path: Path, answer: DrawnAnswer) -> None:
    """Write the same picture as a PNG.

    Args:
        path: The file to write; its folder must exist.
        answer: What to draw.
    """
    import matplotlib

    matplotlib.use("Agg")  # no display is needed, and none is opened
    from matplotlib import pyplot

    figure = pyplot.figure(figsize=(11, 6.2), dpi=150, layout="constrained")
    head, body = figure.subfigures(1, 2, width_ratios=[1, 3])
    axes = head.subplots(2, 1, height_ratios=[1.1, 1])
    axes[0].imshow(answer.query, cmap="gray", vmin=0, vmax=255)
    axes[0].set_axis_off()
    axes[0].set_title("query", fontsize=11)
    axes[1].set_axis_off()
    axes[1].text(0, 1, answer.title, fontsize=10, fontweight="bold", va="top", wrap=True)
    axes[1].text(0, 0.72, "\n".join(answer.facts), fontsize=8.5, va="top", linespacing=1.5)

    columns = 5
    rows = -(-len(answer.cards) // columns)
    grid, curve = body.subfigures(2, 1, height_ratios=[2.2 * rows, 2.4])
    for axis, card in zip(grid.subplots(rows, columns, squeeze=False).flat, answer.cards, strict=False):
        axis.imshow(card.picture, cmap="gray", vmin=0, vmax=255)
        axis.set_xticks([])
        axis.set_yticks([])
        sign = "+" if card.covariance >= 0 else "−"
        axis.set_title(f"{card.rank}. {card.label} ({sign})", fontsize=10)
        axis.set_xlabel(f"{card.step_nats:+.3f} nats, Σ {card.cumulative_nats:.3f}\n{card.example_id}", fontsize=8)
    axis = curve.subplots()
    ranks = range(len(answer.cards) + 1)
    nats = [0.0, *(card.cumulative_nats for card in answer.cards)]
    axis.plot(ranks, nats, marker="o", markersize=4, color="tab:blue", label="these examples")
    axis.axhline(answer.available_nats, color="tab:gray", linestyle="--", label="all comparable training examples")
    axis.set_ylim(0, 1.1 * answer.available_nats)
    axis.set_xticks(list(ranks))
    axis.set_xlabel("examples selected")
    axis.set_ylabel("nats")
    axis.legend(fontsize=8, loc="lower right")
    axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(answer.sentence, fontsize=11)
    figure.savefig(path)
    pyplot.close(figure)
