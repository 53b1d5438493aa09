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
