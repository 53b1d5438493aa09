import pytest
import torch
from torch import Tensor

from tests.attribution.cases import CASES, RELATIVE_NOISES, Case, noise_of


@pytest.fixture(params=CASES, ids=str)
def case(request: pytest.FixtureRequest) -> tuple[Tensor, Tensor]:
    chosen: Case = request.param
    return chosen.make()


@pytest.fixture(params=RELATIVE_NOISES, ids=lambda relative: f"noise{relative:g}")
def noise(request: pytest.FixtureRequest, case: tuple[Tensor, Tensor]) -> float:
    return noise_of(case[0], request.param)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
