"""Metrics of the quanda package, version 0.5.0, on this project: what does another package's yardstick say?

    python -m experiments.quanda_metrics --size small|smoke --out DIR [--data-dir DIR]

The network is the first seed of the experiment ``mislabelled``: a tenth of its labels are flipped. quanda computes

- mislabelling: the area under the share of flipped rows found along the ranking by self-influence; at random ½;
- class detection: the share, among the five highest scored rows, of those with the class asked about;
- top-k cardinality: how many of all queries' five highest are different rows; 1: no two queries share one;
- model randomization: the rank correlation of scores with those of the network with random weights; 0 is best.

A set has an order but no score of every row, and says nothing of a row about itself: the first and the last of the four
are of the methods that score rows.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor
from torch.utils.data import TensorDataset

from experiments.frozen import load_frozen
from experiments.index_explanations import OF_ROWS, OF_SETS
from experiments.mislabelled import SIZES, Settings, network
from experiments.plots import figure, style_of
from experiments.quanda_package import prepare_quanda, quanda_is_installed
from experiments.report import Report, print_report, write_report

METRICS = ("mislabelling", "class_detection", "top_k_cardinality", "model_randomization")
METHODS = OF_SETS + OF_ROWS + ("random",)
_QUERIES = {"smoke": 20, "small": 50}
_TOP = 5


def evaluated(settings: Settings, queries: int, data_dir: Path | None, out: Path) -> Report:
    """Train and index if they are not there, and let quanda score.

    Args:
        settings: Those of ``mislabelled``; the first seed.
        queries: How many test images are asked about, at the class the network predicts.
        data_dir: The folder of data sets.
        out: Where the network and the indexes are kept.

    Returns:
        quanda's scores by method; None where a metric does not apply.
    """
    prepare_quanda()
    from quanda.explainers.random import RandomExplainer
    from quanda.metrics.downstream_eval import ClassDetectionMetric, MislabelingDetectionMetric
    from quanda.metrics.heuristics import ModelRandomizationMetric, TopKCardinalityMetric

    from experiments.quanda_explainer import IndexExplainer

    frozen = load_frozen(network(settings, data_dir, out, settings.seeds[0]))
    model = frozen.model()
    train = TensorDataset(frozen.train.inputs(flat=True), frozen.train.labels)
    flipped = torch.nonzero(frozen.metadata["flipped"]).squeeze(1).tolist()
    inputs = frozen.queries.inputs(flat=True)[:queries]
    with torch.no_grad():
        labels = model(inputs).argmax(dim=1)
    checkpoint = out / "checkpoint.pt"
    torch.save(model.state_dict(), checkpoint)
    table: list[dict[str, Any]] = []
    for method in METHODS:
        if method == "random":
            explainer_class, options = RandomExplainer, {"seed": 0}
        else:
            explainer_class = IndexExplainer
            options = {
                "frozen": frozen,
                "folder": out / "indexes",
                "method": method,
                "dim": settings.dim,
                "relative_noise": settings.relative_noise,
            }
        explainer = explainer_class(model, train, **options)
        found: dict[str, Any] = dict.fromkeys(METRICS)
        scores = explainer.explain(inputs, labels)
        if method in ("trak", "graddot", "random"):
            ranks = spread_ranks(explainer.self_influence())
            metric = MislabelingDetectionMetric(model, train, flipped, precomputed_self_influence=ranks)
            found["mislabelling"] = metric.compute()["score"]
        detection = ClassDetectionMetric(model, train, s=_TOP)
        detection.update(scores, labels)
        found["class_detection"] = detection.compute()["score"]
        cardinality = TopKCardinalityMetric(model, train, top_k=_TOP)
        cardinality.update(scores)
        found["top_k_cardinality"] = cardinality.compute()["score"]
        if method not in OF_SETS:
            randomization = ModelRandomizationMetric(
                model=model,
                model_id=method,
                cache_dir=str(out / "randomized"),
                train_dataset=train,
                checkpoints=str(checkpoint),
                explainer_cls=explainer_class,
                expl_kwargs=options,
            )
            randomization.update(scores, inputs, labels)
            found["model_randomization"] = randomization.compute()["score"]
        table.append({"method": method, **found})
    facts = {
        "seeds": 1,
        "errors_over": "nothing: one number of quanda each",
        "queries": len(inputs),
        "train_rows": len(train),
        "flipped": len(flipped),
        "sketch_dim": settings.dim,
        "relative_noise": settings.relative_noise,
    }
    title = f"quanda 0.5.0 on {len(train)} rows, {len(flipped)} labels flipped"
    return Report(title, table, facts, lambda path: _draw(path, table))


def spread_ranks(scores: Tensor) -> Tensor:
    """Replace scores by ranks so far apart that quanda ranks them as they are.

    quanda 0.5.0 adds 1e-4 times the row number to a self-influence before it sorts, to settle ties; scores closer than
    that would come out in the order of the rows.

    Args:
        scores: One a row, shape [n].

    Returns:
        Ranks times n, float64 [n]; of equal scores the first row's is the largest.
    """
    # Stable among equals in descending order, so that ties keep the order of the rows.
    order = torch.argsort(scores.double(), descending=True, stable=True)
    ranks = torch.empty(len(scores), dtype=torch.float64)
    ranks[order] = torch.arange(len(scores) - 1, -1, -1, dtype=torch.float64)
    return ranks * len(scores)


def _draw(path: Path, table: list[dict[str, Any]]) -> None:
    with figure(path, len(METRICS), width=3.4, height=3.4) as axes:
        for axis, metric in zip(axes, METRICS, strict=True):
            mine = [row for row in table if row[metric] is not None]
            styles = [style_of(row["method"]) for row in mine]
            axis.barh(
                [style.title for style in styles], [row[metric] for row in mine], color=[s.colour for s in styles]
            )
            axis.invert_yaxis()
            axis.set_title(metric.replace("_", " "), fontsize=10)
            axis.tick_params(labelsize=8)


def main() -> None:
    """Parse the command line, let quanda score, print and write what came out."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.quanda_metrics",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--size", choices=list(_QUERIES), required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data-dir", type=Path, default=os.environ.get("NATTRIBUTE_DATA"))
    arguments = parser.parse_args()
    if not quanda_is_installed():
        sys.exit("quanda is not installed: experiments/README.md has the commands for an environment with it")
    arguments.out.mkdir(parents=True, exist_ok=True)
    try:
        report = evaluated(SIZES[arguments.size], _QUERIES[arguments.size], arguments.data_dir, arguments.out)
    except KeyboardInterrupt:
        sys.stderr.write("quanda_metrics: stopped; what is indexed is kept, the metrics begin anew\n")
        sys.exit(130)
    console = Console()
    files = write_report(report, arguments.out, "quanda")
    print_report(report, console)
    console.print(f"written: {', '.join(str(file) for file in files)}")


if __name__ == "__main__":
    main()
