"""A build refuses a model whose examples see one another, as `indexer check` does."""

from pathlib import Path

import pytest

from indexer.build import build_index
from indexer.build_settings import BuildSettings
from indexer.recipe import RecipeError

RECIPE = """
import torch
from torch import nn

class Centred(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)
    def forward(self, x):
        return self.linear(x - x.mean(0, keepdim=True))

def model():
    torch.manual_seed(0)
    return Centred().eval()

def train_set():
    inputs = torch.randn(24, 4, generator=torch.Generator().manual_seed(1))
    return [(x, row % 3) for row, x in enumerate(inputs)]
"""


def test_a_build_refuses_a_model_whose_examples_depend_on_their_batch_mates(tmp_path: Path):
    (tmp_path / "centred.py").write_text(RECIPE)
    with pytest.raises(RecipeError, match="alone and among others"):
        build_index(BuildSettings(str(tmp_path / "centred.py")), tmp_path / "index")
    assert not (tmp_path / "index").exists()
