"""EK-FAC influence of every training row on every stored query, by the kronfluence package (an optional extra).

kronfluence scores ∇measurement · H⁻¹ · ∇loss. The measurement is minus the margin, so that a large score means a
proponent; damping is the package's heuristic, 0.1 times the mean eigenvalue of each layer, where no other is asked.
"""

import logging
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from experiments.frozen import Frozen
from experiments.journal import DamagedFileError
from experiments.mlp_training import margins
from experiments.networks import is_flat


def is_available() -> bool:
    """Say whether kronfluence is installed."""
    return find_spec("kronfluence") is not None


def training_loss(logits: Tensor, labels: Tensor, sample: bool) -> Tensor:
    """Return the summed cross-entropy, with labels drawn from the network's own probabilities for the Fisher matrix.

    Args:
        logits: ``[n, C]``.
        labels: True labels, int64 ``[n]``; not read when labels are drawn.
        sample: Whether labels are drawn, by torch's global generator.
    """
    if sample:
        labels = torch.multinomial(torch.softmax(logits.detach(), dim=1), 1).squeeze(1)
    return nn.functional.cross_entropy(logits, labels, reduction="sum")


#: The damping that the package has where nothing is said (``ScoreArguments``): next to none.
PACKAGE_DAMPING = 1e-8


def ekfac_scores(
    frozen: Frozen, folder: Path, *, rows_a_batch: int = 100, device: str = "cpu", damping: float | None = None
) -> Tensor:
    """Compute the scores, or read them if they are there.

    Args:
        frozen: The network with its training rows and queries; linear and convolution layers count.
        folder: Where factors and scores are kept; one for each damping.
        rows_a_batch: Training rows whose gradients are in memory at once.
        device: ``cpu`` or ``cuda``.
        damping: What is added to every eigenvalue, from 0; None for the heuristic.

    Returns:
        float32 ``[q, n]``.

    Raises:
        DamagedFileError: If the file of the scores is cut off.
    """
    file = folder / "ekfac.safetensors"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        temporary = file.with_suffix(".tmp")
        save_file({"scores": _computed(frozen, folder, rows_a_batch, device, damping)}, temporary)
        temporary.rename(file)
    try:
        scores: Tensor = load_file(file)["scores"]
    except (SafetensorError, KeyError) as error:
        raise DamagedFileError(f"{file} holds no scores ({error}); remove it, and they are computed again") from error
    return scores


def _computed(frozen: Frozen, folder: Path, rows_a_batch: int, device: str, damping: float | None) -> Tensor:
    from kronfluence.analyzer import Analyzer, prepare_model
    from kronfluence.arguments import FactorArguments, ScoreArguments
    from kronfluence.task import Task

    class Classification(Task):
        """Cross-entropy, sampled labels for the Fisher matrix, and minus the margin."""

        def compute_train_loss(self, batch: Sequence[Tensor], model: nn.Module, sample: bool = False) -> Tensor:
            inputs, labels = batch
            return training_loss(model(inputs), labels, sample)

        def compute_measurement(self, batch: Sequence[Tensor], model: nn.Module) -> Tensor:
            inputs, labels = batch
            return -margins(model(inputs), labels).sum()

    flat = is_flat(frozen.network)
    train = TensorDataset(frozen.train.inputs(flat), frozen.train.labels)
    queries = TensorDataset(frozen.queries.inputs(flat), frozen.queries.labels)
    task = Classification()
    generator_state = torch.get_rng_state()
    torch.manual_seed(0)  # the sampled labels
    analyzer: Any = Analyzer(
        analysis_name="ekfac",
        model=prepare_model(frozen.model(), task),
        task=task,
        cpu=device == "cpu",
        disable_tqdm=True,
        log_level=logging.WARNING,
        output_dir=str(folder / "kronfluence"),
    )
    analyzer.fit_all_factors(
        "factors",
        train,
        per_device_batch_size=rows_a_batch,
        factor_args=FactorArguments(strategy="ekfac"),
        overwrite_output_dir=True,
    )
    analyzer.compute_pairwise_scores(
        "scores",
        "factors",
        query_dataset=queries,
        train_dataset=train,
        per_device_query_batch_size=min(len(queries), 120),
        per_device_train_batch_size=rows_a_batch,
        score_args=ScoreArguments(damping_factor=damping),
        overwrite_output_dir=True,
    )
    torch.set_rng_state(generator_state)
    scores: Tensor = analyzer.load_pairwise_scores("scores")["all_modules"]
    return scores.float().to("cpu").contiguous()
