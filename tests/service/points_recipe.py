"""A user's recipe for the tests: points in the plane in three classes, a small network with fixed weights."""

from typing import Any

import torch
from torch import nn

from indexer.recipe import RecipeInputError


def architecture() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 3))


def model() -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    network = architecture()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return network.eval()


def _points(seed: int, count: int) -> list[tuple[torch.Tensor, int]]:
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(count, 2, generator=generator)
    return [(point, row % 3) for row, point in enumerate(points)]


def train_set() -> list[tuple[torch.Tensor, int]]:
    return _points(2, 60)


def query_set() -> list[tuple[torch.Tensor, int]]:
    return _points(3, 4)


def preview(example: tuple[torch.Tensor, int]) -> dict[str, Any]:
    return {"point": example[0].tolist()}


def parse(content: dict[str, Any]) -> tuple[torch.Tensor, int]:
    if "bug" in content:
        raise KeyError("a mistake in the recipe")
    if "unchecked" in content:
        return torch.tensor(content["unchecked"]), -1
    point = content.get("point")
    if not isinstance(point, list) or len(point) != 2 or not all(isinstance(value, int | float) for value in point):
        raise RecipeInputError("a point is two numbers", pointer="/point", allowed="two numbers")
    return torch.tensor(point, dtype=torch.float32), int(content.get("label", -1))
