"""Attention masks that torch.func can vectorise over: additive and four-dimensional, so that transformers asks nothing.

From a mask [b, t] transformers decides by its values whether a mask is needed at all, which vmap refuses; a mask
[b, 1, t, t] it adds to the attention scores as it is.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_PROBE_TOKENS = 6
_PROBE_FILLED = 2


def bidirectional_mask(mask: Tensor) -> Tensor:
    """Turn a mask of tokens into what is added to attention scores: 0 where a token is, the least float32 where not.

    Every token sees every token of its own example; e^(least float32) is exactly 0, so filling has no weight at all.

    Args:
        mask: 1 for a token, 0 for filling, shape [b, t].

    Returns:
        float32 [b, 1, t, t].
    """
    least = torch.finfo(torch.float32).min
    added = (1 - mask.float()) * least
    return added[:, None, None, :].expand(-1, 1, mask.shape[1], -1)


def takes_prepared_masks(model: nn.Module) -> bool:
    """Find out whether a model gives the same outputs with a mask made by `bidirectional_mask`.

    Encoders do; decoders, which also mask what comes later, and models with a mask logic of their own do not.

    Args:
        model: A model of transformers that returns ``logits``, in eval mode.

    Returns:
        Whether it does, on two short examples of which one is filled up.
    """
    mask = torch.ones(2, _PROBE_TOKENS, dtype=torch.int64)
    mask[1, -_PROBE_FILLED:] = 0
    tokens = torch.arange(1, _PROBE_TOKENS + 1).repeat(2, 1)
    config = getattr(model, "config", None)
    filling = getattr(config, "pad_token_id", None)
    tokens = torch.where(mask == 1, tokens, 0 if filling is None else filling)
    device = next(model.parameters()).device
    tokens, mask = tokens.to(device), mask.to(device)
    with torch.no_grad():
        usual = model(input_ids=tokens, attention_mask=mask).logits
        try:
            prepared = model(input_ids=tokens, attention_mask=bidirectional_mask(mask)).logits
        except (RuntimeError, ValueError, TypeError, IndexError):
            return False
    # Where both are meant alike the very same numbers are added: only the order of float32 sums could differ.
    return torch.allclose(usual, prepared, rtol=1e-5, atol=1e-6)
