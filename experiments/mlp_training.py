"""Trains a bias-free ReLU network many times without some of its examples: the retraining of several experiments.

The same arithmetic as `indexer.training.train_classifier` (SGD with momentum and weight decay on the mean
cross-entropy, the row order of a generator of its own), with the gradients written out: momentum and weight decay are
added by the very product that makes a gradient, which takes a third off a training's time (7.2 against 11.2 s of one
Xeon thread for the Fashion-MNIST network). Training several networks at once as one batched product took as long each.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from indexer.training import TrainingSettings


@torch.no_grad()
def train_mlp(
    initial: Sequence[Tensor],
    inputs: Tensor,
    labels: Tensor,
    settings: TrainingSettings,
    *,
    seed: int,
    removed: Tensor | None = None,
) -> list[Tensor]:
    r"""Minimise the mean cross-entropy of a ReLU network without biases, some examples left out.

    .. math:: M \leftarrow \mu M + \lambda W + \nabla_W \ell, \quad W \leftarrow W - \eta M

    Batches are those of the whole training set; a removed example is missing from its batch, whose mean is over the
    examples left, and all others keep their places. So trainings that remove different examples see the rest in the
    same order.

    Args:
        initial: Weights ``[out, in]`` of each layer, first to last; not changed.
        inputs: Training inputs ``[n, in]``.
        labels: Training labels, int64 ``[n]``.
        settings: How to train; momentum must be positive, augmentation off.
        seed: Seed of the row order.
        removed: Rows left out, int64; None for none.

    Returns:
        The trained weights.

    Raises:
        ValueError: If the settings ask for what is not done here.
    """
    if settings.momentum <= 0 or settings.augment != "none":
        raise ValueError(f"momentum {settings.momentum}, augment {settings.augment!r}; only momentum > 0 and 'none'")
    weights = [weight.clone() for weight in initial]
    momenta = [torch.zeros_like(weight) for weight in weights]
    kept = torch.ones(len(labels), dtype=torch.bool)
    if removed is not None:
        kept[removed] = False
    generator = torch.Generator().manual_seed(seed)
    num_batches = -(-len(labels) // settings.batch_size)
    for epoch in range(settings.epochs):
        order = torch.randperm(len(labels), generator=generator)
        for batch in range(num_batches):
            rows = order[batch * settings.batch_size : (batch + 1) * settings.batch_size]
            rows = rows[kept[rows]]
            if len(rows):
                _step(
                    weights, momenta, inputs[rows], labels[rows], settings, settings.rate(epoch + batch / num_batches)
                )
    return weights


def _step(
    weights: list[Tensor],
    momenta: list[Tensor],
    inputs: Tensor,
    labels: Tensor,
    settings: TrainingSettings,
    rate: float,
) -> None:
    layers = [inputs]
    for weight in weights[:-1]:
        layers.append((layers[-1] @ weight.T).clamp_(min=0))
    error = torch.softmax(layers[-1] @ weights[-1].T, dim=1)
    error[torch.arange(len(labels)), labels] -= 1
    error /= len(labels)
    for layer in range(len(weights) - 1, -1, -1):
        weight, momentum, read = weights[layer], momenta[layer], layers[layer]
        below = (error @ weight) * (read > 0) if layer else None
        momentum.add_(weight, alpha=settings.weight_decay / settings.momentum)
        momentum.addmm_(error.T, read, beta=settings.momentum)
        weight.add_(momentum, alpha=-rate)
        if below is not None:
            error = below


@torch.no_grad()
def mlp_logits(weights: Sequence[Tensor], inputs: Tensor) -> Tensor:
    """Return the network's outputs ``[n, C]``."""
    hidden = inputs
    for weight in weights[:-1]:
        hidden = (hidden @ weight.T).clamp_(min=0)
    return hidden @ weights[-1].T


def margins(logits: Tensor, labels: Tensor) -> Tensor:
    """Return log(p_y / (1 − p_y)) of each row ``[n]``: z_y − log Σ_{j≠y} exp z_j."""
    others = logits.scatter(1, labels.unsqueeze(1), float("-inf"))
    own: Tensor = logits.gather(1, labels.unsqueeze(1)).squeeze(1)
    return own - torch.logsumexp(others, dim=1)


def linear_weights(model: nn.Module) -> list[Tensor]:
    """Return the weights of a network's linear layers, first to last."""
    return [module.weight.detach() for module in model.modules() if isinstance(module, nn.Linear)]
