"""A recipe for the tests of worker processes: slow enough to be caught at work, and able to kill its own process."""

SOURCE = '''
"""The classifier of small_recipes with blocks that take a moment, where a file beside the recipe says so."""
import multiprocessing
import os
import signal
import time
from pathlib import Path

import torch
from torch import nn

label_names = ["red", "green", "blue"]
HERE = Path(__file__).parent


def _points(count, seed):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 5, generator=generator)
    return [(x, int(x[:3].argmax())) for x in inputs]


def train_set():
    return _points(60, 0)


def query_set():
    return _points(5, 1)


def collate(examples):
    inputs, labels = torch.stack([x for x, _ in examples]), torch.tensor([label for _, label in examples])
    if multiprocessing.parent_process() is not None and len(examples) > 2:  # a block, in a worker
        (HERE / f"worker-{os.getpid()}").touch()
        if (HERE / "slow").exists():
            time.sleep(0.4)
        if (HERE / "kill").exists() and torch.equal(inputs[0], _points(60, 0)[24][0]):
            (HERE / "kill").unlink()
            os.kill(os.getpid(), signal.SIGKILL)
    if (HERE / "refuse").exists() and multiprocessing.parent_process() is not None:
        if any(torch.equal(x, _points(60, 0)[41][0]) for x in inputs):
            raise _StrangeError(41, "no room")
    return inputs, labels


class _StrangeError(MemoryError):
    """Does not survive pickling."""

    def __init__(self, row, why):
        super().__init__(f"row {row}")


def model():
    with (HERE / "models").open("a") as stream:
        stream.write("model\\n")
    torch.manual_seed(int(time.time()) if (HERE / "restless").exists() else 0)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).eval()


def architecture():
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).eval()


def representation(model, inputs):
    return model[:-1](inputs)
'''
