"""diabetes.py: a regression; what is explained is the prediction itself."""

import torch
from sklearn.datasets import load_diabetes
from torch import nn


def _patients():
    inputs, progression = load_diabetes(return_X_y=True)
    inputs, progression = torch.tensor(20 * inputs, dtype=torch.float32), torch.tensor(progression, dtype=torch.float32)
    return list(zip(inputs, (progression - progression.mean()) / progression.std(), strict=True))


def train_set():
    return [patient for row, patient in enumerate(_patients()) if row % 5]


def query_set():
    return _patients()[::5]


def model():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(10, 32), nn.Tanh(), nn.Linear(32, 1))
    inputs, targets = (torch.stack(column) for column in zip(*train_set(), strict=True))
    optimiser = torch.optim.Adam(network.parameters(), lr=0.01, weight_decay=1e-3)
    for _ in range(100):
        optimiser.zero_grad()
        nn.functional.mse_loss(network(inputs).squeeze(1), targets).backward()
        optimiser.step()
    return network.eval()


def measurement(outputs, label):
    return outputs[0]


def metadata(example):
    return {"target": float(example[1])}
