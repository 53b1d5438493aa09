"""wine.py: a small classifier of wines by their chemistry."""

import torch
from sklearn.datasets import load_wine
from torch import nn

label_names = ["class_0", "class_1", "class_2"]


def _wines():
    inputs, labels = load_wine(return_X_y=True)
    inputs = torch.tensor(inputs, dtype=torch.float32)
    return list(zip((inputs - inputs.mean(0)) / inputs.std(0), labels.tolist(), strict=True))


def train_set():
    return [wine for row, wine in enumerate(_wines()) if row % 5]


def query_set():
    return _wines()[::5]


def model():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(13, 32), nn.ReLU(), nn.Linear(32, 3))
    inputs, labels = (torch.stack([x for x, _ in train_set()]), torch.tensor([y for _, y in train_set()]))
    optimiser = torch.optim.Adam(network.parameters(), lr=0.01)
    for _ in range(100):
        optimiser.zero_grad()
        nn.functional.cross_entropy(network(inputs), labels).backward()
        optimiser.step()
    return network.eval()
