"""The LDS: which half a row is in, and that λ is the tuning queries'."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from experiments.indexing import Sketched, frozen_index
from experiments.lds import SMOKE, correlations, train_halves, tuned
from experiments.margin_baselines import MarginBaselines
from experiments.retrained_mlp import RetrainedMlp
from indexer.progress import Silent
from tests.experiments.small_network import ROWS, SETTINGS, duplicated_rows, small_network

SUBSETS = 10


@pytest.fixture(scope="module")
def mlp(tmp_path_factory) -> RetrainedMlp:
    return small_network(tmp_path_factory.mktemp("lds"), num_tuning=4, num_queries=8)


@pytest.fixture(scope="module")
def baselines(mlp, tmp_path_factory) -> MarginBaselines:
    folder = tmp_path_factory.mktemp("index") / "margin"
    return MarginBaselines(mlp.frozen, frozen_index(mlp.file, folder, Sketched("margin", False, 64), Silent()), 1.0)


def test_a_network_trained_on_the_half_with_a_duplicate_of_the_query_is_surer_of_it(mlp: RetrainedMlp, tmp_path: Path):
    settings = replace(SMOKE, mlp=SETTINGS, subsets=SUBSETS)
    halves, margins = train_halves(settings, mlp, tmp_path, Silent())
    assert halves.sum(dim=1).tolist() == [ROWS // 2] * SUBSETS
    held = halves[:, duplicated_rows(12)]
    assert bool((held.any(dim=0) & ~held.all(dim=0)).all()), "every query needs halves with and without its duplicate"
    surer = [float(margins[held[:, q], q].mean() - margins[~held[:, q], q].mean()) for q in range(12)]
    # Of single queries a few may differ by what else is in the halves; the mean is about the margin of one row.
    assert sum(surer) / len(surer) > 0.5
    assert sum(one > 0 for one in surer) >= 10


def test_margins_that_are_sums_of_the_scores_correlate_with_them_entirely(baselines):
    halves = torch.rand(SUBSETS, ROWS, generator=torch.Generator().manual_seed(0)) < 0.5
    margins = torch.stack([halves.double() @ baselines.scores(q, ("graddot",))["graddot"] for q in range(12)], dim=1)
    found = correlations(baselines, [5, 9], ("graddot",), halves, margins)
    assert found == {"graddot": pytest.approx([1.0, 1.0])}


def test_lambda_is_chosen_on_the_tuning_queries(mlp, baselines):
    halves = torch.rand(SUBSETS * 4, ROWS, generator=torch.Generator().manual_seed(0)) < 0.5

    def sums(regularisation: float, query: int) -> Tensor:
        return halves.double() @ baselines.regularised(regularisation).scores(query, ("trak",))["trak"]

    # Margins as TRAK at one λ says they are for the tuning queries, and at another for those reported.
    for best, other in ((0.001, 100.0), (100.0, 0.001)):
        true = [sums(best if query in mlp.tuning_rows else other, query) for query in range(12)]
        settings = replace(SMOKE, regularisations=(0.001, 100.0))
        over_lambda, chosen = tuned(settings, mlp, baselines, halves, torch.stack(true, dim=1), Silent())
        assert chosen["trak"] == best
        (row,) = (row for row in over_lambda if row["method"] == "trak" and row["regularisation"] == best)
        assert row["lds"] == pytest.approx(1.0)
