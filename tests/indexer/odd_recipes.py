"""Recipes of models that use their layers in odd ways: how they begin, how they are built, what must be stored."""

from pathlib import Path

import torch
from torch import nn

from indexer.build import build_index
from indexer.build_settings import BuildSettings
from indexer.recipe_file import load_recipe
from sketchstore.reader import Index, open_index

HEAD = """
import torch
from torch import nn
"""

TEXTS = """
GENERATOR = torch.Generator().manual_seed(0)
TEXTS = [torch.randint(1, 30, (length,), generator=GENERATOR) for length in LENGTHS]

def train_set():
    return [(text, row % 3) for row, text in enumerate(TEXTS)]

def collate(examples):
    texts = nn.utils.rnn.pad_sequence([text for text, _ in examples], batch_first=True)
    return texts, torch.tensor([label for _, label in examples])

def model():
    torch.manual_seed(0)
    return Net().eval()
"""

VECTORS = """
def train_set():
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(SHAPE, generator=generator), row % 3) for row in range(128)]

def model():
    torch.manual_seed(0)
    return Net().eval()
"""


def written(folder: Path, source: str) -> str:
    (folder / "recipe.py").write_text(source, "utf-8")
    return str(folder / "recipe.py")


def built(folder: Path, source: str, **options: object) -> Index:
    settings = BuildSettings(written(folder, source), num_queries=0, **{"sketch": "identity", **options})  # type: ignore[arg-type]
    build_index(settings, folder / "index", faiss=None, spectra=False)
    return open_index(folder / "index")


def check_stored(index: Index, recipe: str) -> None:
    """Every row of an identity sketch is its gradient by autograd, alone."""
    loaded = load_recipe(recipe)
    model: nn.Module = loaded.model()
    stored = torch.from_numpy(index.view("own").shard(0))
    for row, example in enumerate(loaded.train_set()):
        inputs, label = loaded.collate([example])
        model.zero_grad()
        model(inputs)[0, int(label)].backward()
        alone = torch.cat(
            [(torch.zeros_like(p) if p.grad is None else p.grad.to_dense()).flatten() for p in model.parameters()]
        )
        # float32 sums in batches of other sizes
        torch.testing.assert_close(stored[row], alone, rtol=1e-4, atol=1e-5)


def check_sketches(folder: Path, source: str, **options: object) -> None:
    """Sketches are those of the rows alone."""
    index = built(folder, source, **options)
    alone = built(folder / "index", source, **{**options, "batch_rows": 1})
    stored, expected = (torch.from_numpy(one.view("own").shard(0)) for one in (index, alone))
    # float32 sums in batches of other sizes
    torch.testing.assert_close(stored, expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()))
