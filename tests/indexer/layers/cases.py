"""One table of layers in odd positions, in float64: each with the parameters that hooks must leave to other routes."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

ROWS = 5


@dataclass(frozen=True)
class LayerCase:
    """A model from inputs [5, …] to any outputs [5, …], whose weighted sum is measured."""

    model: Callable[[], nn.Module]
    inputs: Callable[[], Tensor]
    general: tuple[str, ...] = ()

    def build(self) -> tuple[nn.Module, Tensor]:
        torch.manual_seed(1)
        model = _Smooth(self.model()).double().eval()
        for parameter in model.parameters():  # norms start at 1 and 0, where mistakes hide
            nn.init.normal_(parameter)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_()
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 2.0)
        inputs = self.inputs()
        return model, inputs.double() if inputs.is_floating_point() else inputs


class _Smooth(nn.Module):
    """Every output into one scalar per example, through something that is not linear."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        outputs = torch.tanh(self.inner(x)).flatten(1)
        return (outputs * torch.linspace(-1.0, 2.0, outputs.shape[1], dtype=outputs.dtype)).sum(1, keepdim=True)


class _Twice(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.shared = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.shared(torch.tanh(self.shared(x)))


class _TiedToTheHead(nn.Module):
    """A language model's habit: the head's weight is the embedding's."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(9, 4), nn.Linear(4, 9, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.embedding(x)))


class _Positions(nn.Module):
    """Positions are looked up once for all rows."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions, self.norm = nn.Embedding(9, 4), nn.Embedding(6, 4), nn.LayerNorm(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.tokens(x) + self.positions(torch.arange(x.shape[1]).unsqueeze(0)))


class _Flattened(nn.Module):
    """Examples and their positions share the first dimension, as in routed experts and window attention."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.norm = nn.Linear(4, 3), nn.LayerNorm(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.inner(x.flatten(0, 1))).view(*x.shape[:2], 3)


class _PositionsFirst(nn.Module):
    """The example is the second dimension: nothing tells the rows apart."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(4, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.inner(x.transpose(0, 1))).transpose(0, 1))


class RMSNorm(nn.Module):
    """A model's own norm, with 1 + w."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        return x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * (1 + self.weight)


class _WithoutGradients(nn.Module):
    """Features that the model itself does not differentiate: their gradients are zero."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            features = torch.tanh(self.inner(x))
        return self.head(features)


class _FusedWeight(nn.Module):
    """A weight that no module of its own computes with."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.mix = nn.Linear(4, 4), nn.Parameter(torch.empty(3, 4))

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(torch.tanh(self.inner(x)), self.mix)


def _vectors() -> Tensor:
    return torch.randn(ROWS, 4)


def _sequences() -> Tensor:
    return torch.randn(ROWS, 6, 4)


def _tokens() -> Tensor:
    return torch.randint(0, 9, (ROWS, 6))


def _images() -> Tensor:
    return torch.randn(ROWS, 4, 7, 6)


def _signals() -> Tensor:
    return torch.randn(ROWS, 4, 9)


LAYERS: dict[str, LayerCase] = {
    "linear": LayerCase(lambda: nn.Linear(4, 3), _vectors),
    "linear_on_a_sequence": LayerCase(lambda: nn.Linear(4, 3), _sequences),
    "linear_on_a_grid": LayerCase(lambda: nn.Linear(6, 3), _images),
    "linear_in_place": LayerCase(lambda: nn.Sequential(nn.Linear(4, 5), nn.ReLU(True), nn.Linear(5, 3)), _vectors),
    "flattened_positions": LayerCase(_Flattened, _sequences),
    "positions_first": LayerCase(_PositionsFirst, _sequences, ("inner.inner.weight", "inner.inner.bias")),
    "conv2d": LayerCase(lambda: nn.Conv2d(4, 6, 3, padding=1), _images),
    "conv2d_groups_stride_dilation": LayerCase(
        lambda: nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(2, 1), groups=2), _images
    ),
    "conv2d_depthwise": LayerCase(lambda: nn.Conv2d(4, 8, 3, groups=4), _images),
    "conv2d_same": LayerCase(lambda: nn.Conv2d(4, 3, (2, 4), padding="same"), _images),
    "conv2d_reflect": LayerCase(lambda: nn.Conv2d(4, 3, 3, padding=2, padding_mode="reflect"), _images),
    "conv2d_circular": LayerCase(lambda: nn.Conv2d(4, 3, 3, padding=(1, 2), padding_mode="circular"), _images),
    "conv2d_twice": LayerCase(lambda: _Twice(nn.Conv2d(4, 4, 3, padding=1)), _images),
    "conv1d": LayerCase(lambda: nn.Conv1d(4, 6, 3, stride=2, padding=2, groups=2), _signals),
    "conv1d_replicate": LayerCase(
        lambda: nn.Conv1d(4, 3, 4, dilation=2, padding=3, padding_mode="replicate"), _signals
    ),
    "conv3d": LayerCase(
        lambda: nn.Conv3d(4, 2, 2), lambda: torch.randn(ROWS, 4, 3, 3, 3), ("inner.weight", "inner.bias")
    ),
    "embedding_with_padding": LayerCase(lambda: nn.Embedding(9, 4, padding_idx=2), _tokens),
    "embedding_twice": LayerCase(lambda: nn.Sequential(nn.Embedding(9, 4), _Twice(nn.Linear(4, 4))), _tokens),
    "embedding_by_frequency": LayerCase(
        lambda: nn.Embedding(9, 4, scale_grad_by_freq=True), _tokens, ("inner.weight",)
    ),
    "embedding_tied_to_the_head": LayerCase(_TiedToTheHead, _tokens),
    "positions_shared_by_all_rows": LayerCase(_Positions, _tokens),
    "batch_norm": LayerCase(lambda: nn.Sequential(nn.Conv2d(4, 3, 2, bias=False), nn.BatchNorm2d(3)), _images),
    "batch_norm_on_vectors": LayerCase(lambda: nn.BatchNorm1d(4), _vectors),
    "layer_norm_on_two_dimensions": LayerCase(lambda: nn.LayerNorm((7, 6)), _images),
    "group_norm": LayerCase(lambda: nn.GroupNorm(2, 4), _images),
    "rms_norm": LayerCase(lambda: nn.RMSNorm(4), _sequences),
    "rms_norm_of_the_model": LayerCase(RMSNorm, _sequences),
    "instance_norm": LayerCase(lambda: nn.InstanceNorm1d(4, affine=True), _signals, ("inner.weight", "inner.bias")),
    "attention": LayerCase(
        lambda: nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True),
        _sequences,
        (
            "inner.self_attn.in_proj_weight",
            "inner.self_attn.in_proj_bias",
            "inner.self_attn.out_proj.weight",
            "inner.self_attn.out_proj.bias",
        ),
    ),
    "features_without_gradients": LayerCase(_WithoutGradients, _vectors),
    "a_weight_without_a_module": LayerCase(_FusedWeight, _vectors, ("inner.mix",)),
}
