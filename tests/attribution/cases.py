"""One table of odd conditioning sets and queries, so that every rule and posterior meets every one of them."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Case:
    """Sketches of the candidates (which are D as well) and of one query."""

    name: str
    make: Callable[[], tuple[Tensor, Tensor]]

    def __str__(self) -> str:
        return self.name


def _random(seed: int, rows: int, dim: int, decay: float = 0.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    scale = torch.exp(-decay * torch.arange(dim, dtype=torch.float64))
    sketches = torch.randn(rows, dim, generator=generator, dtype=torch.float64) * scale
    query = torch.randn(dim, generator=generator, dtype=torch.float64) * scale
    # Stored sketches are float16 or float32; values of a few bits make products exact and ties real.
    return (sketches * 64).round() / 64, (query * 64).round() / 64


def _duplicates() -> tuple[Tensor, Tensor]:
    sketches, query = _random(1, 9, 5)
    return torch.cat([sketches, sketches[[4, 4, 7, 0]]]), query


def _zero_rows() -> tuple[Tensor, Tensor]:
    sketches, query = _random(2, 10, 6)
    sketches[[0, 3, 9]] = 0.0
    return sketches, query


def _orthogonal_candidate() -> tuple[Tensor, Tensor]:
    sketches, query = _random(3, 8, 6)
    query[5] = 0.0
    sketches[2] = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, 3.0])
    return sketches, query


def _query_among_rows() -> tuple[Tensor, Tensor]:
    sketches, _ = _random(4, 12, 7)
    return sketches, sketches[5].clone()


CASES = [
    Case("more rows than dimensions", lambda: _random(5, 30, 8)),
    Case("fewer rows than dimensions", lambda: _random(6, 9, 20)),
    Case("decaying spectrum", lambda: _random(7, 25, 12, decay=0.3)),
    Case("duplicates", _duplicates),
    Case("zero rows", _zero_rows),
    Case("orthogonal candidate", _orthogonal_candidate),
    Case("query among the rows", _query_among_rows),
    Case("one row", lambda: _random(8, 1, 4)),
]

#: σ² relative to the mean squared norm, within what the service offers.
RELATIVE_NOISES = [0.01, 1.0, 100.0]


def noise_of(sketches: Tensor, relative: float) -> float:
    """σ² from relative noise."""
    return relative * float((sketches**2).sum(dim=1).mean())
