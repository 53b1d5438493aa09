"""Networks by description: the deviations that their layers are initialised with."""

import math

import pytest
from torch import nn

from experiments.networks import initial_network


def deviations(network: nn.Module) -> list[float]:
    """Root mean square of each layer's initial weights times √fan_in: the gain, if the mean is zero."""
    weights = [weight.detach() for weight in network.parameters()]
    return [float(weight.square().mean().sqrt()) * math.sqrt(weight[0].numel()) for weight in weights]


def test_layers_before_a_relu_have_kaimings_gain_and_the_last_one_of_the_convolutional_network_has_one():
    # At least 36,864 weights a layer: a standard error of 1 / √(2 · 36,864) = 0.4 %, of which 2 % are five.
    found = deviations(initial_network("cnn 1 4096 16 4096 16", seed=0))
    assert found == pytest.approx([math.sqrt(2), math.sqrt(2), math.sqrt(2), 1.0], rel=0.02)


def test_every_layer_of_the_mlp_has_kaimings_gain():
    # At least 40,000 weights a layer, as above.
    found = deviations(initial_network("mlp 400 500 100 400", seed=0))
    assert found == pytest.approx([math.sqrt(2)] * 3, rel=0.02)
