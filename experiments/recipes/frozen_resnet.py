"""``recipes/frozen.py`` for a ResNet-9, whose NTK scales have gain 1 instead of Kaiming's √2 (method.md section 7)."""

from experiments.recipes.frozen import metadata, model, preview, query_set, representation, train_set

__all__ = ["metadata", "model", "ntk_gain", "preview", "query_set", "representation", "train_set"]

ntk_gain = 1.0
