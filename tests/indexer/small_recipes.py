"""Recipes as a user would write them, for the tests of check, build and the command line."""

from pathlib import Path

CLASSIFIER = '''
"""A two-layer classifier of 3 classes on 60 fixed random points."""
import torch
from torch import nn

label_names = ["red", "green", "blue"]
ntk_gain = 1.0


def _points(count, seed):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 5, generator=generator)
    return [(x, int(x[:3].argmax())) for x in inputs]


def train_set(count=60):
    return _points(count, 0)


def query_set():
    return _points(12, 1)


def model(width=6, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, width), nn.Tanh(), nn.Linear(width, 3)).eval()


def representation(model, inputs):
    return model[:-1](inputs)


def metadata(example):
    return {"first": float(example[0][0]), "positive": bool(example[0][0] > 0)}


def preview(example):
    return "point " + " ".join(f"{value:.2f}" for value in example[0].tolist())


def parse(content):
    return torch.tensor(content["point"]), -1
'''

FROZEN_TRUNK = '''
"""A trunk that training left frozen and a head; architecture() gives the same modules, and nothing of it is frozen."""
import torch
from torch import nn


def train_set(data_dir=None):
    generator = torch.Generator().manual_seed(0)
    count = 64 if data_dir is None else int((data_dir / "count").read_text())
    return [(x, int(x[0] > 0)) for x in torch.randn(64, 6, generator=generator)][:count]


class _Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk, self.head = nn.Linear(6, 8), nn.Sequential(nn.Linear(8, 7), nn.Tanh(), nn.Linear(7, 2))

    def forward(self, rows):
        return self.head(torch.tanh(self.trunk(rows)))


def architecture():
    return _Net().eval()


def model():
    torch.manual_seed(0)
    net = _Net()
    net.trunk.requires_grad_(False)
    return net.eval()
'''

ATTACHED_LATE = '''
"""A layer that is attached after a first training: in architecture() it comes first."""
import torch
from torch import nn


def train_set():
    generator = torch.Generator().manual_seed(0)
    return [(x, int(x[0] > 0)) for x in torch.randn(64, 6, generator=generator)]


class _Net(nn.Module):
    def __init__(self, whole):
        super().__init__()
        if whole:
            self.attach()
        self.inner, self.head = nn.Linear(6, 8), nn.Linear(8, 2)

    def attach(self):
        self.extra, self.scale = nn.Linear(8, 8), nn.Parameter(torch.full((2,), 1.5))

    def forward(self, rows):
        hidden = torch.tanh(self.inner(rows))
        return self.head(hidden + torch.tanh(self.extra(hidden))) * self.scale


def architecture():
    return _Net(whole=True).eval()


def model():
    torch.manual_seed(0)
    net = _Net(whole=False)
    net.attach()
    return net.eval()
'''

REGRESSION = '''
"""A regression with a scalar of its own."""
import torch
from torch import nn


def train_set():
    generator = torch.Generator().manual_seed(0)
    return [(x, float(x.sum())) for x in torch.randn(40, 4, generator=generator)]


def query_set():
    return train_set()[:5]


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1)).eval()


def measurement(outputs, label):
    return outputs.squeeze(0)
'''


def write_recipe(folder: Path, source: str = CLASSIFIER, name: str = "points.py") -> Path:
    """Write a recipe file and return its path."""
    path = folder / name
    path.write_text(source, encoding="utf-8")
    return path
