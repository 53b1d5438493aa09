"""A warm-up for classifiers of pairs: tell which second text belongs to a first, before labels say how they relate.

An encoder that has read single sentences only must first learn to compare two; a few thousand labelled pairs teach it
to remember them sooner than to compare them. Which texts stand together is known without labels, and soon learned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from indexer.fine_tuning import FineTuning
from indexer.recipes.text_examples import Rows, TextExample, Tokenizer

BELONG_TOGETHER, DO_NOT = 0, 1


def matching_pairs(texts: Sequence[tuple[str, str]], tokenizer: Tokenizer, seed: int) -> Rows:
    """Make the examples of the warm-up: every pair once, and every first text once with the second text of another row.

    Args:
        texts: The pairs of the training set.
        tokenizer: Tokenises them; they are cut to half of the tokens it allows.
        seed: Seed of who meets whom.

    Returns:
        2 n examples of n pairs; label 0 where the texts belong together, 1 where they do not.
    """
    short = Tokenizer(tokenizer.tokenizer, max(2, tokenizer.max_length // 2))
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(seed)).tolist()
    stranger = dict(zip(order, order[1:] + order[:1], strict=True))  # one cycle: nobody meets himself

    def example(row: int) -> TextExample:
        pair = row % len(texts)
        first, second = texts[pair]
        if row < len(texts):
            return TextExample(short.encode(first, second), BELONG_TOGETHER, {}, {})
        return TextExample(short.encode(first, texts[stranger[pair]][1]), DO_NOT, {}, {})

    return Rows(2 * len(texts), example)


def matching_settings(settings: FineTuning, epochs: int) -> FineTuning:
    """Return the settings of the warm-up: batches twice as large, of texts half as long, at twice the rate.

    Args:
        settings: Those of the fine-tuning that follows.
        epochs: Passes over the pairs.

    Returns:
        The settings.
    """
    return replace(
        settings, epochs=epochs, batch_size=2 * settings.batch_size, learning_rate=2 * settings.learning_rate
    )
