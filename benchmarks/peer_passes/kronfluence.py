"""kronfluence: EK-FAC factors of a model on some rows, which it needs before its first score; it makes no sketches."""

from __future__ import annotations

from kronfluence.analyzer import Analyzer, prepare_model
from kronfluence.arguments import FactorArguments
from kronfluence.task import Task as AnalysisTask
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from benchmarks.peer_passes.peer_pass import PeerPass, Settings, Task, label_logits


class Classification(AnalysisTask):
    """Cross-entropy as the loss and the label's logit as the measurement."""

    def compute_train_loss(self, batch: tuple[Tensor, Tensor], model: nn.Module, sample: bool = False) -> Tensor:
        """Return the summed loss of a batch, at labels drawn from the model's own outputs where ``sample`` is set."""
        inputs, labels = batch
        logits = model(inputs)
        if sample:
            labels = logits.detach().softmax(-1).multinomial(1).flatten()
        return nn.functional.cross_entropy(logits, labels, reduction="sum")

    def compute_measurement(self, batch: tuple[Tensor, Tensor], model: nn.Module) -> Tensor:
        """Return the summed logits of the labels."""
        inputs, labels = batch
        return label_logits(model, inputs, labels)


def factors(task: Task) -> PeerPass:
    """All EK-FAC factors, eigendecompositions included, for one batch as for a thousand."""
    analysis_task = Classification()
    model = prepare_model(task.own_model(), analysis_task)
    analyzer = Analyzer(
        "peers", model, analysis_task, cpu=True, disable_tqdm=True, output_dir=str(task.folder / "kronfluence")
    )

    def sketch(inputs: Tensor, labels: Tensor) -> None:
        analyzer.fit_all_factors(
            "factors",
            TensorDataset(inputs, labels),
            per_device_batch_size=task.batch_rows,
            factor_args=FactorArguments(strategy="ekfac"),
            overwrite_output_dir=True,
        )

    return PeerPass("fit_all_factors, EK-FAC", None, sketch)


SETTINGS: Settings = {"factors": factors}
