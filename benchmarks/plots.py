"""The pictures of docs/benchmarks.md, drawn from what the programs measured."""

from pathlib import Path
from typing import Any

WIDTH_INCHES = 7.4
HEIGHT_INCHES = 4.3
OURS, OVER_HTTP, LITERAL, PRODUCT, LIMIT = "tab:blue", "tab:orange", "tab:red", "tab:green", "tab:gray"


def _figure(columns: int = 1) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("Agg")  # no display is needed, and none is opened
    from matplotlib import pyplot

    width = WIDTH_INCHES if columns == 1 else 11.0
    return pyplot.subplots(1, columns, figsize=(width, HEIGHT_INCHES), dpi=150, layout="constrained")


def _save(figure: Any, path: Path) -> None:
    from matplotlib import pyplot

    figure.savefig(path)
    pyplot.close(figure)


def _beside(axis: Any, x: float, y: float, text: str, colour: str) -> None:
    axis.annotate(text, (x, y), xytext=(18, 0), textcoords="offset points", va="center", fontsize=8, color=colour)


def plot_selection(report: dict[str, Any], path: Path) -> None:
    """Draw the cost of a selection against the noise, in plain products |Φ r|.

    Args:
        report: What benchmarks.selection measured.
        path: The PNG.
    """
    from matplotlib.patheffects import withStroke

    figure, axis = _figure()
    budget = report["budget"]
    lines = sorted(report["by_noise"], key=lambda figures: figures["relative_noise"])
    noises = [figures["relative_noise"] for figures in lines]
    literal = [figures["plain_products_of_literal_faiss"] for figures in lines]
    selection = [figures["plain_products"] for figures in lines]
    reads = [figures["plain_products_of_a_read"] for figures in lines]
    axis.plot(noises, literal, marker="o", markersize=4, color=LITERAL)
    axis.plot(noises, [budget] * len(noises), color=PRODUCT)
    axis.plot(noises, [budget * read / 2 for read in reads], color=LIMIT, linestyle="--")
    axis.plot(noises, [budget * read / 4 for read in reads], color=LIMIT, linestyle=":")
    axis.plot(noises, selection, marker="o", markersize=5, linewidth=2.2, color=OURS)
    for noise, figures in zip(noises, lines, strict=True):
        place = {"xytext": (0, -13), "textcoords": "offset points", "ha": "center", "fontsize": 8, "color": OURS}
        text = axis.annotate(f"{figures['speed_up']:.3g}×", (noise, figures["plain_products"]), **place)
        text.set_path_effects([withStroke(linewidth=2.5, foreground="white")])  # lines may run behind it
    end = noises[-1]
    _beside(axis, end, literal[-1], "literal loop, FAISS Flat\nwith r and −r each step", LITERAL)
    _beside(axis, end, budget, "one plain product a step", PRODUCT)
    _beside(axis, end, budget * reads[-1] / 2, "bfloat16 at\nmemory speed", LIMIT)
    _beside(axis, end, budget * reads[-1] / 4, "8 bits at\nmemory speed", LIMIT)
    _beside(axis, end, selection[-1], "certified, and how many\ntimes faster than literal", OURS)
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_ylim(0.6 * min(*selection, 1.0), 2 * max(*literal, float(budget)))
    axis.set_xlim(noises[0] / 1.6, noises[-1] * 40)
    axis.set_xticks(noises, [f"{noise:g}" for noise in noises])
    axis.minorticks_off()
    ticks = [value for value in (0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500) if value >= axis.get_ylim()[0]]
    axis.set_yticks([value for value in ticks if value <= axis.get_ylim()[1]])
    axis.yaxis.set_major_formatter("{x:g}")
    axis.set_xlabel("noise variance relative to the mean squared norm", x=0.39)  # below the lines, not their names
    axis.set_ylabel("plain float32 products |Φ r|")
    index = report["index"]
    axis.set_title(
        f"Cost of {budget} picks by approximate InfoGain, N = {index['rows']:,}, d = {index['sketch_dim']:,}",
        fontsize=10,
    )
    axis.grid(axis="x", alpha=0.3)
    right = noises[-1] * 1.3  # the lines' names stand beyond
    axis.hlines(axis.get_yticks(), axis.get_xlim()[0], right, color="0.69", linewidth=0.8, alpha=0.3, zorder=0)
    axis.spines["bottom"].set_bounds(axis.get_xlim()[0], right)
    axis.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def plot_concurrency(report: dict[str, Any], path: Path) -> None:
    """Draw throughput and waiting against the number of clients.

    Args:
        report: What benchmarks.concurrency measured.
        path: The PNG.
    """
    figure, (left, right) = _figure(2)
    for name, title, colour in (("threads", "in process", OURS), ("http", "over HTTP", OVER_HTTP)):
        lines = report[name]
        if not lines:
            continue
        clients = [figures["clients"] for figures in lines]
        style = {"marker": "o", "markersize": 4, "color": colour}
        left.plot(clients, [figures["attributions_per_second"] for figures in lines], label=title, **style)
        right.plot(clients, [figures["p50_ms"] / 1e3 for figures in lines], label=f"{title}, p50", **style)
        right.plot(
            clients, [figures["p99_ms"] / 1e3 for figures in lines], linestyle="--", label=f"{title}, p99", **style
        )
    batched = report["literal_batched"]
    left.axhline(batched["attributions_per_second"], color=LITERAL)
    left.annotate(
        f"literal loop of {batched['requests']} requests batched in FAISS",
        (1, batched["attributions_per_second"]),
        xytext=(0, 5),
        textcoords="offset points",
        fontsize=8,
        color=LITERAL,
    )
    left.set_ylabel("attributions a second")
    left.set_title("Throughput", fontsize=10)
    right.set_ylabel("seconds to an answer")
    right.set_title("Waiting", fontsize=10)
    for axis in (left, right):
        axis.set_xscale("log", base=2)
        ticks = sorted({figures["clients"] for name in ("threads", "http") for figures in report[name]})
        axis.set_xticks(ticks, [str(tick) for tick in ticks])
        axis.minorticks_off()
        axis.set_ylim(bottom=0)
        axis.set_xlabel("clients, each asking again as soon as it is answered")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8, loc="best", handlelength=3)
        axis.spines[["top", "right"]].set_visible(False)
    index = report["index"]
    figure.suptitle(
        f"{report['budget']} picks by approximate InfoGain at relative noise {report['relative_noise']:g}, "
        f"N = {index['rows']:,}, d = {index['sketch_dim']:,}",
        fontsize=10,
    )
    _save(figure, path)
