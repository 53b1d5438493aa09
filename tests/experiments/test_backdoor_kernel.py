"""Rankings by exact kernels: the largest absolute values first, of kernels that are what autograd says."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments import backdoor_kernel
from experiments.backdoor_kernel import SIZES, _measured, _rankings, ranking
from tests.experiments.small_network import small_network


def test_the_largest_absolute_scores_come_first():
    assert ranking(torch.tensor([0.1, -5.0, 2.0, 0.0, 2.0])) == [1, 2, 4, 0, 3]


def test_kernels_and_what_known_rows_leave_of_them_are_the_dense_ones(tmp_path: Path):
    frozen = small_network(tmp_path, num_tuning=2, num_queries=1).frozen
    pool, queries = torch.arange(0, 40), torch.tensor([0])
    found = {(kernel, part): scores for kernel, part, scores in _rankings(frozen, 3, pool, queries, pool, 0.5)}

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
        "covariance given 40 clean rows": cross - kernel @ torch.linalg.solve(kernel + noise * torch.eye(40), cross),
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


@pytest.mark.parametrize("measurement", ["class logit", "margin"])
def test_scales_weigh_every_layer_and_one_is_left_out_at_a_time(tmp_path: Path, measurement: str):
    frozen = small_network(tmp_path, num_tuning=2, num_queries=1).frozen
    pool, queries = torch.arange(0, 30), torch.tensor([1])
    found = {(kernel, part): it for kernel, part, it in _rankings(frozen, 3, pool, queries, pool, 0.5)}
    model = frozen.model()

    def gradients(inputs: torch.Tensor) -> list[torch.Tensor]:
        logits = model(inputs[None])[0]
        others = torch.logsumexp(logits[torch.arange(10) != 3], dim=0)
        value = logits[3] - (others if measurement == "margin" else 0.0)
        return [part.flatten().double() for part in torch.autograd.grad(value, list(model.parameters()))]

    rows = [gradients(inputs) for inputs in frozen.train.take(pool).inputs(True)]
    query = gradients(frozen.queries.take(queries).inputs(True)[0])
    names = [name for name, _ in model.named_parameters()]
    fan_ins = [parameter.shape[1] for parameter in model.parameters()]
    assert (len(names), fan_ins) == (2, [64, 16])
    products = [torch.stack([row[layer] @ query[layer] for row in rows]) for layer in range(2)]
    for title, weights in (
        ("NTK scales", [2 / 64, 2 / 16]),  # gain² / fan-in, the gain √2
        ("NTK scales, gain 1 in the last layer", [2 / 64, 1 / 16]),
        ("no NTK scales", [1.0, 1.0]),
    ):
        parts = [weight * product for weight, product in zip(weights, products, strict=True)]
        expected = {
            "inner product": parts[0] + parts[1],
            f"inner product without {names[0]}": parts[1],
            f"inner product without {names[1]}": parts[0],
        }
        for part, scores in expected.items():
            torch.testing.assert_close(
                found[f"{measurement}, {title}", part].double(),
                scores,
                rtol=1e-3,
                atol=1e-4 * float(scores.abs().max()),  # float32 gradients
            )


def test_the_margin_times_the_uncertainty_ranks_as_the_gradient_of_the_loss_does(tmp_path: Path):
    frozen = small_network(tmp_path, num_tuning=2, num_queries=1).frozen
    pool, known, asked = torch.arange(140, 180), torch.arange(4), 1
    found = {(kernel, part): it for kernel, part, it in _rankings(frozen, asked, pool, torch.tensor([0]), known, 1.0)}

    model, label = frozen.model().double(), torch.tensor([asked])

    def gradient(value: torch.Tensor) -> torch.Tensor:
        return torch.cat([part.flatten() for part in torch.autograd.grad(value, list(model.parameters()))])

    inputs = frozen.queries.inputs(True)[0].double()
    logits = model(inputs[None])[0]
    query = gradient(logits[asked] - torch.logsumexp(logits[torch.arange(10) != asked], dim=0))
    losses = [
        torch.nn.functional.cross_entropy(model(row[None]), label)
        for row in frozen.train.take(pool).inputs(True).double()
    ]
    expected = torch.stack([-gradient(loss) @ query for loss in losses])
    assert float(expected.min()) < -0.01 * float(expected.max()), "opponents must be among them"
    expected = expected.clamp(min=0)  # they come last
    scores = found["margin, no NTK scales", "inner product times 1 - p"]
    torch.testing.assert_close(scores.double(), expected, rtol=1e-3, atol=1e-4 * float(expected.max()))


def test_only_clean_rows_are_known_and_measures_are_of_the_poisoned_ones(tmp_path: Path, monkeypatch):
    frozen = small_network(tmp_path, num_tuning=2, num_queries=1).frozen
    label = int(frozen.queries.labels[0])
    of_class = torch.nonzero(frozen.train.labels == label).squeeze(1)
    poisoned = torch.zeros(len(frozen.train), dtype=torch.int64)
    poisoned[of_class[::2]] = 1
    frozen = replace(frozen, metadata={"poisoned": poisoned})
    settings = replace(SIZES["smoke"], known=1000, backdoor=replace(SIZES["smoke"].backdoor, per_class=4))
    asked: dict[str, torch.Tensor] = {}

    def rankings(_: Any, __: Any, pool: torch.Tensor, queries: torch.Tensor, known: torch.Tensor, ___: Any) -> Any:
        asked.update(pool=pool, queries=queries, known=known)
        # The first four places: clean, poisoned, clean, clean.
        scores = torch.zeros(len(pool))
        scores[torch.tensor([1, 2, 3, 5])] = torch.tensor([4.0, 3.0, 2.0, 1.0])
        for _query in queries:
            yield "a kernel", "a part", scores

    monkeypatch.setattr(backdoor_kernel, "_rankings", rankings)
    ((kernel, part, values),) = _measured(frozen, label, settings)
    assert (kernel, part) == ("a kernel", "a part")
    assert torch.equal(asked["pool"], of_class)
    assert set(asked["known"].tolist()) == set(range(1, len(of_class), 2))
    assert set(asked["queries"].tolist()) == {row for row in range(2) if int(frozen.queries.labels[row]) == label}
    num_poisoned = len(of_class[::2])
    assert values == [(1 / num_poisoned, 0.5)] * len(asked["queries"])
