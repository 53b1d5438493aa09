import math

import pytest
import torch
from torch import nn

from indexer.ntk import ntk_scales
from indexer.parameters import ParameterList, ParameterSelectionError, select_parameters


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 6, (3, 5), groups=2)
        self.norm = nn.BatchNorm2d(6)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(6, 3)
        self.temperature = nn.Parameter(torch.ones(()))


def names(parameters: ParameterList) -> list[str]:
    return [parameter.name for parameter in parameters]


def test_everything_is_chosen_in_the_models_order_with_offsets_that_add_up() -> None:
    model = Net()
    parameters = select_parameters(model)
    assert names(parameters) == [name for name, _ in model.named_parameters()]
    assert parameters.num_parameters == sum(parameter.numel() for parameter in model.parameters())
    end = 0
    for parameter in parameters:
        assert parameter.offset == end
        end += parameter.size


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({"layers": "linear"}, ["head.weight", "head.bias"]),
        ({"include": ["head"]}, ["head.weight", "head.bias"]),
        ({"include": ["encoder.0"], "exclude": ["*.norm"]}, ["encoder.0.conv.weight", "encoder.0.conv.bias"]),
        ({"include": ["encoder.*.conv"], "exclude": ["*.bias"]}, ["encoder.0.conv.weight", "encoder.1.conv.weight"]),
        ({"include": ["temperature"]}, ["temperature"]),
    ],
)
def test_globs_choose_modules_with_all_they_hold(choice, expected) -> None:
    assert names(select_parameters(Net(), **choice)) == expected


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.self = nn.ModuleDict({"query": nn.Linear(4, 4), "key": nn.Linear(4, 4)})
        self.output = nn.ModuleDict({"dense": nn.Linear(4, 4), "LayerNorm": nn.LayerNorm(4)})


def bert(layers: int = 12) -> nn.Module:
    """Modules named as in BERT and its kin."""
    blocks = nn.ModuleList([nn.ModuleDict({"attention": Attention()}) for _ in range(layers)])
    embeddings = nn.ModuleDict({"word_embeddings": nn.Embedding(9, 4), "LayerNorm": nn.LayerNorm(4)})
    inner = nn.ModuleDict({"embeddings": embeddings, "encoder": nn.ModuleDict({"layer": blocks})})
    return nn.ModuleDict({"bert": inner, "classifier": nn.Linear(4, 2)})


def test_globs_choose_by_the_names_of_transformers() -> None:
    first = names(select_parameters(bert(), include=["bert.encoder.layer.1"]))
    assert all(name.startswith("bert.encoder.layer.1.attention") for name in first), (
        "layer.1 is not layer.10 or layer.11"
    )
    assert len(first) == 8
    queries = names(select_parameters(bert(), include=["*.query", "*.key"], exclude=["*.layer.?", "*.bias"]))
    assert queries == [
        f"bert.encoder.layer.{n}.attention.self.{part}.weight" for n in (10, 11) for part in ("query", "key")
    ]
    linear = names(select_parameters(bert(1), layers="linear", exclude=["classifier"]))
    assert linear == [
        f"bert.encoder.layer.0.attention.{part}.{kind}"
        for part in ("self.query", "self.key", "output.dense")
        for kind in ("weight", "bias")
    ]
    kept = names(select_parameters(bert(1), exclude=["*LayerNorm*", "*embeddings*"]))
    assert not any("LayerNorm" in name or "embeddings" in name for name in kept)
    assert "classifier.weight" in kept


def test_gpt2s_conv1d_is_a_linear_layer() -> None:
    conv1d = pytest.importorskip("transformers.pytorch_utils", reason="needs the extra text").Conv1D
    model = nn.ModuleDict({"wte": nn.Embedding(7, 4), "c_attn": conv1d(12, 4), "conv": nn.Conv1d(4, 4, 3)})
    assert names(select_parameters(model, layers="linear")) == ["c_attn.weight", "c_attn.bias"]


def test_a_shared_parameter_is_found_under_its_first_name_only() -> None:
    model = nn.ModuleDict({"wte": nn.Embedding(7, 4), "lm_head": nn.Linear(4, 7, bias=False)})
    model["lm_head"].weight = model["wte"].weight
    assert names(select_parameters(model)) == ["wte.weight"]
    with pytest.raises(ParameterSelectionError, match=r"lm_head\.weight is wte\.weight under another name"):
        select_parameters(model, include=["lm_head"])


@pytest.mark.parametrize("choice", [{"include": ["heads"]}, {"exclude": ["encoder.7"]}])
def test_a_glob_that_matches_nothing_is_refused(choice) -> None:
    with pytest.raises(ParameterSelectionError, match="matches no module"):
        select_parameters(Net(), **choice)


def test_a_choice_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(ParameterSelectionError, match="no parameter is left"):
        select_parameters(Net(), include=["head"], exclude=["*"])


def test_parameters_without_numbers_are_left_out() -> None:
    model = nn.ModuleDict({"none": nn.PReLU(0), "some": nn.Linear(3, 2)})
    assert names(select_parameters(model)) == ["some.weight", "some.bias"]


def test_frozen_parameters_are_left_out_unless_all_are_frozen() -> None:
    model = Net()
    model.encoder.requires_grad_(False)
    assert names(select_parameters(model)) == ["temperature", "head.weight", "head.bias"]
    model.requires_grad_(False)
    assert len(select_parameters(model)) == len(list(model.parameters()))


def test_a_list_survives_the_manifest() -> None:
    model = Net()
    parameters = select_parameters(model, scales=ntk_scales(model, 1.5))
    entries = [(entry["name"], entry["shape"], entry["ntk_scale"]) for entry in parameters.as_manifest()]
    assert ParameterList.of_entries(entries) == parameters


def test_a_model_that_does_not_fit_the_list_is_refused() -> None:
    parameters = select_parameters(Net())
    other = Net()
    other.head = nn.Linear(6, 4)
    with pytest.raises(ParameterSelectionError, match=r"'head\.weight' has shape \[4, 6\] in the model, \[3, 6\]"):
        parameters.check_model(other)
    del other.head
    with pytest.raises(ParameterSelectionError, match=r"no parameter 'head\.weight'"):
        parameters.check_model(other)


def test_an_empty_list_and_a_repeated_name_are_refused() -> None:
    with pytest.raises(ParameterSelectionError, match="at least one"):
        ParameterList.of_entries([])
    with pytest.raises(ParameterSelectionError, match="each name once"):
        ParameterList.of_entries([("a", (2,), 1.0), ("a", (2,), 1.0)])


def test_ntk_scales_follow_fan_in_and_leave_the_rest_alone() -> None:
    scales = ntk_scales(Net(), math.sqrt(2))
    assert math.isclose(scales["head.weight"], math.sqrt(2 / 6))
    assert math.isclose(scales["encoder.0.conv.weight"], math.sqrt(2 / (4 / 2 * 3 * 5)))
    others = {name: scale for name, scale in scales.items() if name.endswith("weight") is False or "norm" in name}
    assert set(others.values()) == {1.0}


def test_ntk_scale_is_the_deviation_of_the_initialisation() -> None:
    layer = nn.ConvTranspose2d(64, 32, 3, groups=4)
    scale = ntk_scales(nn.Sequential(layer), 1.0)["0.weight"]
    assert math.isclose(scale, 1 / math.sqrt(64 / 4 * 9))


def test_ntk_parameterisation_scales_gradients_and_keeps_predictions() -> None:
    layer, x = nn.Linear(6, 1, bias=False).double(), torch.randn(6, dtype=torch.float64)
    scale = ntk_scales(layer, 1.0)["weight"]
    omega = (layer.weight.detach() / scale).requires_grad_()
    value = (scale * omega @ x).squeeze()
    torch.testing.assert_close(value, layer(x).squeeze())
    (gradient,) = torch.autograd.grad(value, omega)
    torch.testing.assert_close(gradient[0], scale * x)


@pytest.mark.parametrize("gain", [0.0, -1.0, math.nan, math.inf])
def test_a_gain_that_is_no_positive_number_is_refused(gain: float) -> None:
    with pytest.raises(ValueError, match="positive number"):
        ntk_scales(Net(), gain)
