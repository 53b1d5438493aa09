"""quanda's metrics run on an index of this project; the parts that need no quanda are tested without."""

import math

import pytest
import torch

from experiments.mislabelled import SIZES
from experiments.quanda_metrics import METRICS, evaluated, spread_ranks
from experiments.quanda_package import quanda_is_installed


def test_spread_ranks_outlast_what_quanda_adds_to_them():
    generator = torch.Generator().manual_seed(0)
    scores = 1e-9 * torch.rand(3000, generator=generator, dtype=torch.float64)
    scores[7] = scores[5]
    added = spread_ranks(scores) + 1e-4 * torch.arange(3000, dtype=torch.float64)
    assert torch.equal(added.argsort(descending=True), scores.argsort(descending=True, stable=True))


@pytest.mark.slow
@pytest.mark.skipif(not quanda_is_installed(), reason="quanda is not installed: see experiments/README.md")
# quanda's own imports warn, which is no fault of a test here.
@pytest.mark.filterwarnings("ignore")
def test_four_metrics_of_quanda_run_on_an_index(tmp_path):
    report = evaluated(SIZES["smoke"], 20, None, tmp_path)
    found = {row["method"]: row for row in report.rows}
    for row in found.values():
        assert all(row[metric] is None or math.isfinite(row[metric]) for metric in METRICS)
    # A random order finds flipped labels at one half and classes at a tenth.
    assert found["trak"]["mislabelling"] > 0.6
    for method in ("infogain", "graddot", "relatif"):
        assert found[method]["class_detection"] > 0.5
    assert abs(found["trak"]["model_randomization"]) < 0.5
