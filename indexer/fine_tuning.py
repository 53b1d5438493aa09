"""Fine-tunes a pretrained text model by AdamW in batches of like length, to the same bits every time.

`training.py` trains the image models from nothing; this is its counterpart for models that read sequences.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from indexer.recipe import MapDataset
from indexer.terminal import and_time_left
from indexer.training import cpu_threads, seeded

log = logging.getLogger("indexer.training")

BATCHES_SORTED_TOGETHER = 16
"""Batches whose rows are sorted by length together: enough for little padding, few enough for a random order."""


@dataclass(frozen=True)
class FineTuning:
    """Everything about a fine-tuning run but the model, the data and the seed.

    Attributes:
        epochs: Passes over the training set.
        batch_size: Rows a step; the last batch of a group of like length may have fewer.
        learning_rate: Largest rate of AdamW.
        weight_decay: Decoupled weight decay.
        warm_up: Share of the steps over which the rate rises from 0; from there it falls to 0 linearly.
        largest_norm: Gradients longer than this are scaled to it.
        threads: CPU threads; they decide the bits.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float = 0.01
    warm_up: float = 0.1
    largest_norm: float = 1.0
    threads: int = 1

    def rate(self, done: float) -> float:
        """Return the learning rate when this share of the steps, 0 to 1, is done: 0 at the first step, as usual."""
        rising = done / self.warm_up if self.warm_up else 1.0
        return self.learning_rate * min(rising, (1 - done) / (1 - self.warm_up))


@dataclass(frozen=True)
class Step:
    """One finished step of a fine-tuning run.

    Attributes:
        epoch: Its epoch, from 0.
        step: Its number within the run, from 0.
        num_steps: Steps of the whole run.
        num_examples: Rows of its batch.
        loss: Mean loss of its batch before the step.
    """

    epoch: int
    step: int
    num_steps: int
    num_examples: int
    loss: float


@contextmanager
def frozen(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Keep parameters from being trained within the block, and restore after it whether they require a gradient.

    Args:
        parameters: The parameters.

    Yields:
        Nothing.
    """
    before = [parameter.requires_grad for parameter in parameters]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, flag in zip(parameters, before, strict=True):
            parameter.requires_grad_(flag)


def length_batches(lengths: Sequence[int], batch_size: int, generator: torch.Generator) -> list[list[int]]:
    """Put rows into random batches of like length: little padding, and every row once.

    Args:
        lengths: Tokens of each row.
        batch_size: Rows of a batch; the last of a group may have fewer.
        generator: CPU generator of the order.

    Returns:
        Row numbers of each batch.
    """
    order = torch.randperm(len(lengths), generator=generator).tolist()
    batches = []
    group = batch_size * BATCHES_SORTED_TOGETHER
    for start in range(0, len(order), group):
        rows = sorted(order[start : start + group], key=lambda row: -lengths[row])
        batches += [rows[first : first + batch_size] for first in range(0, len(rows), batch_size)]
    return [batches[number] for number in torch.randperm(len(batches), generator=generator).tolist()]


def fine_tuning_steps(
    model: nn.Module,
    examples: MapDataset,
    lengths: Sequence[int],
    mean_loss: Callable[[nn.Module, Sequence[Any]], Tensor],
    settings: FineTuning,
    *,
    seed: int,
) -> Iterator[Step]:
    """Fine-tune a model step by step, so that a caller can time epochs or stop; see `fine_tune`.

    The parameters that require a gradient are trained, the others stay. The model is in training mode while a step runs
    and must not be used for anything else meanwhile. Dropout draws from torch's generator: wrap the loop in `seeded`.

    Args:
        model: Trained in place.
        examples: The training set.
        lengths: Tokens of each row.
        mean_loss: From the model and the examples of a batch to their mean loss.
        settings: How to train.
        seed: Seed of the order of rows.

    Yields:
        Each step when it is done.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    generator = torch.Generator().manual_seed(seed)
    num_steps = settings.epochs * len(length_batches(lengths, settings.batch_size, torch.Generator()))
    step = 0
    model.train()
    for epoch in range(settings.epochs):
        for rows in length_batches(lengths, settings.batch_size, generator):
            for group in optimiser.param_groups:
                group["lr"] = settings.rate(step / num_steps)
            with torch.enable_grad():
                loss = mean_loss(model, [examples[row] for row in rows])
                optimiser.zero_grad(set_to_none=True)
                torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(trained, settings.largest_norm)
            optimiser.step()
            yield Step(epoch, step, num_steps, len(rows), loss.item())
            step += 1


def fine_tune(
    model: nn.Module,
    examples: MapDataset,
    lengths: Sequence[int],
    mean_loss: Callable[[nn.Module, Sequence[Any]], Tensor],
    settings: FineTuning,
    *,
    seed: int,
    name: str = "model",
) -> nn.Module:
    """Fine-tune a model; the result depends on the arguments, the torch build and the thread count only.

    Args:
        model: The pretrained model; its parameters that require a gradient are trained in place.
        examples: The training set.
        lengths: Tokens of each row.
        mean_loss: From the model and the examples of a batch to their mean loss.
        settings: How to train.
        seed: Seed of the order of rows and of dropout.
        name: What to call the model in the log.

    Returns:
        The same model, in eval mode.

    Raises:
        FloatingPointError: If the loss leaves the finite numbers.
    """
    started = reported = time.monotonic()
    total, count = 0.0, 0
    with seeded(seed), cpu_threads(settings.threads):
        for step in fine_tuning_steps(model, examples, lengths, mean_loss, settings, seed=seed):
            if not math.isfinite(step.loss):
                raise FloatingPointError(
                    f"training {name}: the loss of step {step.step} is {step.loss}; choose a smaller learning_rate"
                )
            total, count = total + step.loss * step.num_examples, count + step.num_examples
            if time.monotonic() - reported > 10 or step.step + 1 == step.num_steps:
                reported = time.monotonic()
                log.info(
                    "training %s: step %d of %d, epoch %d of %d, loss %.4f, %.1f s%s",
                    name, step.step + 1, step.num_steps, step.epoch + 1, settings.epochs, total / count,
                    reported - started, and_time_left(step.step + 1, step.num_steps, reported - started),
                )  # fmt: skip
                total, count = 0.0, 0
    return model.eval()
