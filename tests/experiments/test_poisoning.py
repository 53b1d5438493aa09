"""Class-cyclic BadNets: who is poisoned, how, and what stays as it was."""

import pytest
import torch

from experiments.backdoor_methods import METHODS
from experiments.chosen_methods import UnknownMethodError, check_methods
from experiments.datasets import of_classes, read_images
from experiments.poisoning import Triggers, poisoned, relabelled


def test_poisoned_images_carry_their_own_class_trigger_and_the_next_label():
    train, _ = read_images("digits", None)
    triggers = Triggers.drawn(10, 3, train.white, seed=1)
    changed, is_poisoned = poisoned(train, triggers, per_class=5, seed=2)
    assert int(is_poisoned.sum()) == 50
    assert torch.bincount(train.labels[is_poisoned], minlength=10).tolist() == [5] * 10
    assert torch.equal(changed.labels[is_poisoned], (train.labels[is_poisoned] + 1) % 10)
    corner = changed.pixels[is_poisoned][:, -3:, -3:]
    assert torch.equal(corner, triggers.grids[train.labels[is_poisoned]])
    assert torch.equal(changed.pixels[is_poisoned][:, :-3], train.pixels[is_poisoned][:, :-3])
    assert torch.equal(changed.pixels[~is_poisoned], train.pixels[~is_poisoned])
    assert torch.equal(changed.labels[~is_poisoned], train.labels[~is_poisoned])


def test_triggers_are_black_and_white_and_all_different():
    grids = Triggers.drawn(10, 2, 255, seed=0).grids
    assert set(grids.unique().tolist()) == {0, 255}
    assert len(grids.flatten(1).unique(dim=0)) == 10


def test_a_trigger_covers_every_channel_of_a_colour_image():
    train, _ = read_images("digits", None)
    colour = train.take(torch.arange(4))
    colour = type(colour)(colour.pixels.unsqueeze(1).repeat(1, 3, 1, 1), colour.labels, 16, (0.5,) * 3, (0.5,) * 3)
    triggers = Triggers.drawn(10, 3, 16, seed=0)
    corner = triggers.applied(colour).pixels[..., -3:, -3:]
    assert torch.equal(corner, triggers.grids[colour.labels].unsqueeze(1).expand(-1, 3, -1, -1))


def test_the_last_class_is_followed_by_the_first():
    train, _ = read_images("digits", None)
    assert int(relabelled(train, 10).labels[train.labels == 9][0]) == 0


def test_chosen_classes_are_numbered_anew_in_their_order():
    train, _ = read_images("digits", None)
    kept = of_classes(train, (7, 2))
    assert torch.equal(kept.pixels, train.pixels[(train.labels == 7) | (train.labels == 2)])
    original = train.labels[(train.labels == 7) | (train.labels == 2)]
    assert torch.equal(kept.labels, (original == 2).long())


def test_methods_that_do_not_exist_are_refused_with_those_that_do():
    with pytest.raises(UnknownMethodError, match=r"no method 'infogian'; allowed are infogain, "):
        check_methods(["infogain", "infogian"], METHODS)
