"""Attention masks that torch.func can vectorise over: additive and four-dimensional, so that transformers asks nothing.

From a mask [b, t] transformers decides by its values whether a mask is needed at all, which vmap refuses; a mask
[b, 1, t, t] it adds to the attention scores as it is.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from indexer.recipes.pretrained import num_positions

_FEWEST_PROBE_TOKENS = 6
_MOST_PROBE_TOKENS = 1024
"""Longer texts are not tried: a model with a window that is longer says so in its configuration."""
_WINDOWS = ("sliding_window", "local_attention", "attention_window", "window_size")


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


def takes_prepared_masks(model: nn.Module, max_length: int) -> bool:
    """Find out whether a model gives the same outputs with a mask made by `bidirectional_mask`.

    Encoders do; decoders, which also mask what comes later, and models with a mask logic of their own do not: some let
    a token see a window around it only, which shows where a text is longer than the window.

    Args:
        model: A model of transformers that returns ``logits``, in eval mode.
        max_length: Most tokens of a text.

    Returns:
        Whether it does, on two examples of so many tokens, of which one is filled up.
    """
    config = getattr(model, "config", None)
    windows = [getattr(config, name, None) for name in _WINDOWS]
    if max_length > _MOST_PROBE_TOKENS and any(window not in (None, 0) for window in windows):
        return False
    longest = min(max_length, num_positions(config) or max_length, _MOST_PROBE_TOKENS)
    # Some models have positions that no token of a text gets; one that takes no text of a length has none to compare.
    for tokens in (longest, longest - 2, longest // 2, _FEWEST_PROBE_TOKENS):
        if tokens >= _FEWEST_PROBE_TOKENS and (same := _gives_the_same(model, tokens)) is not None:
            return same
    return False


def _gives_the_same(model: nn.Module, num_tokens: int) -> bool | None:
    # Two examples of so many tokens, of which one is filled up by a third; None where the model takes none so long.
    config = getattr(model, "config", None)
    filling, size = getattr(config, "pad_token_id", None), getattr(config, "vocab_size", None)
    mask = torch.ones(2, num_tokens, dtype=torch.int64)
    mask[1, -(num_tokens // 3) :] = 0
    # The first numbers come once: some models count a special token, which may be one of them.
    others = range(3, min(size if isinstance(size, int) else 0, 1000))
    numbers = [1, 2, *others] if others else list(range(1, _FEWEST_PROBE_TOKENS + 1))
    while len(numbers) < num_tokens:
        numbers += others or numbers
    tokens = torch.tensor(numbers[:num_tokens]).repeat(2, 1)
    tokens = torch.where(mask == 1, tokens, 0 if filling is None else filling)
    device = next(model.parameters()).device
    tokens, mask = tokens.to(device), mask.to(device)
    with torch.no_grad():
        try:
            usual = model(input_ids=tokens, attention_mask=mask).logits
        except (RuntimeError, ValueError, TypeError, IndexError, AssertionError):
            return None
        try:
            prepared = model(input_ids=tokens, attention_mask=bidirectional_mask(mask)).logits
        except (RuntimeError, ValueError, TypeError, IndexError, AssertionError):
            return False
    # Where both are meant alike the very same numbers are added: only the order of float32 sums could differ.
    return torch.allclose(usual, prepared, rtol=1e-5, atol=1e-6)
