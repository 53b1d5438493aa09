"""Two metrics of the quanda package on this project: finding flipped labels, and the class of the first row.

    python -m experiments.quanda_metrics --size small|smoke --out DIR [--data-dir DIR]

The network is the first seed of the experiment ``mislabelled``. quanda's mislabelling score is the area under the share
of flipped rows found along the ranking by self-influence (a random order has ½); its class detection is the share of
test images whose highest scored training row has their label, flipped labels included.
quanda is not among nattribute's dependencies: ``pip install quanda==0.5.0`` beside it, after torch.
"""

import argparse
import json
import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import TensorDataset

from experiments.frozen import Frozen, load_frozen
from experiments.indexing import RECIPES, Sketched, frozen_index
from experiments.mislabelled import SIZES, Settings, network
from indexer.progress import Progress, Silent

SELF_METHODS = ("infogain", "trak", "graddot")


def metrics(settings: Settings, data_dir: Path | None, out: Path, progress: Progress) -> dict[str, dict[str, float]]:
    """Train and index if they are not there, and let quanda score.

    Args:
        settings: Those of ``mislabelled``; the first seed.
        data_dir: The folder of data sets.
        out: Where the network and the index are kept.
        progress: Told how far a build is.

    Returns:
        quanda's scores by metric and method.
    """
    from quanda.metrics.downstream_eval import ClassDetectionMetric, MislabelingDetectionMetric

    from experiments.quanda_explainer import METHODS, NattributeExplainer

    seed = settings.seeds[0]
    file = network(settings, data_dir, out, seed)
    how = Sketched("margin", False, settings.dim, spectra=False)
    index = frozen_index(file, out / f"margin-{seed}", how, progress)
    frozen: Frozen = load_frozen(file)
    model = frozen.model()
    train = TensorDataset(frozen.train.inputs(flat=True), frozen.train.labels)
    flipped = torch.nonzero(frozen.metadata["flipped"]).squeeze(1).tolist()
    common: dict[str, Any] = {
        "index": index.path,
        "recipe": str(RECIPES / "frozen.py"),
        "relative_noise": settings.relative_noise,
    }
    found: dict[str, dict[str, float]] = {"mislabelling": {}, "class of the first row": {}}
    for method in SELF_METHODS:
        metric = MislabelingDetectionMetric.self_influence_based(
            model, train, NattributeExplainer, flipped, expl_kwargs={**common, "method": method}
        )
        found["mislabelling"][method] = float(metric.compute()["score"])
    inputs, labels = frozen.queries.inputs(flat=True), frozen.queries.labels
    for method in METHODS:
        detection = ClassDetectionMetric(model, train)
        detection.update(NattributeExplainer(model, train, **common, method=method).explain(inputs, labels), labels)
        found["class of the first row"][method] = float(detection.compute()["score"])
    return found


def main() -> None:
    """Parse the command line, score and print."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.quanda_metrics",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--size", choices=list(SIZES), required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data-dir", type=Path, default=os.environ.get("NATTRIBUTE_DATA"))
    arguments = parser.parse_args()
    if find_spec("quanda") is None:
        sys.exit("quanda is not installed here: pip install quanda==0.5.0, after torch")
    arguments.out.mkdir(parents=True, exist_ok=True)
    found = metrics(SIZES[arguments.size], arguments.data_dir, arguments.out, Silent())
    (arguments.out / "quanda.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    sys.stdout.write(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
