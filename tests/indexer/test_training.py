"""Training gives the same bits for the same settings, once."""

import pytest
import torch
from torch import nn

from indexer.recipes.digits import Digits
from indexer.training import (
    DamagedCacheWarning,
    TrainingSettings,
    cached_weights,
    cpu_threads,
    crop_and_flip,
    seeded,
    state_digest,
    train_classifier,
)

SETTINGS = TrainingSettings(epochs=2, batch_size=8, peak_rate=0.1)


def network() -> nn.Module:
    with seeded(0):
        return nn.Linear(4, 3)


def trained(seed: int = 0) -> str:
    inputs = torch.randn(40, 4, generator=torch.Generator().manual_seed(1))
    model = train_classifier(network(), inputs, inputs[:, :3].argmax(1), SETTINGS, seed=seed)
    return state_digest(model.state_dict())


def test_the_same_seed_gives_the_same_bits_and_another_seed_others():
    torch.manual_seed(5)
    first = trained()
    torch.manual_seed(6)
    assert trained() == first
    assert trained(seed=1) != first


def test_training_leaves_the_global_generator_and_threads_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    trained()
    assert torch.equal(torch.rand(1), expected)
    before = torch.get_num_threads()
    with cpu_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_a_triangular_rate_peaks_at_its_epoch_and_ends_at_zero():
    settings = TrainingSettings(epochs=24, batch_size=512, peak_rate=0.5, peak_epoch=5)
    assert [settings.rate(epoch) for epoch in (0, 2.5, 5, 14.5, 24)] == pytest.approx([0, 0.25, 0.5, 0.25, 0])
    assert TrainingSettings(epochs=3, batch_size=1, peak_rate=0.1).rate(2) == 0.1


def test_weights_are_trained_once_and_a_damaged_cache_is_said_and_trained_again(tmp_path, monkeypatch):
    monkeypatch.setenv("NATTRIBUTE_CACHE", str(tmp_path))
    trainings = []

    def train() -> nn.Module:
        trainings.append(1)
        model = network()
        with torch.no_grad():
            model.weight.add_(1.0)
        return model

    first = cached_weights("small", {"seed": 0}, train, network())
    again = cached_weights("small", {"seed": 0}, train, network())
    assert len(trainings) == 1
    assert state_digest(first.state_dict()) == state_digest(again.state_dict())
    cached_weights("small", {"seed": 1}, train, network())
    assert len(trainings) == 2

    (path,) = [path for path in (tmp_path / "weights").glob("*.safetensors") if path.stat().st_size][:1]
    for cached in (tmp_path / "weights").glob("*.safetensors"):
        content = bytearray(cached.read_bytes())
        content[-1] ^= 1
        cached.write_bytes(content)
    with pytest.warns(DamagedCacheWarning, match=r"small-.* is damaged"):
        cached_weights("small", {"seed": 0}, train, network())
    assert len(trainings) == 3
    path.write_bytes(b"not a safetensors file")


def test_augmentation_shifts_by_at_most_the_padding_and_repeats_by_seed():
    images = torch.arange(2 * 3 * 8 * 8, dtype=torch.float32).view(2, 3, 8, 8)
    first = crop_and_flip(images, torch.Generator().manual_seed(0))
    assert first.shape == images.shape
    assert torch.equal(first, crop_and_flip(images, torch.Generator().manual_seed(0)))
    assert set(first.unique().tolist()) <= {0.0, *images.unique().tolist()}
    still = crop_and_flip(images, torch.Generator().manual_seed(0), padding=0)
    assert all(torch.equal(a, b) or torch.equal(a, b.flip(-1)) for a, b in zip(still, images, strict=True))


def test_every_option_that_changes_the_weights_changes_the_cache_key(tmp_path, monkeypatch):
    monkeypatch.setenv("NATTRIBUTE_CACHE", str(tmp_path))
    for options in ({"epochs": 1}, {"epochs": 2}, {"epochs": 1, "seed": 1}):
        Digits(options=options).model()
    assert len(list((tmp_path / "weights").glob("digits-*.safetensors"))) == 3
