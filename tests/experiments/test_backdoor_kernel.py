"""Rankings by exact kernels: the largest absolute values first, of kernels that are what autograd says."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from experiments.backdoor_kernel import SIZES, _rankings, ranking
from tests.experiments.small_network import small_network


def test_the_largest_absolute_scores_come_first():
    assert ranking(torch.tensor([0.1, -5.0, 2.0, 0.0, 2.0])) == [1, 2, 4, 0, 3]


def test_kernels_and_what_known_rows_leave_of_them_are_the_dense_ones(tmp_path: Path):
    frozen = small_network(tmp_path, num_tuning=2, num_queries=1).frozen
    pool, queries = torch.arange(0, 40), torch.tensor([0])
    settings = replace(SIZES["smoke"], known=40, relative_noise=0.5)
    found = {(kernel, part): scores for kernel, part, scores in _rankings(frozen, 3, pool, queries, settings)}

    model = frozen.model()

    def gradient(inputs: torch.Tensor) -> torch.Tensor:
        parts = torch.autograd.grad(model(inputs[None])[0, 3], list(model.parameters()))
        return torch.cat([part.flatten() for part in parts]).double()

    rows = torch.stack([gradient(inputs) for inputs in frozen.train.take(pool).inputs(True)])
    query = gradient(frozen.queries.take(queries).inputs(True)[0])
    kernel, cross = rows @ rows.T, rows @ query
    noise = 0.5 * float(kernel.diagonal().mean())
    unscaled = "class logit, no NTK scales"
    expected = {
        "inner product": cross,
        "cosine": cross / kernel.diagonal().sqrt(),
        "covariance given 40 rows": cross - kernel @ torch.linalg.solve(kernel + noise * torch.eye(40), cross),
    }
    for part, scores in expected.items():
        torch.testing.assert_close(
            found[unscaled, part].double(), scores, rtol=1e-3, atol=1e-4 * float(scores.abs().max())
        )
    # The query is the first row: no row is more like it.
    assert ranking(found[unscaled, "cosine"])[0] == 0
    assert float(expected["inner product"].abs().max()) == pytest.approx(
        float(found[unscaled, "inner product"][ranking(found[unscaled, "inner product"])[0]].abs()), rel=1e-3
    )
