"""NTK parameterisation, applied after training and for attribution only.

Write a weight as W = s ω with s the standard deviation of its initialisation. Predictions do not change, and
∂f/∂ω = s ∂f/∂W: each parameter's tangent features are scaled by its s, which an index records.
"""

from __future__ import annotations

import math

from torch import nn

from indexer.parameters import is_transposed_linear

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED)


def ntk_scales(model: nn.Module, gain: float) -> dict[str, float]:
    r"""Scale s of every parameter.

    .. math:: s = \mathrm{gain} / \sqrt{\mathrm{fan}}, \quad \mathrm{fan} = (\mathrm{in}/\mathrm{groups})\,k_h k_w

    for weights of linear and convolution layers, and s = 1 for biases, normalisation, embeddings and everything else.
    A weight shared by several layers counts as the first one's, in the order of ``named_parameters``.

    Args:
        model: The trained model.
        gain: Gain of the initialisation: √2 for Kaiming, 1 for standard normal ω.

    Returns:
        Name of each parameter to its s.

    Raises:
        ValueError: If the gain is not a positive finite number.
    """
    if not (math.isfinite(gain) and gain > 0):
        raise ValueError(f"the NTK gain must be a positive number, got {gain}.")
    scales = {}
    for name, parameter in model.named_parameters():
        owner, _, leaf = name.rpartition(".")
        module = model.get_submodule(owner)
        if leaf == "weight" and is_transposed_linear(module):  # stored as [in, out]
            scales[name] = gain / math.sqrt(parameter.shape[0])
            continue
        if leaf != "weight" or not isinstance(module, _WEIGHTED):
            scales[name] = 1.0
            continue
        fan_in = parameter.shape[1:].numel()
        if isinstance(module, _TRANSPOSED):  # stored as [in, out/groups, k…]
            fan_in = parameter.shape[0] // module.groups * parameter.shape[2:].numel()
        scales[name] = gain / math.sqrt(fan_in)
    return scales
