"""Models whose modules see a batch's rows in another order, or only some of them: right gradients or none."""

import pytest
import torch
from torch import Tensor, nn

from indexer.batch_rows import plan_batches
from indexer.build_settings import BuildSettings
from indexer.check import check_recipe
from indexer.preparation import prepare

SORTER = """
import torch

def train_set():
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn({lengths}[row % {period}], 3, generator=generator), row % 2) for row in range(24)]

def collate(examples):
    lengths = torch.tensor([len(one) for one, _ in examples])
    padded = torch.nn.utils.rnn.pad_sequence([one for one, _ in examples], batch_first=True)
    return {{"x": padded, "n": lengths}}, torch.tensor([label for _, label in examples])

class Sorter(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.outer = torch.nn.Linear(3, 4), torch.nn.Linear(4, 2)
    def forward(self, x, n):
        order = torch.argsort(-n, stable=True)
        mask = (torch.arange(x.shape[1]) < n[order, None]).unsqueeze(2)
        hidden = (self.inner(x[order]).tanh() * mask).sum(1)
        return self.outer(hidden)[torch.argsort(order, stable=True)]

def model():
    torch.manual_seed(1)
    return Sorter().eval()
"""

EXPERTS = """
import torch

def train_set():
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(6, 3, generator=generator), row % 2) for row in range(24)]

class Experts(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.experts = torch.nn.ModuleList([torch.nn.Linear(3, 4), torch.nn.Linear(3, 4)])
        self.outer = torch.nn.Linear(4, 2)
    def forward(self, x):
        tokens = x.flatten(0, 1)
        first = tokens[:, 0] > 0
        hidden = torch.empty(len(tokens), 4, dtype=x.dtype)
        hidden[first] = self.experts[0](tokens[first])
        hidden[~first] = self.experts[1](tokens[~first])
        return self.outer(hidden.view(len(x), -1, 4).tanh().sum(1))

def model():
    torch.manual_seed(1)
    return Experts().eval()
"""


def gradients_alone(model: nn.Module, inputs: object, labels: Tensor) -> Tensor:
    """Gradient of each row's own logit in a batch of its own, by autograd, [b, P]."""
    found = []
    for row, label in enumerate(labels.tolist()):
        model.zero_grad()
        one = {key: part[row : row + 1] for key, part in inputs.items()} if isinstance(inputs, dict) else None
        logits = model(**one) if one is not None else model(inputs[row : row + 1])  # type: ignore[index]
        logits[0, label].backward()
        found.append(torch.cat([parameter.grad.flatten().clone() for parameter in model.parameters()]))
    return torch.stack(found)


@pytest.mark.parametrize(
    "source",
    [
        SORTER.format(lengths=[7, 3, 5, 2, 6], period=5),
        SORTER.format(lengths=[7, 6, 5, 4, 3, 2], period=6),  # the first rows are sorted as they are
        EXPERTS,
    ],
    ids=["sorter", "first rows sorted", "experts"],
)
def test_sketches_are_of_the_rows_own_gradients(tmp_path, source) -> None:
    path = tmp_path / "recipe.py"
    path.write_text(source, encoding="utf-8")
    settings = BuildSettings(recipe=str(path), sketch="identity", ntk=False, measurement="label_logit")
    prepared = prepare(settings)
    train, featuriser = prepared.train, prepared.featuriser
    plan_batches(featuriser, train, prepared.views, prepared.num_outputs, block_rows=24, budget_bytes=2**29)
    rows = train.collate(0, 24)
    sketches = featuriser.sketch_batch(rows.inputs, rows.labels, prepared.views[0])
    expected = gradients_alone(prepared.model, rows.inputs, rows.labels)
    # float32 sums of a few products, in two orders.
    torch.testing.assert_close(sketches, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    assert all(finding.ok for finding in check_recipe(settings))


def test_the_routes_are_decided_on_rows_from_all_over_and_the_longest(tmp_path) -> None:
    path = tmp_path / "recipe.py"
    source = (
        SORTER.format(lengths=[2, 2, 2, 2, 2, 2, 2, 9], period=8)
        + "\ndef length(example):\n    return len(example[0])\n"
    )
    path.write_text(source, encoding="utf-8")
    prepared = prepare(BuildSettings(recipe=str(path), sketch="identity", ntk=False, measurement="label_logit"))
    hooked = prepared.featuriser.features.hooked_parameters
    assert not any(name.startswith("inner") for name in hooked)  # it sees rows out of place
