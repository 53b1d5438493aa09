"""``--device``: who computes where, what is refused, and that the CPU's settings are as before."""

import pytest
import torch

from experiments import backdoor, brittleness, devices
from experiments.catalogue import experiments
from experiments.devices import DeviceError, on_device
from experiments.ekfac import ekfac_scores
from experiments.indexing import Sketched, frozen_index
from indexer.progress import Silent

OF_IMAGES = [
    backdoor.PAPER,
    *backdoor.CONFIGURATIONS["cifar10-resnet9"].values(),
    *brittleness.CONFIGURATIONS["cifar10-resnet9"].values(),
]
ALL = [
    settings
    for experiment in experiments().values()
    for sizes in experiment.configurations.values()
    for settings in sizes.values()
]


@pytest.fixture
def cuda(monkeypatch):
    """Sets whether torch sees a GPU."""
    return lambda there: monkeypatch.setattr(torch.cuda, "is_available", lambda: there)


def training_device(settings) -> str:
    return (settings if isinstance(settings, backdoor.Settings) else settings.mlp).training.device


@pytest.mark.parametrize("wanted", ["auto", "cpu"])
def test_settings_of_the_cpu_are_as_they_were(wanted, cuda):
    # A journal compares them as text: a folder of an earlier run is continued.
    cuda(False)
    assert all(str(on_device(settings, wanted)) == str(settings) for settings in ALL)
    cuda(True)
    assert all(str(on_device(settings, "cpu")) == str(settings) for settings in ALL)


@pytest.mark.parametrize("wanted", ["auto", "cuda"])
def test_networks_of_images_take_the_gpu_where_there_is_one(wanted, cuda):
    cuda(True)
    assert {training_device(on_device(settings, wanted)) for settings in OF_IMAGES} == {"cuda"}


def test_cuda_is_refused_where_torch_has_none(cuda):
    cuda(False)
    with pytest.raises(DeviceError, match="torch sees no CUDA device here; allowed are auto and cpu"):
        on_device(backdoor.PAPER, "cuda")


def test_networks_of_vectors_stay_on_the_cpu(cuda):
    cuda(True)
    for settings in (
        backdoor.SMOKE,
        brittleness.PAPER,
        brittleness.RTE_PAPER,
        *experiments()["lds"].configurations["default"].values(),
    ):
        assert on_device(settings, "auto") is settings
        with pytest.raises(DeviceError, match="computes on the CPU"):
            on_device(settings, "cuda")


def test_every_device_is_an_option():
    assert devices.DEVICES == ("auto", "cpu", "cuda")


def test_an_index_is_built_where_it_is_told(tmp_path, monkeypatch):
    from experiments import indexing

    class ToldError(Exception):
        """Ends the build, with its settings."""

    def build(settings, *_, **__):
        raise ToldError(settings.device)

    monkeypatch.setattr(indexing, "build_index", build)
    monkeypatch.setattr(indexing, "frozen_network", lambda _: "resnet9")
    with pytest.raises(ToldError, match="cuda"):
        frozen_index(tmp_path / "n", tmp_path / "i", Sketched("margin", False, 8), Silent(), "cuda")


def test_ekfac_is_computed_where_it_is_told(tmp_path, monkeypatch):
    from experiments import ekfac

    told = []

    def computed(frozen, folder, rows_a_batch, device, damping):
        told.append(device)
        return torch.zeros(1, 1)

    monkeypatch.setattr(ekfac, "_computed", computed)
    ekfac_scores(None, tmp_path / "gpu", device="cuda")
    ekfac_scores(None, tmp_path / "cpu")
    assert told == ["cuda", "cpu"]
