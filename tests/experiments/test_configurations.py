"""Configurations of backdoor and brittleness, ResNet-9's among them, agree with themselves.

They are not run: even the smoke size of ``cifar10-resnet9`` trains ResNet-9 several times, which takes a CPU core
minutes, too long for a test; and CIFAR-10 may not be there.
"""

import json
from pathlib import Path

import pytest
import torch

from experiments import backdoor, brittleness, coreset
from experiments.networks import initial_network, is_flat
from experiments.retrained_network import NetworkSettings

CLASSES = {"digits": 10, "fashion-mnist": 10, "cifar10": 10, "rte": 2}
IMAGES = {"digits": (1, 8, 8), "fashion-mnist": (1, 28, 28), "cifar10": (3, 32, 32)}
#: Training and test examples of the data sets.
ROWS = {"digits": (1437, 360), "fashion-mnist": (60_000, 10_000), "cifar10": (50_000, 10_000), "rte": (2490, 277)}
SIZES = ("smoke", "small", "paper")
BACKDOOR = [(name, size) for name in ("fashion-mnist", "cifar10-resnet9") for size in SIZES]
BRITTLENESS = [(name, size) for name in ("fashion-mnist", "cifar10-resnet9", "rte") for size in SIZES]


@torch.no_grad()
def outputs(description: str, data: str) -> int:
    shape = IMAGES.get(data, (1536,))
    inputs = torch.zeros(2, *shape).flatten(1) if is_flat(description) else torch.zeros(2, *shape)
    return int(initial_network(description, 0)(inputs).shape[1])


def test_the_lambda_of_brittleness_and_coresets_is_what_the_committed_lds_chose():
    report = Path(__file__).parents[2] / "docs/experiments/lds.json"
    chosen = json.loads(report.read_text(encoding="utf-8"))["facts"]["chosen_on_tuning_queries"]
    assert set(chosen.values()) == {brittleness.PAPER.regularisation} == {coreset.PAPER.regularisation}


@pytest.mark.parametrize(("name", "size"), BACKDOOR)
def test_backdoor(name, size):
    settings = backdoor.CONFIGURATIONS[name][size]
    assert isinstance(settings, backdoor.Settings)
    if name == "cifar10-resnet9":
        assert (settings.data, settings.network) == ("cifar10", "resnet9")
    of_data = CLASSES[settings.data]
    classes = of_data if settings.classes is None else len(settings.classes)
    assert classes == of_data or max(settings.classes) < of_data
    assert outputs(settings.network, settings.data) == of_data
    train, test = (rows * classes // of_data for rows in ROWS[settings.data])
    assert settings.train_rows <= train
    # Poisoned rows have left their class, and as many have come into it; clean ones must be left.
    assert settings.per_class * classes < settings.train_rows
    assert settings.trigger <= IMAGES[settings.data][-1] // 2
    half = min(test, settings.test_rows or test) // 2
    assert 1 <= settings.tuning_queries <= settings.stored_tuning <= half
    assert 1 <= settings.queries <= settings.stored_queries <= half
    assert settings.seeds
    assert settings.noises
    assert set(settings.methods) <= set(backdoor.METHODS)


@pytest.mark.parametrize(("name", "size"), BRITTLENESS)
def test_brittleness(name, size):
    settings = brittleness.CONFIGURATIONS[name][size]
    assert isinstance(settings, brittleness.Settings)
    how = settings.mlp
    if name == "cifar10-resnet9":
        assert isinstance(how, NetworkSettings)
        assert (how.data, how.network) == ("cifar10", "resnet9")
    of_data = CLASSES[how.data]
    classes = of_data if how.classes is None else len(how.classes)
    assert outputs(how.network, how.data) == of_data
    train, test = (int(rows * classes / of_data) for rows in ROWS[how.data])
    rows = min(int(train * how.train_fraction), getattr(how, "train_rows", None) or train)
    half = min(test, getattr(how, "test_rows", None) or test) // 2
    assert 1 <= settings.queries <= settings.stored_queries <= half
    assert 1 <= settings.tuning.queries <= settings.tuning_queries <= half
    assert list(settings.sizes) == sorted(set(settings.sizes))
    # What is removed is of one class, of which some rows are left.
    assert max(settings.sizes[-1], settings.tuning.num_removed) < rows / classes
    assert set(settings.methods) <= {*brittleness.METHODS, *brittleness.EXPLANATIONS}


def test_every_configuration_is_tested():
    for module, tested in ((backdoor, BACKDOOR), (brittleness, BRITTLENESS)):
        assert sorted(tested) == sorted((name, size) for name, of in module.CONFIGURATIONS.items() for size in of)
