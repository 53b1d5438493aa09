"""A user's recipe for the tests: grey pictures of 4 × 4 in three classes, read from requests as image files."""

from typing import Any

import torch
from torch import nn

from indexer.recipes.images import pixels_from_content

SIDE = 4


def architecture() -> nn.Module:
    return nn.Sequential(nn.Linear(SIDE * SIDE, 3))


def model() -> nn.Module:
    torch.manual_seed(1)
    return architecture().eval()


def _pictures(seed: int, count: int) -> list[tuple[torch.Tensor, int]]:
    generator = torch.Generator().manual_seed(seed)
    return [(picture, row % 3) for row, picture in enumerate(torch.rand(count, SIDE * SIDE, generator=generator))]


def train_set() -> list[tuple[torch.Tensor, int]]:
    return _pictures(2, 60)


def query_set() -> list[tuple[torch.Tensor, int]]:
    return _pictures(3, 4)


def parse(content: dict[str, Any]) -> tuple[torch.Tensor, int]:
    pixels = pixels_from_content(content, height=SIDE, width=SIDE, channels=1)
    return torch.from_numpy(pixels).flatten().float() / 255, -1
