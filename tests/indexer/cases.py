"""One table of small models for the tests of tangent features: every odd way of using a parameter, once."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from indexer.measurement import Measurement, make_measurement
from indexer.parameters import ParameterList

ROWS = 7
CLASSES = 4


@dataclass(frozen=True)
class PairsRecipe:
    """Examples are (inputs, label) pairs; inputs are tensors or dicts of tensors."""

    def call(self, model: nn.Module, inputs: Any) -> Any:
        return model(**inputs) if isinstance(inputs, dict) else model(inputs)

    def outputs(self, model_output: Any) -> Tensor:
        return model_output

    def collate(self, examples: Sequence[Any]) -> tuple[Any, Tensor]:
        first = examples[0][0]
        labels = torch.tensor([label for _, label in examples])
        if isinstance(first, dict):
            return {name: torch.stack([inputs[name] for inputs, _ in examples]) for name in first}, labels
        return torch.stack([inputs for inputs, _ in examples]), labels


@dataclass(frozen=True)
class Case:
    """A model, inputs that it takes, and the parameters that hooks cannot serve."""

    model: Callable[[], nn.Module]
    inputs: Callable[[], Any]
    general: tuple[str, ...] = ()
    vectorised: bool = True
    measurement: Measurement = field(default_factory=lambda: make_measurement("label_logit"))

    def build(self, seed: int = 0) -> tuple[nn.Module, Any, Tensor]:
        torch.manual_seed(seed)
        model = self.model().eval()
        return model, self.inputs(), torch.arange(ROWS) % CLASSES


def naive_tangent_features(
    case: Case, model: nn.Module, inputs: Any, labels: Tensor, parameters: ParameterList
) -> Tensor:
    """One example at a time through plain float64 autograd."""
    recipe = PairsRecipe()
    model = copy.deepcopy(model).double().requires_grad_()
    rows = []
    for row in range(len(labels)):
        if isinstance(inputs, dict):
            one = {name: _double(value[row : row + 1]) for name, value in inputs.items()}
        else:
            one = _double(inputs[row : row + 1])
        model.zero_grad()
        outputs = recipe.outputs(recipe.call(model, one))[0]
        case.measurement.value(outputs, labels[row]).backward()
        named = dict(model.named_parameters())
        pieces = []
        for parameter in parameters:
            gradient = named[parameter.name].grad
            gradient = torch.zeros(parameter.shape, dtype=torch.float64) if gradient is None else gradient
            pieces.append(gradient.reshape(-1) * parameter.ntk_scale)
        rows.append(torch.cat(pieces))
    return torch.stack(rows)


def _double(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


class _Tied(nn.Module):
    """Two modules that hold one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, CLASSES)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.second(torch.tanh(self.first(x)))))


class _Twice(nn.Module):
    """One module, called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(5, 5), nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.inner(torch.tanh(self.inner(x)))))


class _BehindItsBack(nn.Module):
    """A weight that is also used without calling its module."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(5, 5), nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(functional.linear(torch.tanh(self.inner(x)), self.inner.weight)))


class _Tokens(nn.Module):
    """Linear layers on [b, t, 5], an embedding, a mask, and a head on the mean."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.mix, self.norm = nn.Embedding(11, 5), nn.Linear(5, 5), nn.LayerNorm(5)
        self.head = nn.Linear(5, CLASSES)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        hidden = self.norm(torch.tanh(self.mix(self.embedding(tokens))))
        weights = mask / mask.sum(1, keepdim=True)
        return self.head((hidden * weights.unsqueeze(2)).sum(1))


class _Branching(nn.Module):
    """Control flow on a value, which vmap refuses."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(5, 5), nn.Linear(5, CLASSES)
        self.scale = nn.Parameter(torch.ones(5))

    def forward(self, x: Tensor) -> Tensor:
        if x.sum().item() > 1e9:
            return self.head(x)
        return self.head(torch.tanh(self.inner(x)) * self.scale)


class _Conv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1, groups=2, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.norm(self.conv(x))).mean((2, 3)))


def _mlp(bias: bool) -> nn.Module:
    return nn.Sequential(
        nn.Linear(5, 6, bias=bias), nn.ReLU(inplace=True), nn.Linear(6, 3, bias=bias), nn.Tanh(), nn.Linear(3, CLASSES)
    )


def _frozen() -> nn.Module:
    model = _mlp(True)
    model[0].requires_grad_(False)
    return model


def _vectors() -> Tensor:
    return torch.randn(ROWS, 5)


def _tokens() -> dict[str, Tensor]:
    mask = (torch.arange(6) < torch.randint(2, 7, (ROWS, 1))).float()
    return {"tokens": torch.randint(0, 11, (ROWS, 6)), "mask": mask}


CASES: dict[str, Case] = {
    "mlp": Case(lambda: _mlp(False), _vectors),
    "mlp_with_biases_and_margin": Case(lambda: _mlp(True), _vectors, measurement=make_measurement("margin")),
    "frozen_first_layer": Case(_frozen, _vectors),
    "tied_weights": Case(_Tied, _vectors),
    "module_used_twice": Case(_Twice, _vectors),
    "weight_used_without_its_module": Case(_BehindItsBack, _vectors, ("inner.weight",)),
    "tokens": Case(_Tokens, _tokens),
    "convolution": Case(_Conv, lambda: torch.randn(ROWS, 2, 6, 6)),
    "refused_by_vmap": Case(_Branching, _vectors, ("scale",), vectorised=False),
    "regression": Case(
        lambda: nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 1), nn.Flatten(0)),
        _vectors,
        measurement=make_measurement("custom", function=lambda outputs, label: outputs * 2.0),
    ),
}
