"""wine.py: a small classifier of wines by their chemistry."""

import torch
from sklearn.datasets import load_wine

label_names = ["class_0", "class_1", "class_2"]
inputs, labels = map(torch.tensor, load_wine(return_X_y=True))
inputs = ((inputs - inputs.mean(0)) / inputs.std(0)).float()
learned = torch.arange(len(labels)) % 5 > 0  # every fifth wine is asked about


def train_set():
    return list(zip(inputs[learned], labels[learned].tolist(), strict=True))


def query_set():
    return list(zip(inputs[~learned], labels[~learned].tolist(), strict=True))


def model():
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(13, 32), torch.nn.ReLU(), torch.nn.Linear(32, 3))
    optimiser = torch.optim.Adam(network.parameters(), lr=0.01)
    for _ in range(100):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(network(inputs[learned]), labels[learned]).backward()
        optimiser.step()
    return network.eval()
